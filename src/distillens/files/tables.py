"""Arrow tables as arrays: from csv and parquet files, and from the tables of other libraries."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillens.errors import DataError, nearest
from distillens.files.csv_tables import INDEX_NAMES, read_csv_table

_NAMES_OF_NAMELESS = ("", "Unnamed: 0", "__index_level_0__")
"""Pandas' names of the column of an unnamed index: in csv, after reading csv, in parquet."""


@dataclass(frozen=True)
class Columns:
    """Selection of the columns of a table or array: the index, and those to ignore or to keep.

    Columns without a name are called by their position: ``f0`` is the first.

    Parameters
    ----------
    index
        The column to use as the index; None uses a column named ``id`` or ``index``, or one
        without a name, if its values are unique.
    drop
        Columns to leave out.
    keep
        Columns that are values although they look like row numbers or predicted classes.
    header
        Whether a first row of integers in a csv file is a header; None to detect it.
    strict
        Whether every column that is named above has to exist.
    """

    index: str | None = None
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    header: bool | None = None
    strict: bool = True

    def check(self, where: str, names: Sequence[str]) -> None:
        """Raise DataError if a column named here does not exist, and `strict` is set."""
        named = [*([] if self.index is None else [self.index]), *self.drop, *self.keep]
        for name in named:
            if self.strict and name not in names:
                raise DataError(f"{where} has no column {name!r}{nearest(name, names)}")


@dataclass(frozen=True, eq=False)
class Rows:
    """An array with one row per example, and the stable index of each row if it has one.

    Parameters
    ----------
    values
        (N, …), memory maps included.
    index
        (N,) integers or strings. Arrays that have one are aligned by it.
    names
        Name of each column of ``values`` (N, C), for outputs the classes; None if unknown.
    keep
        Columns that are values although they look like row numbers or predicted classes. Columns
        without a name are called by their position: ``f0`` is the first.
    notes
        Notes on the reading of the array.
    unclear_header
        True if the first row consists of integers that may be a header. It is the first row of
        ``values``, and left out where the other arrays of an audit have one row less.
    """

    values: NDArray
    index: NDArray | None = None
    names: tuple[str, ...] | None = None
    keep: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unclear_header: bool = False
    columns: tuple[str, ...] = ()
    """All columns of the file, with those that are the index or were left out."""
    numbered: bool = False
    """Whether the index is the default one of pandas, which numbers the rows."""


def read_csv(path: Path, key: str | None, columns: Columns) -> Rows:
    """Read a csv file; see `array_of_table`."""
    table, headless, unclear = read_csv_table(path, columns.header)
    found = array_of_table(str(path), table, key, columns, headless=headless)
    return replace(found, unclear_header=unclear)


def read_parquet(path: Path, key: str | None, columns: Columns) -> Rows:
    """Read a parquet file; see `array_of_table`."""
    from pyarrow import parquet

    table = parquet.read_table(path, memory_map=True)
    return array_of_table(str(path), table, key, columns)


def array_of_table(
    where: str, table: Any, key: str | None, columns: Columns, *, headless: bool = False
) -> Rows:
    """Return one column of an Arrow table, or all of them as an (N, C) array, and the index.

    Parameters
    ----------
    where
        The table's name in messages.
    table
        A ``pyarrow.Table``.
    key
        The column to return; None for all but the index.
    columns
        Columns that are the index, ignored or kept.
    headless
        True if the names of the columns only count them.

    Raises
    ------
    DataError
        A column is missing, text stands between numbers, or cells are empty.
    """
    written = [name.strip() for name in table.column_names]
    places = {name or f"f{i}": i for i, name in enumerate(written)}
    if len(places) < len(written):
        repeated = next(name for name in written if written.count(name) > 1)
        raise DataError(f"{where} has several columns named {repeated!r}; rename them")
    columns.check(where, list(places))

    def read(name: str) -> NDArray:
        return _flat(where, name, table.column(places[name]))

    notes, numbered = (), False
    index = columns.index if columns.index in places and columns.index != key else None
    if index is None and not headless:
        index = _found_index(where, table, written, key, columns)
        if index is not None:
            notes = (f"column {index!r} of {where} was used as the index of the rows",)
            numbered = written[places[index]] in _NAMES_OF_NAMELESS
    if key is not None and key not in places:
        raise DataError(f"{where} has no column {key!r}{nearest(key, places)}")
    chosen = [name for name in places if name != index and name not in columns.drop]
    if not chosen and len(places) == 1 and not columns.strict:
        # A file of one column is its values.
        chosen, index = list(places), None
    chosen = chosen if key is None else [key]
    if not chosen:
        raise DataError(f"{where} has no column besides {', '.join(places)}; add the values")
    index_N = None if index is None else _as_index(where, index, read(index))
    if len(chosen) == 1:
        values, shown = read(chosen[0]), None
    else:
        values = _stacked(where, chosen, [read(name) for name in chosen])
        shown = None if headless else tuple(chosen)
    return Rows(values, index_N, shown, notes=notes, columns=tuple(places), numbered=numbered)


