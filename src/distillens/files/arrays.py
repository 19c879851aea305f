"""Arrays in files: npy, npz, csv, parquet and safetensors, without torch.

npy and safetensors are memory-mapped. npz, csv and parquet have to be decoded and are held in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillens.errors import DataError, nearest, one_line
from distillens.files.array_likes import as_array
from distillens.files.csv_tables import INDEX_NAMES
from distillens.files.npz import load_npz
from distillens.files.paths import user_path
from distillens.files.tables import (
    Columns,
    Rows,
    array_of_table,
    read_csv,
    read_parquet,
    split_matrix,
    table_of,
)

_SAFETENSORS_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?",
}  # fmt: skip


def read_rows(
    place: str | Path,
    *,
    index: str | None = None,
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
    header: bool | None = None,
) -> Rows:
    """Read an array, and its index, from ``FILE`` or ``FILE::KEY``.

    Parameters
    ----------
    place
        The file: npy, npz, csv or tsv (also with ``.gz``), parquet or safetensors. The key names one
        array of an npz or safetensors file, or one column of a table. Without it there must be only
        one array, and the columns of a table become the columns of an (N, C) array, in their order.
    index
        The column, or array, to use as the index of the rows. By default it is one named ``id`` or
        ``index``, or a column without a name, if its values are unique.
    drop
        Columns to leave out.
    keep
        Columns that are values although they look like row numbers or predicted classes, which an
        audit refuses otherwise.
    header
        Whether a first row of integers in a csv file is a header. By default it is one where the
        numbers below have decimals; see `Rows.unclear_header` for where that cannot be told.

    Returns
    -------
    Rows
        In an array without names, and in a csv file without a header, columns are called by their
        position: ``f0`` is the first.

    Raises
    ------
    DataError
        The file is damaged, of another format, or the key is missing or needed; a column named here
        does not exist; columns hold text or empty cells.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "logits.csv"
    >>> _ = path.write_text("id,cat,dog\\n7,0.5,1.5\\n9,2.5,0.5\\n")
    >>> rows = read_rows(path)
    >>> rows.names, rows.index.tolist(), rows.values.tolist()
    (('cat', 'dog'), [7, 9], [[0.5, 1.5], [2.5, 0.5]])
    """
    return read_place(place, Columns(index, tuple(drop), tuple(keep), header))


def read_place(place: str | Path, columns: Columns) -> Rows:
    """Read an array as `read_rows` does."""
    path_text, separator, key = str(place).partition("::")
    path = user_path(path_text)
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower() + suffix
    if suffix not in _READERS:
        raise DataError(
            f"{path} ends in {suffix or 'nothing'!r}; "
            f"arrays are read from {', '.join(sorted(_READERS))}"
        )
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    try:
        found = _READERS[suffix](path, key if separator else None, columns)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as {suffix[1:]}: {one_line(error)[:200]}; write the file again"
        ) from None
    return replace(found, keep=columns.keep)


def as_rows(value: Any) -> Rows:
    """Return an array, tensor or table of any library as `Rows`.

    The index of a pandas object serves as the index if it is unique. See `as_array` for what else
    is taken.

    Raises
    ------
    DataError
        The value is no array, or a column of a table holds text or empty cells.
    """
    if isinstance(value, Rows):
        return value
    table = table_of(value)
    if table is None:
        return Rows(as_array(value))
    found = array_of_table(f"the {type(value).__name__}", table, None, Columns())
    index_N, numbered = found.index, found.numbered
    own = getattr(value, "index", None)
    if index_N is None and getattr(own, "is_unique", False) and getattr(own, "nlevels", 0) == 1:
        index_N, numbered = np.asarray(own), type(own).__name__ == "RangeIndex"
    return replace(found, index=index_N, numbered=numbered, columns=())


def native(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as torch takes them: in the machine's byte order, floats of 64 bits at most."""
    if values.dtype.kind == "f" and values.itemsize > 8:
        return values.astype(np.float64)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def read_splits(places: Sequence[str], columns: Columns | None = None) -> Rows | dict[str, Rows]:
    """Read one place, or several written ``SPLIT=PLACE``, one per split.

    Raises
    ------
    DataError
        As `read_rows`; or there are several places and one has no split, or two have the same.
    """
    found: dict[str, Rows] = {}
    columns = columns or Columns()
    for place in places:
        split, separator, rest = place.partition("=")
        # A file may have "=" in its name.
        whole = user_path(place.partition("::")[0]).is_file()
        if not separator or "/" in split or not split or whole:
            if len(places) > 1:
                raise DataError(
                    f"{place!r} names no split; several files are written as SPLIT=FILE, "
                    "such as test=teacher.npy"
                )
            return read_place(place, columns)
        if split in found:
            raise DataError(f"the split {split!r} was given twice; give one file per split")
        found[split] = read_place(rest, columns)
    return found


def _npy(path: Path, key: str | None, columns: Columns) -> Rows:
    if key is not None:
        raise DataError(f"{path} holds one array without a name; leave '::{key}' out")
    return split_matrix(str(path), np.load(path, mmap_mode="r", allow_pickle=False), columns)


def _npz(path: Path, key: str | None, columns: Columns) -> Rows:
    arrays = load_npz(path)
    return _of_arrays(path, list(arrays), arrays.__getitem__, key, columns)


def _safetensors(path: Path, key: str | None, columns: Columns) -> Rows:
    from safetensors import safe_open

    # The library checks the header; reading through it would copy what we map.
    with safe_open(path, framework="numpy") as tensors:
        names = list(tensors.keys())
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))

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
        found = np.memmap(path, dtype=kind, mode="r", offset=start, shape=shape)
        if entry["dtype"] == "BF16":
            # bfloat16 is the upper half of float32.
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found

    return _of_arrays(path, names, mapped, key, columns)


def _of_arrays(
    path: Path,
    names: Sequence[str],
    read: Callable[[str], NDArray],
    key: str | None,
    columns: Columns,
) -> Rows:
    """Return one of a file's arrays; arrays named as an index are the index of the rows."""
    where = str(path)
    if key is not None and key not in names:
        raise DataError(f"{path} has no array {key!r}{nearest(key, names)}")
    index = columns.index if columns.index in names else None
    if index is None and len(names) > 1:
        index = next((name for name in names if name.casefold() in INDEX_NAMES), None)
    values = [name for name in names if name != index and name not in columns.drop]
    chosen = key if key is not None else values[0] if len(values) == 1 else None
    if chosen is None:
        raise DataError(
            f"{path} holds {len(values)} arrays ({', '.join(sorted(values)[:6])}); "
            f"name one: {path}::{sorted(values)[0] if values else 'KEY'}"
        )
    # Names of arrays are taken; those left may be columns of the array.
    drop = tuple(name for name in columns.drop if name not in names)
    own = None if index == columns.index else columns.index
    found = split_matrix(where, read(chosen), replace(columns, index=own, drop=drop))
    if index is not None and index != chosen:
        found = replace(found, index=read(index))
    return replace(found, columns=(*names, *found.columns))


_READERS: Mapping[str, Callable[[Path, str | None, Columns], Rows]] = {
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".npy": _npy,
    ".npz": _npz,
    ".parquet": read_parquet,
    ".safetensors": _safetensors,
    ".tsv": read_csv,
    ".tsv.gz": read_csv,
}
