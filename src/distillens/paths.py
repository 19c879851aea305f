"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path


def user_path(path: str | Path) -> Path:
    """Return a path with a leading ``~`` or ``~user`` replaced by that home directory.

    Shells expand ``--out ~/runs`` but leave ``--out=~/runs`` and the values of a recipe as they are. A
    path that names a user who does not exist is returned unchanged, as shells do.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
