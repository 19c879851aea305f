"""The arrays of an audit by split, checked as far as possible without reading the outputs.

Rows of several arrays are matched by the index of their examples. Shapes: N examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import DataError, MeasureError
from distillens.files.array_likes import as_array
from distillens.files.arrays import as_rows
from distillens.files.tables import Rows
from distillens.measures.confidence.columns import (
    are_shuffled_numbers,
    class_labels,
    column_order,
    only_counts,
    refuse_other_columns,
)
from distillens.measures.confidence.outputs import SUM_TOLERANCE, OutputKind, Outputs, as_matrix

Given: TypeAlias = ArrayLike | Rows | Mapping[str, Any]
"""An array, tensor, table or `Rows`, or one of them for each split by its name."""

Index: TypeAlias = list[Any]
"""The index of each row, as a Python number or text."""

OPTIONS = {"one-hot student": "reference", "other teacher": "other-teacher"}
"""Options of the command line for roles that have another name there."""

OUTPUT_ROLES = ("teacher", "student", "one-hot student", "other teacher")
ONE_SPLIT = "all"
"""The name of the split where none was given."""


@dataclass(frozen=True, eq=False)
class Split:
    """The arrays of one split, which fit each other."""

    outputs: dict[str, Outputs]
    labels_N: NDArray[np.integer]
    given_N: NDArray[np.integer] | None
    """The labels that the networks were trained on; None if none of them differs from ``labels_N``."""
    mislabelled_N: NDArray[np.bool_] | None
    index: Index | None
    inputs: NDArray | None
    classes: int
    notes: tuple[str, ...] = ()


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
        named[role] = {str(name): _rows(role, one) for name, one in splits.items()}
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


def check_split(
    roles: dict[str, Rows],
    kinds: Mapping[str, OutputKind | None],
    tolerance: float = SUM_TOLERANCE,
) -> Split:
    """Check one split's arrays against each other, and bring rows and columns into one order.

    Raises
    ------
    MeasureError
        Lengths, classes or indices differ, a column is no class, labels are out of range, or a mask
        is no mask.
    """
    roles, notes = _without_headers(roles)
    for role in OUTPUT_ROLES:
        if role in roles:
            roles[role] = replace(roles[role], values=as_matrix(role, roles[role].values))
            option = f"{OPTIONS.get(role, role)}="
            refuse_other_columns(roles[role], role, tolerance, option)
    aligned = align(roles)
    outputs, more = _outputs(roles, kinds, tolerance, aligned)
    classes, names = outputs["teacher"].classes, _class_names(roles)

    def labels_of(role: str) -> tuple[NDArray[np.int64], str | None]:
        labels_N, note = class_labels(roles[role].values, classes, names, roles[role].names)
        return _taken(labels_N, aligned.rows[role]), note

    labels_N, note = labels_of("labels")
    given_N = mask_N = None
    if "given labels" in roles:
        given_N, _ = labels_of("given labels")
        mask_N = given_N != labels_N
        given_N = given_N if mask_N.any() else None
    if "mislabelled" in roles:
        mask_N = _taken(_mask(roles["mislabelled"].values), aligned.rows["mislabelled"])
    notes += [*aligned.notes, *more, *([] if note is None else [note])]
    return Split(
        outputs,
        labels_N,
        given_N,
        mask_N,
        aligned.index,
        _taken(roles["inputs"].values, aligned.rows["inputs"]) if "inputs" in roles else None,
        classes,
        tuple(notes),
    )


def _outputs(
    roles: Mapping[str, Rows],
    kinds: Mapping[str, OutputKind | None],
    tolerance: float,
    aligned: Aligned,
) -> tuple[dict[str, Outputs], list[str]]:
    """Return the outputs of each role in the order of the teacher's rows and columns, and notes."""
    found: dict[str, Outputs] = {}
    notes: list[str] = []
    for role in OUTPUT_ROLES:
        if role not in roles:
            continue
        rows = roles[role]
        order_C, note = column_order(roles["teacher"].names, rows.names, role)
        found[role] = Outputs(
            role, rows.values, kinds[role], tolerance=tolerance, rows_N=aligned.rows[role],
            order_C=order_C,
        )  # fmt: skip
        notes += [*rows.notes, *([] if note is None else [note])]
        classes = found["teacher"].classes
        if found[role].classes != classes:
            raise MeasureError(
                f"the teacher has {classes:,} classes, the {role} {found[role].classes:,}; "
                "an audit needs the same classes in the same order"
            )
    return found, notes


