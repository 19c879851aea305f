"""Sentences with labels: TSV and CSV files, and data sets of the Hugging Face kind."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from distillens.data.sources.dataset_files import choose_splits, has_tables
from distillens.data.sources.huggingface import (
    WORDS,
    TableSource,
    choose_column,
    load_tables,
    read_labels,
)
from distillens.data.sources.source import LoadOptions, number_classes, register_source
from distillens.errors import DataError, one_line

if TYPE_CHECKING:
    from distillens.data.examples import Examples

SPLITS = ("train", "test", "validation", "valid", "val", "dev")
"""Names of files; the test split is the one called test, else the one of a validation split."""
ENDINGS = (".tsv", ".tsv.gz", ".csv", ".csv.gz")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


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
            Files are missing or damaged, a column is missing or ambiguous, a cell is empty.
        """
        tables = {split: _with_numbers(table) for split, table in self._tables().items()}
        where = {split: f"{self.path} ({split})" for split in tables}
        name, labels, classes = read_labels(tables, self.label_column, self.path, where)
        sentences = {
            split: _sentences(table, self.text_column, name, where[split])
            for split, table in tables.items()
        }
        if classes is None:
            labels, classes = number_classes(labels, options)
        known = classes or [str(number) for number in range(int(labels["train"].max()) + 1)]
        return {
            split: _examples(each, sentences[split], known, where[split])
            for split, each in labels.items()
        }

    def _tables(self) -> dict[str, Any]:
        folder = Path(self.path)
        files = _files(folder)
        if not files and folder.is_dir() and not has_tables(folder):
            raise DataError(
                f"{self.path} holds no train.tsv or train.csv, gzipped or not, and no train*.parquet"
            )
        if not files or self.config is not None:
            return load_tables(self.path, self.config, self.test_split)
        chosen = choose_splits(files, self.test_split, self.path)
        return {split: _read_table(files[name]) for split, name in chosen.items()}


def _files(folder: Path) -> dict[str, Path]:
    found = {}
    for split in SPLITS if folder.is_dir() else ():
        there = [
            folder / f"{split}{end}" for end in ENDINGS if (folder / f"{split}{end}").is_file()
        ]
        if len(there) > 1:
            raise DataError(
                f"{folder} holds {there[0].name} and {there[1].name}; keep one file per split"
            )
        if there:
            found[split] = there[0]
    return found


def _read_table(path: Path) -> Any:
    import datasets

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
    return datasets.Dataset.from_dict(columns)


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


def _with_numbers(table: Any) -> Any:
    """Return a table whose columns of integers that are written as words hold integers."""
    for name, kind in table.features.items():
        cells = table.data.column(name).to_pylist() if _holds_words(kind) else []
        if cells and all(cell is not None and _INTEGER.fullmatch(cell) for cell in cells):
            # Not cast_column, which shows a bar.
            table = table.remove_columns(name).add_column(name, np.array(cells, dtype=np.int64))
    return table


def _holds_words(kind: Any) -> bool:
    return getattr(kind, "dtype", "") in WORDS


def _sentences(table: Any, asked: str | None, label_name: str, where: str) -> list[str]:
    features = table.features
    words = [name for name in features if name != label_name and _holds_words(features[name])]
    name = choose_column(asked, words, list(features), "text_column", where)
    sentences = table.data.column(name).to_pylist()
    for row, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise DataError(
                f"{where}: example {row} has no text in column {name!r}, but {sentence!r}; remove it"
            )
    if not sentences:
        raise DataError(f"{where}: no examples; at least one is needed")
    return sentences


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
