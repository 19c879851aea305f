"""Read and write an npz of plain arrays. Whatever is wrong with a file is one kind of error."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distillens.files.atomic import write_atomically


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz by name; nothing is unpickled.

    Raises
    ------
    ValueError
        With one short line: the file is missing, damaged, or no npz of plain arrays. The caller knows
        what the file is for and makes the user's error of it.
    """
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if start == b"\x93NUMPY":
            raise ValueError("it holds a single array without a name, as numpy.save writes it")
        if not start.startswith(b"PK"):
            raise ValueError("it does not start as an npz does" if start else "it is empty")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # zipfile, zlib and NumPy raise a dozen kinds, by where the damage is; a damaged shape asks for
    # more memory than there is.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None
        text = " ".join((reason or str(error)).split())[:160]
        raise ValueError(text or "it ends too early") from None


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed npz atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())
