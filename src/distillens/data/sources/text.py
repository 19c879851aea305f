"""Sentences with labels: TSV and CSV files, and data sets of the Hugging Face kind."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from distillens.data.sources.dataset_files import choose_splits, has_tables
from distillens.data.sources.huggingface import (
    TableSource,
    choose_column,
    counts_examples,
    load_tables,
)
from distillens.data.sources.source import (
    LoadOptions,
    number_classes,
    number_names,
    register_source,
)
from distillens.errors import DataError, one_line

if TYPE_CHECKING:
    from distillens.data.examples import Examples

SPLITS = ("train", "test", "validation", "valid", "val", "dev")
"""Names of files; the test split is the one called test, else the one of a validation split."""
ENDINGS = (".tsv", ".tsv.gz", ".csv", ".csv.gz")


@dataclass(frozen=True)
class _Table:
    """Columns of words by name, and the classes' names where the table knows them."""

    columns: dict[str, list[Any]]
    classes: dict[str, Sequence[str]]


@register_source("text")
class Text(TableSource):
    """Sentences and labels.

    ``path`` is a folder of ``train`` and ``test`` (or ``validation``, ``valid``, ``dev``) as .tsv or
    .csv, gzipped or not, with a header; a folder of parquet files; or a name that
    ``datasets.load_dataset`` knows. Quotes mean nothing in TSV and quote in CSV. ``text_column`` and
    ``label_column`` are needed only where more than one column would do. Labels are integers from 0,
    or names, which become classes in alphabetical order. Columns of integers that count examples, such
    as ``idx``, are no labels.
    """

    is_text: ClassVar[bool] = True

    text_column: str | None = None

    def load(self, options: LoadOptions) -> dict[str, Examples]:
        """Return the sentences of both splits.

        Raises
        ------
        DataError
            Nothing is there, a file is damaged, a column is missing or ambiguous, a cell is empty.
        """
        tables = self._tables()
        where = {split: f"{self.path} ({split})" for split in tables}
        sentences: dict[str, list[str]] = {}
        cells: dict[str, list[Any]] = {}
        names: Sequence[str] | None = None
        for split, table in tables.items():
            label_name = _label_column(table, self.label_column, where[split])
            sentences[split] = _sentences(table, self.text_column, label_name, where[split])
            cells[split] = table.columns[label_name]
            names = names or table.classes.get(label_name)
        labels, names = _labels(cells, names, where, options)
        return {
            split: _examples(each, sentences[split], names, where[split])
            for split, each in labels.items()
        }

    def _tables(self) -> dict[str, _Table]:
        folder = Path(self.path)
        files = _files(folder)
        if not files and folder.is_dir() and not has_tables(folder):
            raise DataError(
                f"{self.path} holds no train.tsv or train.csv, gzipped or not, and no train*.parquet"
            )
        if files and self.config is None:
            chosen = choose_splits(files, self.test_split, self.path)
            return {split: _read_table(files[name]) for split, name in chosen.items()}
        loaded = load_tables(self.path, self.config, self.test_split)
        return {split: _of_dataset(table) for split, table in loaded.items()}


def _files(folder: Path) -> dict[str, Path]:
    found = {}
    for split in SPLITS if folder.is_dir() else ():
        there = [
            folder / f"{split}{end}" for end in ENDINGS if (folder / f"{split}{end}").is_file()
        ]
        if len(there) > 1:
            raise DataError(
                f"{folder} holds {there[0].name} and {there[1].name}; keep one file a split"
            )
        if there:
            found[split] = there[0]
    return found


def _read_table(path: Path) -> _Table:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {one_line(error)}") from None
    rows = list(_rows(text, tabs=".tsv" in path.suffixes, where=str(path)))
    if not rows:
        raise DataError(f"{path} is empty; its first line must name the columns")
    header, *body = rows
    if len(set(header)) < len(header):
        raise DataError(f"{path} names a column twice: {header}")
    for number, row in enumerate(body, 2):
        if len(row) != len(header):
            raise DataError(
                f"{path}: row {number} has {len(row)} cells, the header {len(header)}: {header}"
            )
    columns = {name: [row[place] for row in body] for place, name in enumerate(header)}
    return _Table(columns, {})


def _rows(text: str, *, tabs: bool, where: str) -> Iterator[list[str]]:
    if tabs:
        # Not splitlines: a sentence may hold one of the many characters that it splits at.
        for line in text.replace("\r\n", "\n").split("\n"):
            if line:
                yield line.split("\t")
        return
    try:
        yield from (row for row in csv.reader(io.StringIO(text, newline="")) if row)
    except csv.Error as error:
        raise DataError(f"{where} is no readable CSV: {one_line(error)}") from None


def _of_dataset(table: Any) -> _Table:
    names = {name: kind.names for name, kind in table.features.items() if hasattr(kind, "names")}
    columns = {name: table.data.column(name).to_pylist() for name in table.features}
    return _Table(columns, names)


def _label_column(table: _Table, asked: str | None, where: str) -> str:
    """Return the name of the column of labels; columns that count examples are none."""
    known = list(table.columns)
    numbers = [
        name
        for name in known
        if name in table.classes or (_is_integer(table.columns[name]) and not counts_examples(name))
    ]
    return choose_column(asked, numbers, known, "label_column", where)


def _sentences(table: _Table, asked: str | None, label_name: str, where: str) -> list[str]:
    known = list(table.columns)
    words = [
        name
        for name in known
        if name != label_name
        and all(isinstance(cell, str) for cell in table.columns[name])
        and not (_is_integer(table.columns[name]) and counts_examples(name))
    ]
    name = choose_column(asked, words, known, "text_column", where)
    sentences = table.columns[name]
    for row, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise DataError(
                f"{where}: example {row} has no text in column {name!r}, but {sentence!r}; remove it"
            )
    if not sentences:
        raise DataError(f"{where}: no examples; at least one is needed")
    return sentences


def _labels(
    cells: dict[str, list[Any]],
    names: Sequence[str] | None,
    where: dict[str, str],
    options: LoadOptions,
) -> tuple[dict[str, np.ndarray], Sequence[str]]:
    """Return the labels of each split as numbers, and the names of the classes."""
    if all(map(_is_integer, cells.values())):
        labels = {split: np.array([int(cell) for cell in each]) for split, each in cells.items()}
        if names is None:
            labels, names = number_classes(labels, options)
        return labels, names or [str(number) for number in range(int(labels["train"].max()) + 1)]
    words = {split: _words(each, where[split]) for split, each in cells.items()}
    known = list(names) if names is not None else sorted(set(words["train"]))
    return number_names(words, known, where), known


def _examples(
    labels: np.ndarray, sentences: list[str], names: Sequence[str], where: str
) -> Examples:
    import torch

    from distillens.data.examples import Examples, check_labels

    tensor = torch.from_numpy(labels.astype(np.int64))
    check_labels(tensor, len(names), where)
    nothing = torch.zeros(len(labels), 1, dtype=torch.int64)
    index = torch.arange(len(labels))
    return Examples(nothing, tensor, index, tuple(names), sentences=tuple(sentences))


def _is_integer(cells: list[Any]) -> bool:
    return bool(cells) and all(
        (isinstance(cell, int) and not isinstance(cell, bool))
        or (isinstance(cell, str) and cell.strip().removeprefix("-").isdecimal())
        for cell in cells
    )


def _words(cells: list[Any], where: str) -> list[str]:
    for row, cell in enumerate(cells):
        if not isinstance(cell, str) or not cell.strip():
            raise DataError(f"{where}: example {row} has no label, but {cell!r}; remove it")
    return [cell.strip() for cell in cells]
