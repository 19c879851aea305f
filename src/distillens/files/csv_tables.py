"""Csv files as Arrow tables: encoding, delimiter, decimal sign and header are found out."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
from collections.abc import Sequence
from itertools import dropwhile, pairwise
from pathlib import Path
from typing import Any

from distillens.errors import DataError

EMPTY_CELLS = (
    "", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NULL", "null", "None", "#DIV/0!", "#VALUE!",
)  # fmt: skip
"""Cells that hold no value in a column of numbers."""

INDEX_NAMES = ("id", "index")
"""Names, in lower case, of a column that serves as the index if its values are unique."""

_SAMPLE_BYTES = 2**20
_SAMPLE_ROWS = 1000
_FEWEST_ROWS = 20
_DELIMITERS = ("\t", ";", ",", "|")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.I)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_STATED_DELIMITER = re.compile(r"\"?sep=(.)\"?", re.I)
"""Delimiter statement of Excel in the first line."""


def read_csv_table(path: Path, header: bool | None = None) -> tuple[Any, bool, bool]:
    """Read a csv file; how it is written is found out from its first megabyte.

    Parameters
    ----------
    path
        The file, which may be compressed with gzip (``.gz``).
    header
        Whether a first row of integers is a header; None to detect it.

    Returns
    -------
    The Arrow table, in which "" is the name of a column without one; whether the file has no header, so
    that the columns are called ``f0``, ``f1``, …; and whether the first row consists of integers that
    may be a header or the first example. It is then read as the first example.

    Raises
    ------
    DataError
        The file is empty, or is not text in UTF-8 or UTF-16.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    encoding, lines = _sample(path)
    skip, delimiter = _start(path, lines)
    shown = [line for line in lines[skip:] if line.strip()][:_SAMPLE_ROWS]
    if delimiter == " ":
        # Columns may be aligned with several spaces.
        shown = [" ".join(line.split()) for line in shown]
    rows = csv.reader(shown, delimiter=delimiter)
    heads, *body = [[cell.strip() for cell in row] for row in rows]
    width = max((len(row) for row in body), default=len(heads))
    if body and len(heads) < width - 1:
        raise DataError(
            f"{path} has {len(heads)} cells in its first line, {shown[0][:40]!r}, and {width} below; "
            "delete the line or begin it with #"
        )
    values = [cell for row in body or [heads] for cell in row]
    # Cells with a comma were quoted or stand between other delimiters.
    points = any("." in cell and _is_number(cell, ".") for cell in values)
    decimal = "," if not points and any(map(_DECIMAL_COMMA.fullmatch, values)) else "."
    header = _has_header(heads, body, decimal, header)
    above = lines[skip - 1] if skip else ""
    names = _names(heads, body, width) if header else None
    if header is False and above.startswith("#"):
        # numpy.savetxt(header=...) writes the names of the columns as a comment.
        (named,) = csv.reader([above.lstrip("# ")], delimiter=delimiter)
        if len(named) == width > 1 and not all(_is_number(cell, decimal) for cell in named):
            names = [cell.strip() for cell in named]
    columns = [[row[c] for row in body if c < len(row)] for c in range(width)]
    # The names are set afterwards: Arrow needs them to be different.
    numbered = [f"f{i}" for i in range(width)]
    table = arrow.read_csv(
        _stream(path, encoding, delimiter),
        read_options=arrow.ReadOptions(
            encoding="utf8" if encoding == "utf-8" else encoding,
            skip_rows=skip + bool(header),
            column_names=numbered,
        ),
        parse_options=arrow.ParseOptions(
            delimiter=delimiter,
            newlines_in_values=any('"' in line for line in lines),
            invalid_row_handler=lambda row: (
                "skip" if (row.text or "").lstrip().startswith("#") else "error"
            ),
        ),
        convert_options=arrow.ConvertOptions(
            decimal_point=decimal,
            null_values=list(EMPTY_CELLS),
            # Arrow reads integers beyond 64 bits as float64, in which neighbours are equal.
            column_types={
                name: pa.string()
                for name, cells in zip(numbered, columns, strict=True)
                if all(map(str.isdecimal, cells)) and any(len(cell) > 18 for cell in cells)
            },
        ),
    )
    table = _without_empty_end(table.rename_columns(names or numbered), named=names is not None)
    if len(table) == 0:
        raise DataError(f"{path} has a header and no rows; write the file again")
    return table, names is None, header is None


def _names(heads: list[str], body: Sequence[Sequence[str]], width: int) -> list[str]:
    missing = [""] * (width - len(heads))
    # R's write.table gives the column of row names no cell in the header; other programs end every row
    # but the header with a delimiter.
    return [*heads, *missing] if all(not row[-1] for row in body) else [*missing, *heads]


def _without_empty_end(table: Any, *, named: bool) -> Any:
    """Leave out rows of empty cells at the end, and a last column if every row ends with a delimiter."""
    # Spreadsheets write such rows.
    end = len(table)
    while end and not any(column[end - 1].is_valid for column in table.columns):
        end -= 1
    table = table.slice(0, end)
    last = table.num_columns - 1
    empty = last > 0 and table.column(last).null_count == end > 0
    return (
        table.remove_column(last) if empty and not (named and table.column_names[last]) else table
    )


