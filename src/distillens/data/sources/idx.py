"""Folders of IDX files, as MNIST and Fashion-MNIST have them."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from distillens.data.sources.source import LoadOptions, PathSource, register_source, to_examples
from distillens.errors import DataError, one_line

if TYPE_CHECKING:
    from distillens.data.examples import Examples

PREFIXES = {"train": "train", "test": "t10k"}
"""Prefixes of the file names of each split."""


@register_source("idx")
class IdxFolder(PathSource):
    """A folder of IDX files with images and labels of both splits, gzipped or not."""

    place: ClassVar[Literal["file", "folder", "name"]] = "folder"

    def load(self, options: LoadOptions) -> dict[str, Examples]:
        """Return both splits.

        Raises
        ------
        DataError
            A file is missing, damaged or shorter than its header states.
        """
        folder = Path(self.path)
        images, labels = (
            {
                split: _idx_file(folder, f"{prefix}-{kind}", dimensions)
                for split, prefix in PREFIXES.items()
            }
            for kind, dimensions in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1))
        )
        where = {split: f"{folder.name}/{prefix}" for split, prefix in PREFIXES.items()}
        return to_examples(images, labels, where, None, options)


def _idx_file(folder: Path, name: str, dimensions: int) -> np.ndarray:
    path, opener = _find(folder, name)
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is damaged or truncated: {one_line(error)}; fetch it again"
        ) from None
    header = 4 + 4 * dimensions
    if len(content) < header or content[:3] != b"\x00\x00\x08" or content[3] != dimensions:
        raise DataError(
            f"{path} is no IDX file of bytes with {dimensions} dimension(s): "
            f"it starts with {content[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected, found = math.prod(shape), len(content) - header
    if expected != found:
        raise DataError(
            f"{path} is damaged or truncated: the header promises {expected} bytes for shape "
            f"{shape}, the file holds {found}; fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()


def _find(folder: Path, name: str) -> tuple[Path, Callable]:
    # Some copies of MNIST have a dot before the kind.
    for stem in (name, name.replace("-idx", ".idx")):
        for candidate, opener in ((folder / stem, open), (folder / f"{stem}.gz", gzip.open)):
            if candidate.is_file():
                return candidate, opener
    raise DataError(f"{folder} holds neither {name} nor {name}.gz; an IDX folder needs both splits")
