"""Tables of images or sentences: TSV and CSV files, and data sets of the Hugging Face kind."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from distillens.data.sources.dataset_files import choose_splits, ending_of, find_splits
from distillens.data.sources.images import decode_all, image_examples
from distillens.data.sources.source import (
    LoadOptions,
    PathSource,
    register_source,
    to_examples,
)
from distillens.errors import DataError, one_line

if TYPE_CHECKING:
    from distillens.data.examples import Examples

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_IDENTIFIER = re.compile(r"((.*_)?(id|idx|index|index_level_\d+)(__)?|unnamed: 0)?$", re.IGNORECASE)
_CLASSES = re.compile(r"label|class|target|categor", re.IGNORECASE)


class TableSource(PathSource):
    """Base of the sources that read tables of the Hugging Face kind; see `load_tables`."""

    label_column: str | None = None
    config: str | None = None
    test_split: str | None = None


@register_source("huggingface")
class HuggingFace(TableSource):
    """A downloaded data set of images, or one of the hub.

    ``path`` is a folder or a name that ``datasets.load_dataset`` knows, ``image_column`` and
    ``label_column`` are needed only where more than one column would do, ``config`` and
    ``test_split`` name a configuration and the test split where there are several.

    Images are decoded as `datasets` decodes them: an EXIF orientation is applied. They keep one
    channel if all of a data set's are stored as grey values; else all are converted to RGB, and
    transparency is dropped. The classes are those of a ``ClassLabel`` column, the values of a column
    of words in alphabetical order, or numbers, which a ``labels.txt`` in the folder may name.
    """

    image_column: str | None = None

    def load(self, options: LoadOptions) -> dict[str, Examples]:
        """Return the images of both splits.

        Raises
        ------
        DataError
            Files are missing or damaged, a column is missing or ambiguous, an example has no
            label, images differ in size and no ``image_size`` is given, or as `load_tables`.
        """
        path = self.path
        tables = load_tables(path, self.config, self.test_split)
        _, labels, classes = _read_labels(tables, self.label_column, path)
        decoded = {
            split: _decoded(table, self.image_column, f"{path} ({split})", options.image_size)
            for split, table in tables.items()
        }
        return image_examples(decoded, labels, path, classes, options)


def load_tables(
    path: str, config: str | None = None, test_split: str | None = None
) -> dict[str, Any]:
    """Return the tables "train" and, if there is one, "test" of a data set.

    Parameters
    ----------
    path
        A folder with tables as the hub lays them out (see `dataset_files`), one that
        ``DatasetDict.save_to_disk`` wrote, or a name that ``datasets.load_dataset`` knows.
    config
        Configuration to read; required if there are several.
    test_split
        Name of the test split; by default test, else validation.

    Raises
    ------
    DataError
        As `find_splits`, or a file is damaged, or the data set cannot be fetched.
    """
    import datasets

    folder = Path(path)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if saved and config is not None:
        raise DataError(f"{folder} was saved without configurations; leave data.config out")
    try:
        if saved:
            loaded: Any = datasets.load_from_disk(str(folder))
        elif folder.is_dir():
            files = find_splits(folder, config)
            loaded = {
                name: _table(files[name])
                for name in choose_splits(files, test_split, path).values()
            }
        else:
            loaded = datasets.load_dataset(path, config)
    except DataError:
        raise
    # datasets and pyarrow raise many kinds for a name that is unknown, a hub out of reach or a
    # damaged file.
    except Exception as error:
        raise DataError(
            f"datasets cannot load {path!r}: {one_line(error)[:200]}; "
            "name a folder with train*.parquet or a data set of the hub"
        ) from None
    tables = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    return {split: tables[name] for split, name in choose_splits(tables, test_split, path).items()}


def _table(files: Sequence[Path]) -> Any:
    # Read into memory: the library's own reader would leave a second copy in its cache folder.
    import datasets
    import pyarrow as pa
    from datasets.table import InMemoryTable
    from pyarrow import json, parquet

    readers = {
        ".arrow": lambda file: datasets.Dataset.from_file(str(file)).data.table,
        ".jsonl": json.read_json,
        ".parquet": parquet.read_table,
    }
    tables = [readers.get(ending_of(file), _text_table)(file) for file in files]
    return datasets.Dataset(InMemoryTable(pa.concat_tables(tables)))


def _text_table(path: Path) -> Any:
    """Return the table of a TSV or CSV file, gzipped or not, with a header; all cells are text."""
    import pyarrow as pa

    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
        if ".tsv" in path.suffixes:
            # Not splitlines: a sentence may hold one of the many characters that it splits at.
            rows = [line.split("\t") for line in text.replace("\r\n", "\n").split("\n") if line]
        else:
            rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as text: {one_line(error)}") from None
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
    return pa.table(columns)


def _read_labels(
    tables: dict[str, Any], asked: str | None, path: str
) -> tuple[str, dict[str, np.ndarray], Sequence[str] | None]:
    """Return the name of the column of labels, its numbers by split, and the names of the classes.

    The names are None for numbers that nothing names.
    """
    import datasets

    features = tables["train"].features
    fitting = _label_columns(features)
    name = _choose_column(asked, fitting, list(features), "label_column", path)
    kind = features[name]
    names = kind.names if isinstance(kind, datasets.ClassLabel) else None
    cells = {
        split: _label_cells(table, name, names, f"{path} ({split})")
        for split, table in tables.items()
    }
    if names is None and any(isinstance(cell, str) for cell in cells["train"]):
        names = sorted(map(str, set(cells["train"])))
    if names is not None:
        numbers = {each: number for number, each in enumerate(names)}
        for split, each in cells.items():
            for row, cell in enumerate(each):
                if cell not in numbers:
                    raise DataError(
                        f"{path} ({split}): example {row} has the label {cell!r}, which is none of the "
                        f"{len(names)} classes of the training split"
                    )
        cells = {split: [numbers[cell] for cell in each] for split, each in cells.items()}
    labels = {split: np.asarray(each or np.zeros(0, int)) for split, each in cells.items()}
    # Parquet without Hugging Face metadata has no class names; a labels.txt in its folder has them.
    file = Path(path) / "labels.txt"
    if names is not None or not file.is_file():
        return name, labels, names
    listed = file.read_text(encoding="utf-8", errors="replace").splitlines()
    highest = max((int(each.max()) for each in labels.values() if len(each)), default=-1)
    # The file names the classes of one of several columns of numbers.
    fits = len(fitting) == 1 or len(listed) == highest + 1
    return name, labels, listed if fits else None


def _label_columns(features: Any) -> list[str]:
    import datasets

    def is_label(name: str, kind: Any) -> bool:
        whole = getattr(kind, "dtype", "").startswith(("int", "uint"))
        # Integers named as numbers of classes, such as label_id, do not count examples.
        counts_examples = _IDENTIFIER.match(name) and not _CLASSES.search(name)
        return isinstance(kind, datasets.ClassLabel) or (whole and not counts_examples)

    numbers = [name for name, kind in features.items() if is_label(name, kind)]
    return numbers or [name for name, kind in features.items() if _holds_words(kind)]


def _label_cells(table: Any, name: str, names: Sequence[str] | None, where: str) -> list[Any]:
    """Return the labels of a split, as words where its own names or those given are known."""
    import datasets

    if name not in table.features:
        raise DataError(f"{where}: no column {name!r}, which has the labels of the training split")
    kind, cells = table.features[name], table.data.column(name).to_pylist()
    if isinstance(kind, datasets.ClassLabel):
        names = kind.names
    if cells and all(cell in (None, -1) for cell in cells):
        raise DataError(
            f"{where}: no example has a label, all are {cells[0]}; name a split that has labels with "
            "data.test_split, for example validation"
        )
    for row, cell in enumerate(cells):
        if isinstance(cell, bool) or not isinstance(cell, (int, str)) or not str(cell).strip():
            raise DataError(
                f"{where}: labels must be one integer an example, or a word; that of example {row} "
                f"is {cell!r}"
            )
    # Numbers without a name are refused where the names become the numbers of the training split.
    known = dict(enumerate(names or ()))
    return [cell.strip() if isinstance(cell, str) else known.get(cell, cell) for cell in cells]


def _decoded(
    table: Any, asked: str | None, where: str, side: int | None
) -> tuple[np.ndarray, bool]:
    from PIL import Image

    features = table.features
    fitting = [name for name, kind in features.items() if _is_image(kind)]
    name = _choose_column(asked, fitting, list(features), "image_column", where)
    # Straight from the Arrow column: going through the library's rows takes longer than decoding.
    cells = table.data.column(name).to_pylist()

    def opened(row: int) -> Any:
        content = cells[row]["bytes"] if isinstance(cells[row], dict) else cells[row]
        if content is None:
            # A path out of somebody's table could name any file of this machine.
            raise ValueError("the table holds none, or a path instead of its bytes")
        return Image.open(io.BytesIO(content))

    return decode_all(len(cells), opened, lambda row: f"{where}: image {row}", side, exif=True)


def _is_image(kind: Any) -> bool:
    import datasets

    binary = getattr(kind, "dtype", "") in ("binary", "large_binary")
    return (
        isinstance(kind, datasets.Image) or binary or (isinstance(kind, dict) and "bytes" in kind)
    )


def _choose_column(
    asked: str | None, fitting: list[str], known: list[str], key: str, where: str
) -> str:
    if asked is not None:
        if asked not in known:
            raise DataError(f"{where}: no column {asked!r}; data.{key} must be one of {known}")
        return asked
    if len(fitting) != 1:
        raise DataError(
            f"{where}: {len(fitting)} columns would do ({fitting or known}); set data.{key}"
        )
    return fitting[0]


@register_source("text")
class Text(TableSource):
    """Sentences and labels.

    ``path`` is a folder with ``train`` and ``test`` (or ``validation``, ``valid``, ``dev``) as .tsv or
    .csv, gzipped or not, with a header, or as parquet, in the layouts of `dataset_files`; or a name
    that ``datasets.load_dataset`` knows. Quotes mean nothing in TSV and quote in CSV. ``text_column``
    and ``label_column`` are needed only where more than one column would do. Labels are integers from
    0, or names, which become classes in alphabetical order. Columns of integers that count examples,
    such as ``idx``, are no labels.
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
        name, labels, classes = _read_labels(tables, self.label_column, self.path)
        sentences = {
            split: _sentences(table, self.text_column, name, f"{self.path} ({split})")
            for split, table in tables.items()
        }
        # Tokens take the place of these inputs.
        nothing = {split: np.zeros((len(each), 1), np.uint8) for split, each in sentences.items()}
        examples = to_examples(nothing, labels, self.path, classes, options)
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
    return getattr(kind, "dtype", "") in ("string", "large_string")


def _sentences(table: Any, asked: str | None, label_name: str, where: str) -> list[str]:
    features = table.features
    words = [name for name in features if name != label_name and _holds_words(features[name])]
    name = _choose_column(asked, words, list(features), "text_column", where)
    sentences = table.data.column(name).to_pylist()
    for row, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise DataError(
                f"{where}: example {row} has no text in column {name!r}, but {sentence!r}; remove it"
            )
    return sentences
