"""Arrays in an npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from distillens.data.sources.source import LoadOptions, PathSource, register_source, to_examples
from distillens.errors import DataError
from distillens.files.npz import load_npz

if TYPE_CHECKING:
    from distillens.data.examples import Examples

NPZ_INPUTS = ("{}_inputs", "{}_images", "{}_data", "{}_x", "x_{}")
NPZ_LABELS = ("{}_labels", "{}_label", "{}_targets", "{}_y", "y_{}")
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
        inputs, labels, where = {}, {}, {}
        for split, (key, label_key) in _npz_pairs(path, list(arrays)).items():
            inputs[split], labels[split] = arrays[key], arrays[label_key]
            if labels[split].ndim == 2 and labels[split].shape[1] == 1:
                labels[split] = labels[split][:, 0]
            where[split] = f"{path.name}[{key}, {label_key}]"
        classes = _names(arrays["classes"], path) if "classes" in arrays else None
        return to_examples(inputs, labels, where, classes, options)


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
        present, lacking = ("inputs", "labels") if there[0] else ("labels", "inputs")
        raise DataError(
            f"{path} has {(there[0] or there[1])[0]}, but no {lacking} for these {present}; "
            f"add {labels[0] if there[0] else inputs[0]} or leave the array out"
        )
    return (there[0][0], there[1][0]) if all(there) else None


def _names(array: np.ndarray, path: Path) -> list[str]:
    if array.ndim != 1 or not len(array):
        raise DataError(
            f"{path.name}[classes] has shape {array.shape}; it must be a list with a name a class"
        )
    return [name.decode() if isinstance(name, bytes) else str(name) for name in array]
