"""Where examples come from: each source returns the named splits that it holds."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillens.data.examples import MAX_UNNAMED, Examples, examples_from_arrays
from distillens.errors import DataError
from distillens.files.npz import load_npz

Source = dict[str, Examples]
"""Splits by name: always "train", "test" where the source has one."""

IDX_PARTS = {"train": "train", "test": "t10k"}
NPZ_INPUTS = ("{}_inputs", "{}_images", "{}_data", "{}_x", "x_{}")
NPZ_LABELS = ("{}_labels", "{}_label", "{}_targets", "{}_y", "y_{}")
NPZ_SPLITS = {"train": ("train",), "test": ("test",), "validation": ("val", "valid", "validation")}
"""Names of arrays in an npz, in small or capital letters, and of its splits."""
NPZ_SINGLE = (("inputs", "images", "data", "x"), ("labels", "targets", "target", "y"))
"""Names of the arrays of an npz that has one split."""


def read_digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits, (N, 1, 8, 8) with grey values 0 to 255."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    # Stored as 0..16; spread over a byte so that every source of images has the same unit.
    images = np.round(np.asarray(digits["images"]) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(digits["target"])
    return {"train": examples_from_arrays(images, labels, where="digits")}


def read_idx(folder: Path, *, from_one: bool = True) -> Source:
    """Read a folder of IDX files as MNIST and Fashion-MNIST have them, gzipped or not.

    ``from_one`` is that of :func:`number_classes`.

    Raises
    ------
    DataError
        A file is missing, damaged or shorter than its header says.
    """
    _folder(folder)
    images = {
        split: _idx_file(folder, f"{prefix}-images-idx3-ubyte", 3)
        for split, prefix in IDX_PARTS.items()
    }
    labels = {
        split: _idx_file(folder, f"{prefix}-labels-idx1-ubyte", 1)
        for split, prefix in IDX_PARTS.items()
    }
    labels, classes = number_classes(labels, from_one=from_one)
    return {
        split: examples_from_arrays(
            images[split], labels[split], classes, where=f"{folder.name}/{prefix}"
        )
        for split, prefix in IDX_PARTS.items()
    }


def read_npz(path: Path, *, from_one: bool = True) -> Source:
    """Read an npz with ``train_inputs``, ``train_labels`` and, if it has them, ``test_…``.

    Keras' ``x_train``, ``y_train``, ``x_test``, ``y_test``, MedMNIST's ``train_images``,
    ``val_images`` and the like, and a single split ``inputs``, ``labels`` (or ``x``, ``y``) are
    understood too. Validation arrays are the test split where there is no other; else they are left
    alone, since validation examples are taken out of the training examples. ``classes`` may hold
    the names of the classes; without it ``from_one`` is that of :func:`number_classes`. Nothing is
    unpickled.

    Raises
    ------
    DataError
        The file is damaged, lacks an array, or several arrays could be meant.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; data.path must name an .npz file")
    try:
        arrays = load_npz(path)
    except ValueError as error:
        raise DataError(f"{path} is no readable npz of plain arrays: {error}") from None
    pairs = _npz_pairs(path, list(arrays))
    labels = {split: _one_column(arrays[key]) for split, (_, key) in pairs.items()}
    classes = _names(arrays["classes"], path) if "classes" in arrays else None
    if classes is None:
        labels, classes = number_classes(labels, from_one=from_one)
    return {
        split: examples_from_arrays(
            arrays[inputs], labels[split], classes, where=f"{path.name}[{inputs}, {key}]"
        )
        for split, (inputs, key) in pairs.items()
    }


def number_classes(
    labels: Mapping[str, np.ndarray], *, from_one: bool = True
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Return labels that count from 0, and the names of their classes, the same for all splits.

    A class belongs to the task if any split has it, so a test split without the highest class has as
    many classes as the training split. A label of the test split beyond those of the training split
    is taken for damage, and left out of the names, unless the classes of both together have no gap.

    Parameters
    ----------
    labels
        (N,) integers of each split; one is called "train".
    from_one
        Whether labels 1, …, K become 0, …, K − 1 with the names "1", …, "K".

    Returns
    -------
    The labels and the names. Names are None for labels that are no integers from 0, which
    `examples_from_arrays` refuses.
    """
    given = dict(labels)
    if not all(each.ndim == 1 and each.dtype.kind in "iu" and len(each) for each in given.values()):
        return given, None
    found = np.unique(np.concatenate([np.unique(each) for each in given.values()]))
    highest, first = int(found[-1]), int(found[0])
    complete = len(found) == highest - first + 1
    if first < 0 or highest >= MAX_UNNAMED:
        return given, None
    if from_one and first == 1 and complete:
        shifted = {split: each.astype(np.int64) - 1 for split, each in given.items()}
        return shifted, tuple(str(number) for number in found)
    count = (highest if complete else int(given["train"].max())) + 1
    return given, tuple(str(number) for number in range(count))


def _npz_pairs(path: Path, names: list[str]) -> dict[str, tuple[str, str]]:
    """Return the names of inputs and labels by split, "train" and perhaps "test"."""
    found: dict[str, tuple[str, str]] = {}
    for split, written in NPZ_SPLITS.items():
        inputs, labels = (
            [pattern.format(name) for name in written for pattern in patterns]
            for patterns in (NPZ_INPUTS, NPZ_LABELS)
        )
        pair = _npz_pair(path, names, inputs, labels, split)
        if pair is not None:
            found[split] = pair
    single = _npz_pair(path, names, *NPZ_SINGLE, None)
    if single is not None and "train" in found:
        raise DataError(
            f"{path} has both {found['train'][0]} and {single[0]} with labels; "
            "leave out the pair that is not to be used"
        )
    train = found.get("train") or single
    if train is None:
        raise DataError(
            f"{path} has the arrays {sorted(names)}; "
            "it needs train_inputs and train_labels (or x_train and y_train)"
        )
    test = found.get("test") or found.get("validation")
    return {"train": train} | ({} if test is None else {"test": test})


def _npz_pair(
    path: Path, names: list[str], inputs: Sequence[str], labels: Sequence[str], split: str | None
) -> tuple[str, str] | None:
    there = [[name for name in names if name.lower() in known] for known in (inputs, labels)]
    for what, several in zip(("inputs", "labels"), there, strict=True):
        if len(several) > 1 and all(there):
            raise DataError(
                f"{path} has {' and '.join(sorted(several))}, which could all be the {what}"
                f"{'' if split is None else f' of {split}'}; leave out all but one"
            )
    if split in ("test", "validation") and any(there) and not all(there):
        lone, lacking = ("inputs", "labels") if there[0] else ("labels", "inputs")
        raise DataError(
            f"{path} has {(there[0] or there[1])[0]}, but no {lacking} beside these {lone}; "
            f"add {labels[0] if there[0] else inputs[0]} or leave the array out"
        )
    return (there[0][0], there[1][0]) if all(there) else None


def _one_column(labels: np.ndarray) -> np.ndarray:
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _names(array: np.ndarray, path: Path) -> list[str]:
    if array.ndim != 1 or not len(array):
        raise DataError(
            f"{path.name}[classes] has shape {array.shape}; it must be a list with a name a class"
        )
    return [name.decode() if isinstance(name, bytes) else str(name) for name in array]


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
    # Some copies of MNIST have a dot before the kind.
    for stem in (name, name.replace("-idx", ".idx")):
        for candidate, opener in ((folder / stem, open), (folder / f"{stem}.gz", gzip.open)):
            if candidate.is_file():
                return candidate, opener
    raise DataError(f"{folder} holds neither {name} nor {name}.gz; an IDX folder needs both splits")
