"""Sources of arrays: scikit-learn's digits, folders of IDX files (MNIST), and npz files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from distillens.data.sources.source import (
    DataSource,
    LoadOptions,
    PathSource,
    register_source,
    to_examples,
)
from distillens.errors import DataError, one_line
from distillens.files.npz import load_npz

if TYPE_CHECKING:
    from distillens.data.examples import Examples


@register_source("digits")
class Digits(DataSource):
    """scikit-learn's 1,797 handwritten digits, (N, 1, 8, 8) with grey values 0 to 255."""

    def load(self, options: LoadOptions) -> dict[str, Examples]:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        # Stored as 0..16; spread over a byte so that every source of images has the same unit.
        images = np.round(np.asarray(digits["images"]) * (255 / 16)).astype(np.uint8)
        labels = np.asarray(digits["target"])
        return to_examples({"train": images}, {"train": labels}, "digits", None, options)


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
        return to_examples(images, labels, folder.name, None, options)


def _idx_file(folder: Path, name: str, dimensions: int) -> np.ndarray:
    # Some copies of MNIST have a dot before the kind.
    stems = (name, name.replace("-idx", ".idx"))
    paths = [folder / f"{stem}{end}" for stem in stems for end in ("", ".gz")]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        raise DataError(
            f"{folder} holds neither {name} nor {name}.gz; an IDX folder needs both splits"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
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


NPZ_PATTERNS = (
    ("{}_inputs", "{}_images", "{}_data", "{}_x", "x_{}"),
    ("{}_labels", "{}_label", "{}_targets", "{}_y", "y_{}"),
)
NPZ_SPLITS = {"train": ("train",), "test": ("test",), "validation": ("val", "valid", "validation")}
"""Names of arrays in an npz, in small or capital letters, and of its splits."""
NPZ_SINGLE = (("inputs", "images", "data", "x"), ("labels", "targets", "target", "y"))
"""Names of the arrays of an npz that has one split."""


@register_source("npz")
class NpzFile(PathSource):
    """An npz with ``train_inputs``, ``train_labels`` and, if it has them, ``test_…``.

    Keras' ``x_train``, ``y_train``, ``x_test``, ``y_test``, MedMNIST's ``train_images``,
    ``val_images`` and the like, and a single split ``inputs``, ``labels`` (or ``x``, ``y``) are
    understood too. Validation arrays are the test split where there is no other; otherwise they are
    not read, since validation examples are taken out of the training examples. ``classes`` may hold
    the names of the classes. Nothing is unpickled.
    """

    place: ClassVar[Literal["file", "folder", "name"]] = "file"

    def load(self, options: LoadOptions) -> dict[str, Examples]:
        """Return the splits of the file.

        Raises
        ------
        DataError
            The file is damaged, lacks an array, or several arrays could be meant.
        """
        path = Path(self.path)
        try:
            arrays = load_npz(path)
        except ValueError as error:
            raise DataError(f"{path} is no readable npz of plain arrays: {error}") from None
        pairs = _npz_pairs(path, list(arrays))
        inputs = {split: arrays[key] for split, (key, _) in pairs.items()}
        labels = {split: arrays[key] for split, (_, key) in pairs.items()}
        columns = {s: each[:, 0] if each.shape[1:] == (1,) else each for s, each in labels.items()}
        classes = _names(arrays["classes"], path) if "classes" in arrays else None
        return to_examples(inputs, columns, path.name, classes, options)


def _npz_pairs(path: Path, names: list[str]) -> dict[str, tuple[str, str]]:
    """Return the names of inputs and labels by split, "train" and perhaps "test"."""
    wanted = {
        split: [[each.format(name) for name in written for each in kind] for kind in NPZ_PATTERNS]
        for split, written in NPZ_SPLITS.items()
    }
    pairs = {split: _npz_pair(path, names, known, split) for split, known in wanted.items()}
    single = _npz_pair(path, names, NPZ_SINGLE, None)
    train = pairs["train"] or single
    if train is None:
        raise DataError(
            f"{path} has the arrays {sorted(names)}; "
            "it needs train_inputs and train_labels (or x_train and y_train)"
        )
    if single is not None and single != train:
        raise DataError(
            f"{path} has both {train[0]} and {single[0]} with labels; "
            "leave out the pair that is not to be used"
        )
    test = pairs["test"] or pairs["validation"]
    return {"train": train} | ({} if test is None else {"test": test})


def _npz_pair(
    path: Path, names: list[str], wanted: Sequence[Sequence[str]], split: str | None
) -> tuple[str, str] | None:
    there = [[name for name in names if name.lower() in known] for known in wanted]
    for what, several in zip(("inputs", "labels"), there, strict=True):
        if len(several) > 1 and all(there):
            raise DataError(
                f"{path} has {' and '.join(sorted(several))}, which could all be the {what}"
                f"{'' if split is None else f' of {split}'}; leave out all but one"
            )
    if all(there):
        return there[0][0], there[1][0]
    if split in ("test", "validation") and any(there):
        present, lacking = ("inputs", "labels") if there[0] else ("labels", "inputs")
        raise DataError(
            f"{path} has {(there[0] or there[1])[0]}, but no {lacking} for these {present}; "
            f"add {wanted[1 if there[0] else 0][0]} or leave the array out"
        )
    return None


def _names(array: np.ndarray, path: Path) -> list[str]:
    if array.ndim != 1 or not len(array):
        raise DataError(
            f"{path.name}[classes] has shape {array.shape}; it must be a list with a name a class"
        )
    return [name.decode() if isinstance(name, bytes) else str(name) for name in array]
