"""Sentences with labels: TSV and CSV files, and data sets of the Hugging Face kind."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from distillens.data.sources.huggingface import (
    WORDS,
    TableSource,
    choose_column,
    load_tables,
    read_labels,
)
from distillens.data.sources.source import LoadOptions, register_source, to_examples
from distillens.errors import DataError

if TYPE_CHECKING:
    from distillens.data.examples import Examples

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
        loaded = load_tables(self.path, self.config, self.test_split)
        tables = {split: _with_numbers(table) for split, table in loaded.items()}
        where = {split: f"{self.path} ({split})" for split in tables}
        name, labels, classes = read_labels(tables, self.label_column, self.path, where)
        sentences = {
            split: _sentences(table, self.text_column, name, where[split])
            for split, table in tables.items()
        }
        # Tokens take the place of these inputs.
        nothing = {split: np.zeros((len(each), 1), np.uint8) for split, each in sentences.items()}
        examples = to_examples(nothing, labels, where, classes, options)
        return {
            split: replace(each, sentences=tuple(sentences[split]))
            for split, each in examples.items()
        }


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
