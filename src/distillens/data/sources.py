"""Where examples come from: each source returns the named splits that it holds."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distillens.data.examples import Examples, examples_from_arrays
from distillens.errors import DataError
from distillens.npz import load_npz

Source = dict[str, Examples]
"""Splits by name: always "train", "test" where the source has one."""

IDX_PARTS = {"train": "train", "test": "t10k"}
NPZ_KEYS = {
    "train": (("train_inputs", "train_labels"), ("x_train", "y_train"), ("inputs", "labels")),
    "test": (("test_inputs", "test_labels"), ("x_test", "y_test")),
}


def read_digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits, (N, 1, 8, 8) with grey values 0 to 255."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    # Stored as 0..16; spread over a byte so that every source of images has the same unit.
    images = np.round(np.asarray(digits["images"]) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(digits["target"])
    return {"train": examples_from_arrays(images, labels, where="digits")}


def read_idx(folder: Path) -> Source:
    """Read a folder of IDX files as MNIST and Fashion-MNIST have them, gzipped or not.

    Raises
    ------
    DataError
        A file is missing, damaged or shorter than its header says.
    """
    _folder(folder)
    source: Source = {}
    for split, prefix in IDX_PARTS.items():
        images = _idx_file(folder, f"{prefix}-images-idx3-ubyte", 3)
        labels = _idx_file(folder, f"{prefix}-labels-idx1-ubyte", 1)
        source[split] = examples_from_arrays(images, labels, where=f"{folder.name}/{prefix}")
    return source


def read_npz(path: Path) -> Source:
    """Read an npz with ``train_inputs``, ``train_labels`` and, if it has them, ``test_…``.

    Keras' ``x_train``, ``y_train``, ``x_test``, ``y_test`` and a single split ``inputs``,
    ``labels`` are understood too; ``classes`` may hold the names. Nothing is unpickled.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; data.path must name an .npz file")
    try:
        arrays = load_npz(path)
    except ValueError as error:
        raise DataError(f"{path} is no readable npz of plain arrays: {error}") from None
    classes = _names(arrays["classes"], path) if "classes" in arrays else None
    source: Source = {}
    for split, pairs in NPZ_KEYS.items():
        for inputs, labels in pairs:
            if inputs in arrays and labels in arrays:
                where = f"{path.name}[{inputs}, {labels}]"
                label = arrays[labels]
                label = label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label
                source[split] = examples_from_arrays(arrays[inputs], label, classes, where=where)
                break
    if "train" not in source:
        raise DataError(
            f"{path} has the arrays {sorted(arrays)}; "
            "it needs train_inputs and train_labels (or x_train and y_train)"
        )
    return source


def _names(array: np.ndarray, path: Path) -> list[str]:
    if array.ndim != 1 or not len(array):
        raise DataError(
            f"{path.name}[classes] has shape {array.shape}; it must be a list with a name a class"
        )
    return [str(name) for name in array]


def one_line(error: BaseException) -> str:
    """Return an exception's text on one line, its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; data.path must name the folder of the data set")


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
    for candidate, opener in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
        if candidate.is_file():
            return candidate, opener
    raise DataError(f"{folder} holds neither {name} nor {name}.gz; an IDX folder needs both splits")
