"""Arrays in files: npy, npz, csv, parquet and safetensors, without torch.

npy and safetensors are memory-mapped. npz, csv and parquet have to be decoded and are held in memory.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillens.errors import DataError, nearest
from distillens.paths import user_path

INDEX = "index"
"""The key or column that holds the stable index of each row."""

_SAFETENSORS_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "i1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Rows:
    """An array with a row an example, and the stable index of each row where it has one.

    Parameters
    ----------
    values
        (N, …), memory maps included.
    index
        (N,) integers or strings; arrays that have one must agree on it, row by row.
    """

    values: NDArray
    index: NDArray | None = None


def read_rows(place: str | Path) -> Rows:
    """Read an array, and its index, from ``FILE`` or ``FILE::KEY``.

    Parameters
    ----------
    place
        The file. The key names one array of an npz or safetensors file, or one column of a table.
        Without it there must be only one array, and a table's columns become the columns of an
        (N, C) array, in their order. A key or column named ``index`` is the index.

    Raises
    ------
    DataError
        The file is damaged, of another format, or the key is missing or needed.
    """
    path_text, separator, key = str(place).partition("::")
    path = user_path(path_text)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(
            f"{path} ends in {suffix or 'nothing'!r}; "
            f"arrays are read from {', '.join(sorted(_READERS))}"
        )
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    try:
        return _READERS[suffix](path, key if separator else None)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} cannot be read as {suffix[1:]}: {first or type(error).__name__}; "
            "write the file again"
        ) from None


def native(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as torch takes them: in the machine's byte order, floats of 64 bits at most."""
    if values.dtype.kind == "f" and values.itemsize > 8:
        return values.astype(np.float64)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def read_splits(places: list[str]) -> Rows | dict[str, Rows]:
    """Read one place, or several written ``SPLIT=PLACE``, one a split.

    Raises
    ------
    DataError
        As `read_rows`; or there are several places and one has no split, or two have the same.
    """
    found: dict[str, Rows] = {}
    for place in places:
        split, separator, rest = place.partition("=")
        if not separator or "/" in split or not split:
            if len(places) > 1:
                raise DataError(
                    f"{place!r} names no split; several files are written as SPLIT=FILE, "
                    "such as test=teacher.npy"
                )
            return read_rows(place)
        if split in found:
            raise DataError(f"the split {split!r} was given twice; give one file a split")
        found[split] = read_rows(rest)
    return found


def _npy(path: Path, key: str | None) -> Rows:
    _no_key(path, key)
    return Rows(np.load(path, mmap_mode="r", allow_pickle=False))


def _npz(path: Path, key: str | None) -> Rows:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no npz file; write it with numpy.savez")
    with np.load(path, allow_pickle=False) as arrays:
        chosen = _choose(path, arrays.files, key)
        index = arrays[INDEX] if INDEX in arrays.files and chosen != INDEX else None
        return Rows(arrays[chosen], index)


def _safetensors(path: Path, key: str | None) -> Rows:
    from safetensors import safe_open

    # The library checks the header; reading through it would copy what we map.
    with safe_open(path, framework="numpy") as tensors:
        names = list(tensors.keys())
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    chosen = _choose(path, names, key)

    def mapped(name: str) -> NDArray:
        entry = header[name]
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise DataError(
                f"{path}: {name} has type {entry['dtype']}, which NumPy lacks; write it as F32"
            )
        shape = tuple(entry["shape"])
        kind = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]])
        if 0 in shape:
            return np.empty(shape, dtype=kind)
        start = 8 + length + entry["data_offsets"][0]
        return np.memmap(path, dtype=kind, mode="r", offset=start, shape=shape)

    index = mapped(INDEX) if INDEX in names and chosen != INDEX else None
    return Rows(mapped(chosen), index)


def _csv(path: Path, key: str | None) -> Rows:
    from pyarrow import csv

    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
    headless = bool(first) and all(_is_number(cell) for cell in first.split(","))
    table = csv.read_csv(path, read_options=csv.ReadOptions(autogenerate_column_names=headless))
    return _of_table(path, table, key)


def _parquet(path: Path, key: str | None) -> Rows:
    from pyarrow import parquet

    return _of_table(path, parquet.read_table(path, memory_map=True), key)


def _of_table(path: Path, table: Any, key: str | None) -> Rows:
    names = list(table.column_names)
    index = table.column(INDEX).to_numpy() if INDEX in names and key != INDEX else None
    if key is not None and key not in names:
        raise DataError(f"{path} has no column {key!r}{nearest(key, names)}")
    chosen = [key] if key is not None else [name for name in names if name != INDEX]
    if not chosen:
        raise DataError(f"{path} has no column but {INDEX!r}; add the values")
    columns = [_column(path, name, table.column(name)) for name in chosen]
    if len(columns) == 1:
        return Rows(columns[0], index)
    odd = [name for name, column in zip(chosen, columns, strict=True) if column.ndim != 1]
    if odd or any(column.dtype.kind not in "fiub" for column in columns):
        raise DataError(
            f"{path} has columns of several kinds ({', '.join(chosen[:6])}); "
            f"name one: {path}::{chosen[0]}"
        )
    return Rows(np.stack(columns, axis=1), index)


def _column(path: Path, name: str, column: Any) -> NDArray:
    from pyarrow import compute, types

    if column.null_count:
        raise DataError(f"{path}: column {name!r} has {column.null_count} empty cells; fill them")
    kind = column.type
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        # pyarrow makes these functions as it is imported, unseen by type checkers.
        length_of, flatten = (
            getattr(compute, f"list_{name}") for name in ("value_length", "flatten")
        )
        lengths = set(length_of(column).unique().to_pylist())
        if len(lengths) > 1:
            raise DataError(
                f"{path}: the lists of column {name!r} have {min(lengths)} to {max(lengths)} "
                "values; give each example the same number"
            )
        flat = flatten(column).to_numpy()
        return flat.reshape(len(column), *lengths)
    return column.to_numpy()


def _choose(path: Path, names: list[str], key: str | None) -> str:
    if key is not None:
        if key not in names:
            raise DataError(f"{path} has no array {key!r}{nearest(key, names)}")
        return key
    values = [name for name in names if name != INDEX]
    if len(values) != 1:
        raise DataError(
            f"{path} holds {len(values)} arrays ({', '.join(sorted(values)[:6])}); "
            f"name one: {path}::{sorted(values)[0] if values else 'KEY'}"
        )
    return values[0]


def _no_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise DataError(f"{path} holds one array without a name; leave '::{key}' out")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


_READERS: Mapping[str, Callable[[Path, str | None], Rows]] = {
    ".csv": _csv,
    ".npy": _npy,
    ".npz": _npz,
    ".parquet": _parquet,
    ".safetensors": _safetensors,
}