def _class_names(roles: Mapping[str, Rows]) -> tuple[str, ...] | None:
    """Return the names of the teacher's columns, or those of another role with the same order.

    Names that only count the columns give way to those of a role that was matched by position.
    """
    mine = roles["teacher"].names
    if mine is not None and not only_counts(mine):
        return mine
    for names in (roles[role].names for role in OUTPUT_ROLES if role in roles):
        # Columns that are numbered in another order were put in the order of the classes.
        if names is None or (mine is None and are_shuffled_numbers(names)):
            continue
        if set(names) != set(mine or ()):
            return names
    return mine


def _rows(role: str, value: Any) -> Rows:
    if isinstance(value, str | Path):
        raise MeasureError(f"the {role} is the text {str(value)[:60]!r}; read files with read_rows")
    try:
        rows = as_rows(value)
        rows = replace(rows, values=as_array(rows.values))
    except DataError as error:
        raise MeasureError(f"the {role}: {error}") from None
    if rows.values.ndim == 0:
        raise MeasureError(f"a single {rows.values.dtype} is no array of examples; give (N, …)")
    return rows


def _without_headers(roles: Mapping[str, Rows]) -> tuple[dict[str, Rows], list[str]]:
    """Leave out a first row that may be a header where the other arrays have one row less."""
    found, notes = dict(roles), []
    sure = [len(rows.values) for rows in roles.values() if not rows.unclear_header]
    for role, rows in roles.items():
        if not rows.unclear_header:
            continue
        if not sure:
            raise MeasureError(
                f"the first row of the {role} may be a header or the first example; choose with "
                "--header or --no-header (read_rows takes header)"
            )
        if len(rows.values) == sure[0] + 1:
            index_N = None if rows.index is None else rows.index[1:]
            found[role] = replace(rows, values=rows.values[1:], index=index_N)
            notes.append(
                f"the first row of the {role} was read as a header: the other arrays have one row less"
            )
    return found, notes


def _taken(values: NDArray, rows_N: NDArray | None) -> NDArray:
    return values if rows_N is None else values[rows_N]


def _mask(values: NDArray) -> NDArray[np.bool_]:
    mask_N = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if mask_N.ndim != 1:
        raise MeasureError(
            f"mislabelled have shape {values.shape}; give one value per example, shape (N,)"
        )
    if mask_N.dtype.kind not in "biuf" or not np.isin(mask_N, (0, 1)).all():
        raise MeasureError(
            f"mislabelled has type {mask_N.dtype} or values other than 0 and 1; give a mask, "
            "1 where the label is wrong"
        )
    return mask_N.astype(bool)


@dataclass(frozen=True, eq=False)
class Aligned:
    """Indices of the audited rows of each role, in order; None for all rows in their order."""

    index: Index | None
    rows: Mapping[str, NDArray[np.integer] | None]
    notes: tuple[str, ...] = ()


