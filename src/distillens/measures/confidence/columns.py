"""Columns of outputs: which are no class, and how the classes of two networks correspond.

Shapes: N examples, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distillens.errors import MeasureError
from distillens.files.arrays import Rows
from distillens.measures.confidence.class_labels import without_beginning

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
    known = rows.names is not None
    names = rows.names or tuple(f"f{i}" for i in range(values.shape[1]))
    found = {
        name: why
        for name, why in _suspects(head_BC, names, tolerance).items()
        if name not in rows.keep
    }
    if not found:
        return
    name, why = next(iter(found.items()))
    given = {one: f"'{one}'" if " " in one or not one else one for one in found}
    prefix = "" if known else option
    others = f" ({', '.join(map(repr, list(found)[1:_SHOWN]))} as well)" if len(found) > 1 else ""
    each = [prefix + one for one in given.values()]
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
    step_B = np.diff(column_B)
    if (step_B == 1).all():
        return True
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
    if len(teacher) != len(other):
        return None, None
    if list(teacher) == list(other):
        return None, None
    tries = (
        (list(teacher), list(other)),
        ([_plain(name) for name in teacher], [_plain(name) for name in other]),
        (without_beginning(teacher), without_beginning(other)),
    )
    for mine, theirs in tries:
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


def _plain(name: str) -> str:
    return name.strip().casefold()


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
