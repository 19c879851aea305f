"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def user_path(path: str | Path) -> Path:
    """Return a path with a leading ``~`` or ``~user`` replaced by that home directory.

    Shells expand ``--out ~/runs`` but leave ``--out=~/runs`` and the values of a recipe as they are. A
    path that names a user who does not exist is returned unchanged, as shells do.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


UserPath = Annotated[
    str, AfterValidator(lambda path: str(user_path(path)) if path[:1] == "~" else path)
]
"""A path in a recipe; a leading ``~`` is the home directory."""
