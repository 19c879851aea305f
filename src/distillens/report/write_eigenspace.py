"""Write eigenspace dynamics into a folder: numbers, trajectories and pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillens.errors import RunError
from distillens.files.atomic import write_atomically
from distillens.report.figures.eigenspace import pairs_picture, predictions_picture
from distillens.results.base import to_json
from distillens.results.eigenspace import Eigenspace


def write_eigenspace(
    result: Eigenspace, arrays: Mapping[str, NDArray[np.float64]], folder: Path
) -> tuple[Path, ...]:
    """Write ``eigenspace.json`` and ``.npz``, and two pictures as SVG and PNG; return the paths.

    Raises
    ------
    RunError
        The folder is a file, or cannot be written.
    """
    # matplotlib takes a second to import; only who draws should wait for it.
    from distillens.report.backends.draw import png_bytes, svg_bytes

    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give a folder with --out")
    memory = io.BytesIO()
    np.savez_compressed(memory, allow_pickle=False, **arrays)
    contents: dict[str, bytes | str] = {
        "eigenspace.json": to_json(result),
        "eigenspace.npz": memory.getvalue(),
    }
    pictures = {
        "eigenspace-pairs": pairs_picture(result, arrays),
        "eigenspace-predictions": predictions_picture(result, arrays),
    }
    for name, picture in pictures.items():
        contents[f"{name}.svg"] = svg_bytes(picture)
        contents[f"{name}.png"] = png_bytes(picture)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return tuple(folder / name for name in contents)
