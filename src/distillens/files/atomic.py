"""Atomic writes: files exist completely or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from distillens.errors import RunError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file atomically: after a crash it has either the old or the new content.

    Raises
    ------
    RunError
        The disk is full or cannot be written; files written before are untouched.
    """
    part: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A fresh name: it follows no link, and two processes never share one.
        descriptor, part = tempfile.mkstemp(".part", f"{path.name}.", path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except OSError as error:
        if part is not None:
            with suppress(OSError):
                Path(part).unlink()
        raise RunError(
            f"cannot write {path}: {error.strerror}; what was written before is untouched, "
            "mend that and run the same command again"
        ) from None