def _stream(path: Path, encoding: str, delimiter: str) -> Any:
    """Open a file; columns that are aligned with spaces then have one space between them."""
    import pyarrow as pa

    stream = pa.input_stream(path, compression="detect")
    if delimiter != " ":
        return stream
    lines = (" ".join(line.split()) for line in stream.read().decode(encoding).splitlines())
    return pa.BufferReader("\n".join(lines).encode(encoding))


def _sample(path: Path) -> tuple[str, list[str]]:
    """Return the encoding, and the lines in the first megabyte."""
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        raw = file.read(_SAMPLE_BYTES)
    encoding = "utf-8"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in raw[:2]:
        encoding = "utf-16-le" if raw[1:2] == b"\0" else "utf-16-be"
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)()
    try:
        text = decoder.decode(raw)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not text in UTF-8 or UTF-16 (byte {error.start}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise DataError(f"{path} holds zero bytes, so it is not a csv file; write it again")
    lines = re.split(r"\r\n|\r|\n", text)
    return encoding, lines[:-1] if len(raw) == _SAMPLE_BYTES and len(lines) > 1 else lines


def _start(path: Path, lines: Sequence[str]) -> tuple[int, str]:
    """Return the number of lines above the first row, and the delimiter of the rows."""
    given = [place for place, line in enumerate(lines) if line.strip()]
    rows = list(dropwhile(lambda place: lines[place].startswith("#"), given))
    if not rows:
        raise DataError(f"{path} has no rows; write the file again")
    preferred = "\t" if ".tsv" in path.suffixes else None
    if len(rows) > 1 and (stated := _STATED_DELIMITER.fullmatch(lines[rows[0]].strip())):
        preferred, rows = stated[1], rows[1:]
    return rows[0], _delimiter([lines[place] for place in rows[:_SAMPLE_ROWS]], preferred)


def _delimiter(lines: Sequence[str], preferred: str | None) -> str:
    """Return the delimiter that gives all rows the same number of cells, at least two."""
    for delimiter in _DELIMITERS if preferred is None else (preferred,):
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
        body = set(widths[1:]) or {widths[0]}
        # A header may lack the name of the first column, or a delimiter at the end of the rows.
        if len(body) == 1 and max(body) > 1 and abs(widths[0] - max(body)) <= 1:
            return delimiter
    rows = [line.split() for line in lines]
    numeric = all(_is_number(cell, ".") for row in rows[1:] or rows for cell in row)
    if numeric and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
        return " "
    return ","


def _has_header(
    first: Sequence[str], body: Sequence[Sequence[str]], decimal: str, stated: bool | None
) -> bool | None:
    """Return whether the first row is a header; None where it may be or not."""
    if not body:
        return bool(stated) or not any(_is_number(cell, decimal) for cell in first)
    if len(first) == max(map(len, body)) - 1:
        return True
    columns = [[row[c] for row in body if c < len(row)] for c in range(len(first))]
    known = [[cell for cell in column if cell not in EMPTY_CELLS] for column in columns]
    numeric = [
        c
        for c, cells in enumerate(known)
        if cells and all(_is_number(cell, decimal) for cell in cells)
    ]
    if not numeric:
        # A class name that occurs again below is a value.
        again = any(cell in column for cell, column in zip(first, columns, strict=True) if cell)
        return stated if stated is not None else not again
    heads = [first[c] for c in numeric if first[c] not in EMPTY_CELLS]
    if not all(_is_number(cell, decimal) for cell in heads):
        return True
    if not all(map(str.isdecimal, heads)) or len(set(heads)) < len(heads):
        # Only distinct integers may be class ids.
        return False
    nameless = any(not first[c] and all(columns[c]) for c in numeric)
    if stated is None and (nameless or any(cell.casefold() in INDEX_NAMES for cell in first)):
        # pandas leaves the name of its index empty.
        stated = True
    values = [cell for c in numeric for cell in known[c]]
    return stated if stated is not None else _are_class_ids(heads, values, len(body), decimal)


def _are_class_ids(
    heads: Sequence[str], values: Sequence[str], rows: int, decimal: str
) -> bool | None:
    """Return whether distinct integers above ``rows`` rows of numbers are a header; None if unclear."""
    in_order = heads == [str(i) for i in range(len(heads))]
    if len(heads) == 1 and not in_order:
        # One column of labels or single outputs: its default name in pandas is 0.
        return False
    if {*heads} == {"0", "1"} and (not in_order or rows < _FEWEST_ROWS):
        # A saturated prediction of two classes may be written in the same way.
        return None
    if not any(cell.lstrip("+-").isdecimal() for cell in values):
        return True
    whole = all(float(cell.replace(decimal, ".")).is_integer() for cell in values)
    increasing = all(int(a) < int(b) for a, b in pairwise(heads))
    return False if whole and not in_order and not (increasing and len(heads) > 2) else None


def _is_number(cell: str, decimal: str) -> bool:
    return _NUMBER.fullmatch(cell.replace(decimal, ".")) is not None
