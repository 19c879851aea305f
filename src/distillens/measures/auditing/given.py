"""What an audit was given, by split: checked for what can be seen without reading the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.array_files import Rows
from distillens.errors import MeasureError
from distillens.measures.auditing.outputs import Outputs
from distillens.measures.confidence import OutputKind
from distillens.measures.targets import check_labels

Given: TypeAlias = ArrayLike | Rows | Mapping[str, Any]
"""An array or `Rows`, or one of them for each split by its name."""

OUTPUT_ROLES = ("teacher", "student", "one-hot student", "other teacher")
ONE_SPLIT = "all"
"""The name of the split where none was given."""


@dataclass(frozen=True, eq=False)
class Split:
    """The arrays of one split, which fit each other."""

    outputs: dict[str, Outputs]
    labels_N: NDArray[np.integer]
    mislabelled_N: NDArray[np.bool_] | None
    index_N: NDArray | None
    inputs: NDArray | None
    classes: int


def by_split(given: Mapping[str, Given | None]) -> dict[str, dict[str, Rows]]:
    """Turn roles that hold splits into splits that hold roles.

    Raises
    ------
    MeasureError
        Roles do not name the same splits.
    """
    named: dict[str, dict[str, Rows]] = {}
    for role, value in given.items():
        if value is None:
            continue
        splits = value if isinstance(value, Mapping) else {ONE_SPLIT: value}
        named[role] = {str(name): _rows(one) for name, one in splits.items()}
    first_role, first = next(iter(named.items()))
    if not first:
        raise MeasureError(f"the {first_role} was given without any split; give at least one")
    for role, splits in named.items():
        if set(splits) != set(first):
            raise MeasureError(
                f"the {first_role} has the splits {', '.join(first)}, the {role} "
                f"{', '.join(splits) or 'none'}; give every role the same splits"
            )
    return {split: {role: named[role][split] for role in named} for split in first}


def check_split(roles: dict[str, Rows], kinds: Mapping[str, OutputKind | None]) -> Split:
    """Check one split's arrays against each other.

    Raises
    ------
    MeasureError
        Lengths, classes or indices differ, labels are out of range, or a mask is no mask.
    """
    outputs = {
        role: Outputs(role, roles[role].values, kinds[role])
        for role in OUTPUT_ROLES
        if role in roles
    }
    teacher = outputs["teacher"]
    for role, rows in roles.items():
        if len(rows.values) != len(teacher.values):
            raise MeasureError(
                f"the teacher has {len(teacher.values):,} rows, the {role} {len(rows.values):,}; "
                "give the same examples to every role"
            )
    for role, other in outputs.items():
        if other.classes != teacher.classes:
            raise MeasureError(
                f"the teacher has {teacher.classes:,} classes, the {role} {other.classes:,}; "
                "an audit needs the same classes in the same order"
            )
    labels_N = check_labels(_column(roles["labels"].values, "labels"), teacher.classes)
    index_N = _same_index(roles)
    mask_N = None
    if "mislabelled" in roles:
        mask_N = _mask(_column(roles["mislabelled"].values, "mislabelled"))
    inputs = roles["inputs"].values if "inputs" in roles else None
    return Split(outputs, labels_N, mask_N, index_N, inputs, teacher.classes)


def _rows(value: Any) -> Rows:
    rows = value if isinstance(value, Rows) else Rows(np.asanyarray(value))
    if rows.values.ndim == 0:
        raise MeasureError(f"a single {rows.values.dtype} is no array of examples; give (N, …)")
    return rows


def _column(values: NDArray, role: str) -> NDArray:
    column = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if column.ndim != 1:
        raise MeasureError(
            f"{role} have shape {values.shape}; give one value an example, shape (N,)"
        )
    return np.asarray(column)


def _same_index(roles: dict[str, Rows]) -> NDArray | None:
    """Return the index that roles share, or raise at the first row where two disagree."""
    first_role, first_N = "", None
    for role, rows in roles.items():
        if rows.index is None:
            continue
        index_N = np.asarray(rows.index)
        if index_N.shape != (len(rows.values),):
            raise MeasureError(
                f"the {role}'s index has shape {index_N.shape} for {len(rows.values)} rows; "
                "give one index a row"
            )
        if first_N is None:
            first_role, first_N = role, index_N
            if len(np.unique(index_N)) < len(index_N):
                raise MeasureError(f"the {role}'s index repeats; give each row an index of its own")
            continue
        differ_N = index_N != first_N
        if np.any(differ_N):
            row = int(np.argmax(differ_N))
            raise MeasureError(
                f"the rows are in another order: at row {row} the {first_role}'s index is "
                f"{first_N[row]}, the {role}'s {index_N[row]}; sort both by index"
            )
    return first_N


def _mask(mask: NDArray) -> NDArray[np.bool_]:
    if mask.dtype.kind not in "biu" or not np.isin(mask, (0, 1)).all():
        raise MeasureError(
            f"mislabelled has type {mask.dtype} or values other than 0 and 1; give a mask, "
            "1 where the label is wrong"
        )
    return mask.astype(bool)
