"""The layout of a csv file: encoding, delimiter, decimal sign, and whether it has a header."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

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
_INTEGER = re.compile(r"\d+")
_STATED_DELIMITER = re.compile(r"\"?sep=(.)\"?", re.I)
"""Delimiter statement of Excel in the first line."""


@dataclass(frozen=True)
class CsvLayout:
    """The layout of a csv file.

    Parameters
    ----------
    encoding, delimiter, decimal
        For example "utf-8", "," and ".".
    quotes
        True if the sample has quoted cells, which may contain line breaks.
    skip
        Number of lines before the first example.
    names
        One name a column as written, "" where a column has none; or None for a file without a
        header.
    columns
        Number of columns.
    unclear
        True if the first row consists of integers that may be a header or the first example.
        It is then read as the first example.
    """

    encoding: str
    delimiter: str
    decimal: str
    quotes: bool
    skip: int
    names: tuple[str, ...] | None
    columns: int
    unclear: bool = False


def csv_layout(path: Path, header: bool | None = None) -> CsvLayout:
    """Find out how a csv file is written from its first megabyte.

    Parameters
    ----------
    path
        The file, which may be compressed with gzip (``.gz``).
    header
        Whether a first row of integers is a header; None to detect it.

    Raises
    ------
    DataError
        The file is empty, or is not text in UTF-8 or UTF-16.
    """
    encoding, text, complete = _sample(path)
    lines = re.split(r"\r\n|\r|\n", text)
    if not complete and len(lines) > 1:
        lines.pop()
    comments, first = [], 0
    while first < len(lines) and (not lines[first].strip() or lines[first].startswith("#")):
        if lines[first].strip():
            comments.append(lines[first])
        first += 1
    shown = [line for line in lines[first:] if line.strip()]
    if not shown:
        raise DataError(f"{path} has no rows; write the file again")
    preferred = "\t" if ".tsv" in path.suffixes else None
    stated = _STATED_DELIMITER.fullmatch(shown[0].strip())
    if stated and len(shown) > 1:
        preferred, shown = stated[1], shown[1:]
        first = lines.index(shown[0], first + 1)
    delimiter = _delimiter(shown[:_SAMPLE_ROWS], preferred)
    if delimiter == " ":
        # Columns may be aligned with several spaces.
        shown = [" ".join(line.split()) for line in shown]
    cells = [_stripped(row) for row in csv.reader(shown[:_SAMPLE_ROWS], delimiter=delimiter)]
    body = cells[1:]
    width = max((len(row) for row in body), default=len(cells[0]))
    if body and len(cells[0]) < width - 1:
        raise DataError(
            f"{path} has {len(cells[0])} cells in its first line, {shown[0][:40]!r}, and {width} below; "
            "delete the line or begin it with #"
        )
    decimal = _decimal(body or cells)
    found = _has_header(cells[0], body, decimal, header)
    names = _names(cells[0], body, width) if found else None
    if found is False and comments:
        # numpy.savetxt(header=...) writes the names of the columns as a comment.
        (named,) = csv.reader([comments[-1].lstrip("# ")], delimiter=delimiter)
        if len(named) == width > 1 and not all(_is_number(cell, decimal) for cell in named):
            names = tuple(_stripped(named))
    return CsvLayout(
        encoding, delimiter, decimal, '"' in text, first + bool(found), names, width, found is None
    )


def _sample(path: Path) -> tuple[str, str, bool]:
    """Return the encoding, the first megabyte as text, and whether that is the whole file."""
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
    return encoding, text, len(raw) < _SAMPLE_BYTES


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


def _stripped(row: Sequence[str]) -> list[str]:
    return [cell.strip() for cell in row]


def _decimal(body: Sequence[Sequence[str]]) -> str:
    # Cells with a comma were quoted or stand between other delimiters.
    commas = any(_DECIMAL_COMMA.fullmatch(cell) for row in body for cell in row)
    points = any("." in cell and _is_number(cell, ".") for row in body for cell in row)
    return "," if commas and not points else "."


def _names(first: Sequence[str], body: Sequence[Sequence[str]], width: int) -> tuple[str, ...]:
    missing = [""] * (width - len(first))
    if all(not row[-1] for row in body):
        # Every row ends with a delimiter.
        return (*first, *missing)
    # R's write.table gives the column of row names no cell in the header.
    return (*missing, *first)


def _has_header(
    first: Sequence[str], body: Sequence[Sequence[str]], decimal: str, stated: bool | None
) -> bool | None:
    """Return whether the first row is a header; None where it may be or not."""
    if body and len(first) == max(map(len, body)) - 1:
        return True
    columns = [[row[c] for row in body if c < len(row)] for c in range(len(first))]
    if not body:
        return bool(stated) or not any(_is_number(cell, decimal) for cell in first)
    numeric = [
        c for c, column in enumerate(columns)
        if all(cell in EMPTY_CELLS or _is_number(cell, decimal) for cell in column)
        and any(cell not in EMPTY_CELLS for cell in column)
    ]  # fmt: skip
    if not numeric:
        # A class name that occurs again below is a value.
        again = any(cell in column for cell, column in zip(first, columns, strict=True) if cell)
        return stated if stated is not None else not again
    heads = [first[c] for c in numeric if first[c] not in EMPTY_CELLS]
    if not all(_is_number(cell, decimal) for cell in heads):
        return True
    nameless = any(not first[c] and all(columns[c]) for c in numeric)
    if stated is None and (nameless or any(cell.casefold() in INDEX_NAMES for cell in first)):
        # pandas leaves the name of its index empty.
        stated = True
    values = [
        _value(cell, decimal) for c in numeric for cell in columns[c] if cell not in EMPTY_CELLS
    ]
    integers = any(_INTEGER.fullmatch(cell.lstrip("+-")) for c in numeric for cell in columns[c])
    whole = all(value.is_integer() for value in values)
    return _integers_are_header(heads, len(body), integers, whole, stated)


def _integers_are_header(
    heads: Sequence[str], rows: int, written: bool, whole: bool, stated: bool | None
) -> bool | None:
    """Decide on a first row of numbers above numbers: only distinct integers may be class ids.

    ``rows`` is how many rows below are known, ``written`` is true if a number in them is written as
    an integer, ``whole`` whether all are whole.
    """
    plain = {cell for cell in heads if _INTEGER.fullmatch(cell)}
    in_order = [cell.removesuffix(".0") for cell in heads] == [str(i) for i in range(len(heads))]
    ids = len(plain) == len(heads)
    if not ids and not (in_order and len(heads) > 1) and not _numbered(heads, plain):
        return False
    if stated is not None:
        return stated
    if len(heads) == 1 and not in_order:
        # One column of labels or single outputs: its default name in pandas is 0.
        return False
    if ids and plain == {"0", "1"} and (written or not in_order or rows < _FEWEST_ROWS):
        # A saturated prediction of two classes may be written in the same way.
        return None
    if ids and not written:
        return True
    if not whole and in_order and len(heads) > 2:
        return True
    increasing = ids and all(int(a) < int(b) for a, b in pairwise(heads))
    if whole and not in_order and not (increasing and len(heads) > 2):
        return False
    return None


def _numbered(heads: Sequence[str], plain: set[str]) -> bool:
    """Return whether repeated integers were numbered as pandas does: 3, 3.1, 3.2."""
    again: dict[str, int] = {}
    for cell in heads:
        base, _, number = cell.partition(".")
        again[base] = again.get(base, -1) + 1
        if base not in plain or number != (str(again[base]) if again[base] else ""):
            return False
    return len(again) < len(heads)


def _value(cell: str, decimal: str) -> float:
    return float(cell.replace(",", ".") if decimal == "," else cell)


def _is_number(cell: str, decimal: str) -> bool:
    text = cell.replace(",", ".") if decimal == "," else cell
    return bool(_NUMBER.fullmatch(text))
