"""Read classes as integers from arrays of several kinds. Shapes: N examples, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillens.errors import MeasureError, nearest
from distillens.files.array_likes import as_array
from distillens.measures.complexity.targets import check_labels


def class_labels(
    labels: Any,
    classes: int,
    names: Sequence[str] | None = None,
    own_names: Sequence[str] | None = None,
) -> tuple[NDArray[np.int64], str | None]:
    """Return labels as integers in 0 … C−1, and a note on how they were read.

    Parameters
    ----------
    labels
        (N,) or (N, 1): integers, whole floats, truth values for two classes, integers written as
        text, or names of classes; or one-hot rows (N, C).
    classes
        Number of classes of the outputs.
    names
        Names of the classes, from the header of the outputs. If all labels are among them they are
        read as names, and as positions otherwise.
    own_names
        Names of the columns of one-hot labels.

    Raises
    ------
    MeasureError
        A label is no class, or the shape is another.
    """
    labels_N, note = as_array(labels), None
    if labels_N.ndim == 2 and labels_N.shape[1] == 1:
        labels_N = labels_N[:, 0]
    if labels_N.ndim == 2 and labels_N.shape[1] == classes:
        labels_N, note = _from_one_hot(labels_N), "one-hot labels were read as classes"
        if own_names is not None and names is not None and set(own_names) == set(names):
            labels_N = np.array(own_names)[labels_N]
    if labels_N.ndim != 1:
        raise MeasureError(
            f"labels have shape {labels_N.shape}; give one class an example, shape (N,), or one-hot "
            f"rows of {classes} classes; one column of a file is chosen with FILE::NAME"
        )
    labels_N = _simple(labels_N)
    for known in () if names is None else (names, without_beginning(names)):
        by_name_N = _by_name(labels_N, known)
        if by_name_N is not None:
            counted = list(known) == [str(i) for i in range(classes)]
            return (
                by_name_N,
                note if counted else "labels were read as names of classes in the header",
            )
    if labels_N.dtype.kind == "U":
        raise MeasureError(_unknown(labels_N, names))
    return check_labels(labels_N, classes).astype(np.int64), note


def without_beginning(names: Sequence[str]) -> list[str]:
    """Leave out a common beginning that ends in a sign, or that only numbers follow.

    Examples
    --------
    >>> without_beginning(["prob_cat", "prob_dog"]), without_beginning(["z0", "z1"])
    (['cat', 'dog'], ['0', '1'])
    """
    plain = [name.strip().casefold() for name in names]
    low, high = min(plain), max(plain)
    size = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    stem = low[:size]
    word = stem.rstrip("0123456789")
    if word and all(name[len(word) :].isdigit() for name in plain):
        return [str(int(name[len(word) :])) for name in plain]
    while stem and stem[-1].isalnum():
        stem = stem[:-1]
    return [name[len(stem) :] for name in plain]


def _from_one_hot(labels_NC: NDArray) -> NDArray:
    one_hot = labels_NC.dtype.kind in "iufb" and np.isin(labels_NC, (0, 1)).all()
    if not one_hot or not (labels_NC.sum(axis=1) == 1).all():
        raise MeasureError(
            f"labels have shape {labels_NC.shape}, but rows are not one-hot (a single 1, zeros "
            "otherwise); an audit needs one true class an example, shape (N,)"
        )
    return labels_NC.argmax(axis=1)


def _simple(labels_N: NDArray) -> NDArray:
    """Return integers, truth values or text; floats stay floats where they are not whole."""
    kind = labels_N.dtype.kind
    if kind == "O":
        bare = [one.item() if hasattr(one, "item") else one for one in labels_N.tolist()]
        if all(isinstance(one, bytes | str) for one in bare):
            labels_N = np.array([one.decode() if isinstance(one, bytes) else one for one in bare])
        elif all(isinstance(one, int | float) for one in bare):
            labels_N = np.array(bare)
        else:
            odd = next(one for one in bare if not isinstance(one, int | float))
            raise MeasureError(f"labels hold {odd!r}; give integers or names of classes")
        kind = labels_N.dtype.kind
    if kind == "S":
        labels_N, kind = np.char.decode(labels_N, "utf-8"), "U"
    if kind == "U":
        labels_N = np.char.strip(labels_N)
        try:
            return labels_N.astype(np.int64)
        except (ValueError, OverflowError):
            return labels_N
    if kind == "f" and len(labels_N):
        whole = np.isfinite(labels_N) & (labels_N == np.rint(labels_N))
        if not whole.all():
            row = int(np.argmin(whole))
            raise MeasureError(f"the label of row {row} is {labels_N[row]}; give integers from 0")
        return labels_N.astype(np.int64)
    return labels_N


def _by_name(labels_N: NDArray, names: Sequence[str]) -> NDArray[np.int64] | None:
    """Return the place of each label in the header; None if one of them is no name."""
    place = {name.strip().casefold(): i for i, name in enumerate(names)}
    if labels_N.dtype.kind in "iu":
        # Names are written as the labels are.
        place = {str(int(name)): i for name, i in place.items() if name.isdecimal()}
    found, inverse_N = np.unique(labels_N, return_inverse=True)
    labels = [str(one).casefold() for one in found]
    if not labels or not place.keys() >= set(labels):
        return None
    return np.array([place[one] for one in labels], dtype=np.int64)[inverse_N]


def _unknown(labels_N: NDArray, names: Sequence[str] | None) -> str:
    if names is None:
        return (
            f"labels are text ({str(labels_N[0])!r}, …), and the outputs have no names of classes; "
            "give integers from 0, or outputs with a header that names the classes"
        )
    known = {name.strip().casefold() for name in names}
    odd = next(str(one) for one in labels_N if str(one).casefold() not in known)
    return f"the label {odd!r} is no class in the header of the outputs{nearest(odd, names)}"
