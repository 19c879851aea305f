"""Match the rows of several arrays by the index of their examples. Shapes: N examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.errors import MeasureError
from distillens.files.array_likes import as_array
from distillens.files.arrays import Rows


@dataclass(frozen=True, eq=False)
class Aligned:
    """Indices of the audited rows of each role, in order; None for all rows in their order."""

    index_N: NDArray | None
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
    indices = {
        role: _checked_index(role, rows) for role, rows in roles.items() if rows.index is not None
    }
    if any(index_N.dtype.kind == "U" for index_N in indices.values()):
        indices = {role: index_N.astype(str) for role, index_N in indices.items()}
    named = {role: index_N for role, index_N in indices.items() if not _counts(index_N)}
    if named:
        first = set(next(iter(named.values())).tolist())
        for role in indices.keys() - named.keys():
            if roles[role].numbered and set(indices[role].tolist()) == first:
                raise MeasureError(
                    f"the rows of the {role} are numbered in order, the {next(iter(named))}'s are "
                    "not, and the numbers may be of before or after a shuffling; give every array the "
                    "index of the data, or none (--drop, or reset_index(drop=True) of pandas)"
                )
        indices = {
            role: index_N
            for role, index_N in indices.items()
            if role in named or set(index_N.tolist()) == first
        }
    first_N = next(iter(indices.values()), None)
    if not all(np.array_equal(first_N, other) for other in indices.values()):
        return _matched(roles, indices, all(role in named for role in indices))
    _same_length(roles)
    return Aligned(first_N, dict.fromkeys(roles))


def _checked_index(role: str, rows: Rows) -> NDArray:
    index_N = as_array(rows.index)
    if index_N.shape != (len(rows.values),):
        raise MeasureError(
            f"the {role}'s index has shape {index_N.shape} for {len(rows.values)} rows; "
            "give one index per row"
        )
    if index_N.dtype.kind == "O":
        texts = [one.decode() if isinstance(one, bytes) else str(one) for one in index_N.tolist()]
        index_N = np.array(texts) if texts else index_N.astype(str)
    elif index_N.dtype.kind == "S":
        index_N = np.char.decode(index_N, "utf-8")
    index_N = _comparable(index_N)
    if len(np.unique(index_N)) < len(index_N):
        raise MeasureError(
            f"the {role}'s index repeats; give each row an index of its own, or leave the column out "
            "with --drop"
        )
    return index_N


def _comparable(index_N: NDArray) -> NDArray:
    """Return whole numbers as int64, or as text where they are too large, and text without spaces.

    NumPy compares unsigned integers of 64 bits with signed ones, and with floats, as float64, in
    which large numbers are equal to their neighbours.
    """
    kind = index_N.dtype.kind
    if kind == "U":
        return np.char.strip(index_N)
    if kind == "u":
        large = index_N.size > 0 and index_N.max() > np.iinfo(np.int64).max
        return index_N.astype(str if large else np.int64)
    if kind == "f" and (np.abs(index_N) < 2**53).all() and (index_N == np.rint(index_N)).all():
        return index_N.astype(np.int64)
    return index_N


def _counts(index_N: NDArray) -> bool:
    """Return whether an index only counts the rows, from 0 or 1."""
    if not len(index_N):
        return True
    start = str(index_N[0])
    if start not in ("0", "1"):
        return False
    counted = np.arange(len(index_N)) + int(start)
    return bool((index_N == counted.astype(index_N.dtype)).all())


def _same_length(roles: Mapping[str, Rows]) -> None:
    first, count = next((role, len(rows.values)) for role, rows in roles.items())
    for role, rows in roles.items():
        if len(rows.values) != count:
            raise MeasureError(
                f"the {first} has {count:,} rows, the {role} {len(rows.values):,}; "
                "give the same examples to every role, or an index to each"
            )


def _matched(roles: Mapping[str, Rows], indices: Mapping[str, NDArray], identify: bool) -> Aligned:
    first = next(iter(indices))
    other = next(role for role in indices if not np.array_equal(indices[role], indices[first]))
    if not identify:
        if len({len(index_N) for index_N in indices.values()}) > 1:
            _same_length(roles)
        if set(indices[first].tolist()) != set(indices[other].tolist()):
            raise MeasureError(_disagreement(indices, first, other))
    missing = [role for role in roles if role not in indices]
    if missing:
        raise MeasureError(
            f"{_disagreement(indices, first, other)}, or give the {missing[0]} an index too"
        )
    common_N = indices[first]
    for index_N in indices.values():
        common_N = common_N[np.isin(common_N, index_N)]
    if not len(common_N):
        raise MeasureError(
            f"no row has the same index in all arrays: the {first}'s begins with "
            f"{indices[first][0]}, the {other}'s with {indices[other][0]}; give the same examples"
        )
    rows: dict[str, NDArray[np.integer] | None] = {}
    for role, index_N in indices.items():
        order = np.argsort(index_N, kind="stable")
        rows[role] = order[np.searchsorted(index_N, common_N, sorter=order)]
    notes = ["rows were matched by index"]
    notes += [
        f"{len(index_N) - len(common_N):,} of the {role}'s {len(index_N):,} rows were left out: "
        "their index is not in all arrays"
        for role, index_N in indices.items()
        if len(index_N) > len(common_N)
    ]
    return Aligned(common_N, rows, tuple(notes))


def _disagreement(indices: Mapping[str, NDArray], first: str, other: str) -> str:
    one_N, two_N = indices[first], indices[other]
    size = min(len(one_N), len(two_N))
    row = int(np.argmax(one_N[:size] != two_N[:size]))
    return (
        f"the rows are in another order: at row {row} the {first}'s index is {one_N[row]}, "
        f"the {other}'s {two_N[row]}; sort both by index"
    )
