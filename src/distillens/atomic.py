"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from distillens.errors import RunError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that, whenever the power fails, the old or the new content is there.

    Raises
    ------
    RunError
        The disk is full or cannot be written; files written before are untouched.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror}; what was written before is untouched, "
            "make room and run the same command again"
        ) from None