def align(roles: Mapping[str, Rows]) -> Aligned:
    """Match the rows of all roles by index.

    Where all indices are the same, rows stay as they are. Otherwise the rows that all roles have
    are audited, in the order of the first role. Row numbers (0, 1, 2, … or 1, 2, 3, …) do not
    identify examples: they are matched only with an index of exactly the same numbers, and only if
    the index has a name or was given. The default index of pandas may have been made before or
    after a shuffling.

    Raises
    ------
    MeasureError
        Numbers of rows differ without an index, an index repeats or is missing, or no row is in
        all arrays.
    """
    indices = {role: _index(role, rows) for role, rows in roles.items() if rows.index is not None}
    if any(isinstance(one, str) for index in indices.values() for one in index[:1]):
        indices = {role: [str(one) for one in index] for role, index in indices.items()}
    named = {role: index for role, index in indices.items() if not _counts(index)}
    if named:
        first = set(next(iter(named.values())))
        for role in indices.keys() - named.keys():
            if roles[role].numbered and set(indices[role]) == first:
                raise MeasureError(
                    f"the rows of the {role} are numbered in order, the {next(iter(named))}'s are "
                    "not, and the numbers may be of before or after a shuffling; give every array the "
                    "index of the data, or none (--drop, or reset_index(drop=True) of pandas)"
                )
        indices = {
            role: index for role, index in indices.items() if role in named or set(index) == first
        }
    own = next(iter(indices.values()), None)
    if any(other != own for other in indices.values()):
        return _matched(roles, indices, all(role in named for role in indices))
    _same_length(roles)
    return Aligned(own, dict.fromkeys(roles))


def _index(role: str, rows: Rows) -> Index:
    """Return the index as integers where numbers are whole, and as text without spaces."""
    index_N = as_array(rows.index)
    if index_N.shape != (len(rows.values),):
        raise MeasureError(
            f"the {role}'s index has shape {index_N.shape} for {len(rows.values)} rows; "
            "give one index per row"
        )
    index = index_N.tolist()
    if index_N.dtype.kind in "OSU":
        texts = [one.decode() if isinstance(one, bytes) else str(one) for one in index]
        index = [text.strip() for text in texts]
    elif index_N.dtype.kind == "f":
        index = [int(one) if one.is_integer() else one for one in index]
    if len(set(index)) < len(index):
        raise MeasureError(
            f"the {role}'s index repeats; give each row an index of its own, or leave the column out "
            "with --drop"
        )
    return index


def _counts(index: Index) -> bool:
    """Return whether an index only counts the rows, from 0 or 1."""
    if not index:
        return True
    kind, start = type(index[0]), str(index[0])
    if start not in ("0", "1"):
        return False
    return index == [kind(number) for number in range(int(start), int(start) + len(index))]


def _same_length(roles: Mapping[str, Rows]) -> None:
    first, count = next((role, len(rows.values)) for role, rows in roles.items())
    for role, rows in roles.items():
        if len(rows.values) != count:
            raise MeasureError(
                f"the {first} has {count:,} rows, the {role} {len(rows.values):,}; "
                "give the same examples to every role, or an index to each"
            )


def _matched(roles: Mapping[str, Rows], indices: Mapping[str, Index], identify: bool) -> Aligned:
    first = next(iter(indices))
    other = next(role for role in indices if indices[role] != indices[first])
    if not identify:
        if len({len(index) for index in indices.values()}) > 1:
            _same_length(roles)
        if set(indices[first]) != set(indices[other]):
            raise MeasureError(_disagreement(indices, first, other))
    missing = [role for role in roles if role not in indices]
    if missing:
        raise MeasureError(
            f"{_disagreement(indices, first, other)}, or give the {missing[0]} an index too"
        )
    places = {
        role: {one: place for place, one in enumerate(index)} for role, index in indices.items()
    }
    common = [one for one in indices[first] if all(one in known for known in places.values())]
    if not common:
        raise MeasureError(
            f"no row has the same index in all arrays: the {first}'s begins with "
            f"{indices[first][0]}, the {other}'s with {indices[other][0]}; give the same examples"
        )
    notes = ["rows were matched by index"]
    notes += [
        f"{len(index) - len(common):,} of the {role}'s {len(index):,} rows were left out: "
        "their index is not in all arrays"
        for role, index in indices.items()
        if len(index) > len(common)
    ]
    rows = {role: np.array([known[one] for one in common]) for role, known in places.items()}
    return Aligned(common, rows, tuple(notes))


def _disagreement(indices: Mapping[str, Index], first: str, other: str) -> str:
    pairs = enumerate(zip(indices[first], indices[other], strict=False))
    row = next((row for row, (one, two) in pairs if one != two), 0)
    return (
        f"the rows are in another order: at row {row} the {first}'s index is {indices[first][row]}, "
        f"the {other}'s {indices[other][row]}; sort both by index"
    )