def _stacked(where: str, names: Sequence[str], arrays: Sequence[NDArray]) -> NDArray:
    """Return columns of numbers as (N, C)."""
    for name, array in zip(names, arrays, strict=True):
        if array.ndim != 1 or array.dtype.kind not in "fiub":
            kind = "lists" if array.ndim != 1 else "text"
            raise DataError(
                f"{where} has columns of several kinds: {name!r} holds {kind}; choose one column "
                f"with {where}::{name}, use it as the index with --index {shlex.quote(name)}, or leave "
                f"it out with --drop {shlex.quote(name)}"
            )
    kind = np.result_type(*{array.dtype for array in arrays})
    values_NC = np.empty((len(arrays[0]), len(arrays)), dtype=kind)
    for place, array in enumerate(arrays):
        values_NC[:, place] = array
    return values_NC


def table_of(value: Any) -> Any | None:
    """Return the Arrow table of a table or column of pandas, polars, PyArrow or others, or None."""
    import pyarrow as pa

    if type(value).__module__.partition(".")[0] == "pandas":
        frame = value.to_frame("values") if hasattr(value, "to_frame") else value
        if hasattr(frame, "columns"):
            return pa.Table.from_pandas(frame.rename(columns=str), preserve_index=False)
    if isinstance(value, pa.Array):
        return pa.table({"values": value})
    if hasattr(value, "__arrow_c_stream__"):
        whole = hasattr(value, "columns")
        return pa.table(value if whole else {"values": pa.chunked_array(value)})
    return None


def split_matrix(where: str, values: NDArray, columns: Columns) -> Rows:
    """Take the index and the columns to leave out from an (N, C) array without names."""
    if values.ndim != 2 or values.shape[1] < 2:
        if columns.strict:
            columns.check(where, [])
        return Rows(values, None, None)
    names = [f"f{i}" for i in range(values.shape[1])]
    columns.check(where, names)
    index_N = None
    if columns.index in names:
        index_N = _as_index(where, columns.index, values[:, names.index(columns.index)])
    left = [i for i, name in enumerate(names) if name != columns.index and name not in columns.drop]
    if not left:
        raise DataError(f"{where} has no column besides {', '.join(names)}; add the values")
    if len(left) < len(names):
        run = left[-1] - left[0] + 1 == len(left)
        # A slice of a memory map stays one.
        values = values[:, left[0] : left[-1] + 1] if run else values[:, left]
    return Rows(values, index_N, None, columns=tuple(names))


def _found_index(
    where: str, table: Any, written: Sequence[str], key: str | None, columns: Columns
) -> str | None:
    """Return the name of the column that serves as the index although none was named."""
    found = []
    for place, name in enumerate(written):
        called = name or f"f{place}"
        known = name.casefold() in INDEX_NAMES or name in _NAMES_OF_NAMELESS
        spare = called not in (key, *columns.drop, *columns.keep)
        if known and spare and len(written) > 1 and _identifies(table.column(place)):
            found.append(called)
    if len(found) > 1:
        raise DataError(
            f"{where} has several columns that may be the index: {', '.join(map(repr, found))}; "
            f"choose one with --index {shlex.quote(found[-1])} and leave the others out, for example "
            f"with --drop {shlex.quote(found[0])}"
        )
    return found[0] if found else None


def _identifies(column: Any) -> bool:
    """Return whether a column holds unique integers or texts."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    named = types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind)
    whole = types.is_floating(kind) and _are_whole(column.to_numpy()).all()
    if not (whole or named or types.is_integer(kind)):
        return False
    return column.null_count == 0 and len(column.unique()) == len(column)


def _are_whole(values: NDArray) -> NDArray:
    return np.isfinite(values) & (values == np.rint(values))


def _as_index(where: str, name: str, index_N: NDArray) -> NDArray:
    if index_N.dtype.kind == "f":
        whole = _are_whole(index_N) & (np.abs(index_N) < 2**53)
        if not whole.all():
            raise DataError(
                f"column {name!r} of {where} holds {index_N[np.argmin(whole)]} and cannot be the "
                "index, which holds integers or texts; a column of one file alone is named as "
                f"ROLE={name}, for example teacher={name}"
            )
        return index_N.astype(np.int64)
    return index_N


def _flat(where: str, name: str, column: Any, inside: str = "") -> NDArray:
    """Return a column as an array; lists become further axes."""
    import pyarrow as pa
    from pyarrow import compute, types

    # pyarrow makes its functions as it is imported, unseen by type checkers.
    call = partial(getattr, compute)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if column.null_count:
        row = column.is_valid().to_pylist().index(False)
        raise DataError(
            f"{where}: column {name!r} has {column.null_count} empty cells{inside}, the first at row "
            f"{row}; fill them"
        )
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    elif types.is_run_end_encoded(column.type):
        column = call("run_end_decode")(column)
    elif types.is_decimal(column.type):
        column = column.cast("float64")
    elif types.is_temporal(column.type):
        column = column.cast("string")
    if not types.is_nested(column.type):
        return column.to_numpy(zero_copy_only=False)
    if not hasattr(column, "flatten") or types.is_struct(column.type):
        raise DataError(
            f"{where}: column {name!r} has type {column.type}; give numbers, lists or text"
        )
    lengths = set(call("list_value_length")(column).unique().to_pylist())
    if len(lengths) > 1:
        raise DataError(
            f"{where}: the lists of column {name!r} have {min(lengths)} to {max(lengths)} "
            "values; give each example the same number"
        )
    inner = _flat(where, name, column.flatten(), " in its lists")
    return inner.reshape(len(column), *(lengths or {0}), *inner.shape[1:])
