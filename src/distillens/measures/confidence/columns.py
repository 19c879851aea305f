"""Columns of outputs and labels: which columns are no class, and how classes correspond.

Shapes: N examples, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillens.errors import MeasureError, nearest
from distillens.files.array_likes import as_array
from distillens.files.tables import Rows
from distillens.measures.complexity.targets import check_labels

NO_CLASS = frozenset(
    {
        "id", "ids", "index", "row", "label", "labels", "target", "targets", "y_true", "y_pred",
        "pred", "preds", "prediction", "predictions", "predicted", "predicted_class",
        "predicted_label", "true_label", "correct", "confidence", "loss",
    }
)  # fmt: skip
"""Names, in lower case, of columns that hold no output of a class."""

SLACK = 1e-9
"""Added to tolerances, so that sums of decimals that are off by just as much are accepted."""

_LOOKED_AT = 4096
_FEWEST_COUNTED = 5
_SHOWN = 5


def refuse_other_columns(rows: Rows, who: str, tolerance: float, option: str = "") -> None:
    """Refuse outputs with columns that look like row numbers, labels or predicted classes.

    Parameters
    ----------
    rows
        Outputs (N, C). Columns in ``rows.keep`` are accepted.
    who
        Role of the outputs, for messages.
    tolerance
        Largest accepted deviation of the sum of probabilities from one.
    option
        Prefix of a column's position on the command line, such as "teacher=".

    Raises
    ------
    MeasureError
        There is such a column; the message names the options that resolve it.
    """
    values = rows.values
    if values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind not in "fiu":
        return
    head_BC = np.asarray(values[:_LOOKED_AT], dtype=np.float64)
    names = rows.names or tuple(f"f{i}" for i in range(values.shape[1]))
    found = {
        name: why
        for name, why in _suspects(head_BC, names, tolerance).items()
        if name not in rows.keep
    }
    if not found:
        return
    name, why = next(iter(found.items()))
    prefix = "" if rows.names is not None else option
    others = f" ({', '.join(map(repr, list(found)[1:_SHOWN]))} as well)" if len(found) > 1 else ""
    each = [prefix + (f"'{one}'" if " " in one or not one else one) for one in found]
    raise MeasureError(
        f"column {name!r} of the {who}'s outputs {why}{others}; leave it out with "
        f"{' '.join(f'--drop {one}' for one in each[:_SHOWN])}, use it as the index of the rows with "
        f"--index {each[0]}, or keep it as a class with --keep {each[0]} (from Python: index, drop and "
        "keep of read_rows, or keep of Rows)"
    )


def _suspects(head_BC: NDArray, names: Sequence[str], tolerance: float) -> dict[str, str]:
    """Return columns that are probably no class, each with the reason."""
    rows = len(head_BC)
    with np.errstate(invalid="ignore"):
        whole_C = (np.isfinite(head_BC) & (head_BC == np.rint(head_BC))).all(axis=0)
        varies_C = (head_BC != head_BC[:1]).any(axis=0)
        inside = bool((head_BC >= 0).all() and (head_BC <= 1).all())
        sums = inside and bool((np.abs(head_BC.sum(axis=1) - 1) <= tolerance + SLACK).all())
    found: dict[str, str] = {}
    mixed = not whole_C.all() and not sums
    for place, name in enumerate(names):
        column_B = head_BC[:, place]
        if name.strip().casefold() in NO_CLASS:
            found[name] = "has the name of something other than a class"
        elif not whole_C[place] or not varies_C[place]:
            continue
        elif rows >= _FEWEST_COUNTED and _counts(column_B):
            found[name] = f"counts the rows ({column_B[0]:.0f}, {column_B[1]:.0f}, …)"
        elif mixed:
            found[name] = f"holds integers ({column_B[0]:.0f}, {column_B[1]:.0f}, …) among decimals"
        elif (
            rows >= _FEWEST_COUNTED
            and place in (0, len(names) - 1)
            and not sums
            and bool((np.delete(head_BC, place, axis=1).argmax(axis=1) == column_B).all())
        ):
            found[name] = "is the class that the other columns predict"
    return found


def _counts(column_B: NDArray) -> bool:
    span = column_B.max() - column_B.min()
    return bool(span == len(column_B) - 1 and len(np.unique(column_B)) == len(column_B))


def column_order(
    teacher: Sequence[str] | None, other: Sequence[str] | None, role: str
) -> tuple[NDArray | None, str | None]:
    """Return the order of another network's columns that gives the teacher's, and a note.

    Names are compared as they are written, then without regard to case, then without a beginning
    that all names of one file share ("teacher_cat" and "student_cat"). Names that only count the
    columns, as pandas gives them, are matched where the other file has the same. Where only one file
    has names, they are matched if they are the numbers of the classes.

    Raises
    ------
    MeasureError
        The two have different names.
    """
    if teacher is None or other is None:
        return _order_of_numbers(teacher, other, role)
    if len(teacher) != len(other) or list(teacher) == list(other):
        return None, None
    plain = [[name.strip().casefold() for name in names] for names in (teacher, other)]
    for mine, theirs in (
        (list(teacher), list(other)),
        plain,
        (without_beginning(teacher), without_beginning(other)),
    ):
        if set(mine) == set(theirs) and len(set(mine)) == len(mine):
            if mine == theirs:
                return None, None
            place = {name: i for i, name in enumerate(theirs)}
            order = np.array([place[name] for name in mine])
            return order, f"the {role}'s columns were put in the order of the teacher's, by name"
    if only_counts(teacher) or only_counts(other):
        return None, (
            f"the columns of the teacher and the {role} were matched by position: only one of the "
            "files names the classes"
        )
    only = [sorted(set(a) - set(b)) for a, b in ((teacher, other), (other, teacher))]
    raise MeasureError(
        f"the columns have different names: {_some(only[0])} only in the teacher's outputs, "
        f"{_some(only[1])} only in the {role}'s; give both the same names of classes"
    )


def _order_of_numbers(
    teacher: Sequence[str] | None, other: Sequence[str] | None, role: str
) -> tuple[NDArray | None, str | None]:
    """Match columns named by the numbers of their classes with columns that have no names.

    Columns without names are in the order of the classes; those of a table may be in alphabetical
    order: 0, 1, 10, 2.
    """
    names = teacher if other is None else other
    if names is None or not are_shuffled_numbers(names):
        return None, None
    numbers = np.array([int(name) for name in without_beginning(names)])
    who = "teacher" if other is None else role
    note = f"the columns of the teacher and the {role} were matched by the numbers of the {who}'s"
    return numbers if other is None else np.argsort(numbers), note


def are_shuffled_numbers(names: Sequence[str]) -> bool:
    """Return whether names are 0 … C−1 in another order, with or without a common prefix."""
    counted = [str(i) for i in range(len(names))]
    plain = without_beginning(names)
    return plain != counted and sorted(plain) == sorted(counted)


def only_counts(names: Sequence[str]) -> bool:
    """Return whether names are 0, 1, 2, …, as pandas gives them."""
    return list(names) == [str(i) for i in range(len(names))]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return f"{shown}, …" if len(names) > _SHOWN else shown


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
    if labels_N.dtype.kind in "OS":
        bare = [one.item() if hasattr(one, "item") else one for one in labels_N.tolist()]
        bare = [one.decode() if isinstance(one, bytes) else one for one in bare]
        odd = [one for one in bare if not isinstance(one, int | float | str)]
        if odd:
            raise MeasureError(f"labels hold {odd[0]!r}; give integers or names of classes")
        labels_N = np.array(bare)
    kind = labels_N.dtype.kind
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
