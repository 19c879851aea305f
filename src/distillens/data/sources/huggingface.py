"""Image data sets of the Hugging Face kind: a folder of parquet files or any `datasets` name."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distillens.data.sources.dataset_files import choose_splits, find_splits
from distillens.data.sources.images import decode_all, image_examples
from distillens.data.sources.source import (
    LoadOptions,
    PathSource,
    number_names,
    register_source,
)
from distillens.errors import DataError, one_line

if TYPE_CHECKING:
    from distillens.data.examples import Examples

WORDS = ("string", "large_string")
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
        where = {split: f"{path} ({split})" if split != "train" else path for split in tables}
        _, labels, classes = read_labels(tables, self.label_column, path, where)
        decoded = {
            split: _decoded(table, self.image_column, where[split], options.image_size)
            for split, table in tables.items()
        }
        return image_examples(decoded, labels, where, classes, options)


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
    folder = Path(path)
    if not folder.is_dir():
        loaded: Any = _loaded(path, config)
    elif (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        loaded = _saved(folder, config)
    else:
        files = find_splits(folder, config)
        chosen = choose_splits(files, test_split, path)
        try:
            return {split: _table(files[name]) for split, name in chosen.items()}
        # pyarrow raises many kinds for a damaged file.
        except Exception as error:
            raise _unreadable(path, error) from None
    chosen = choose_splits(loaded, test_split, path)
    return {split: loaded[name] for split, name in chosen.items()}


def _loaded(path: str, config: str | None) -> dict[str, Any]:
    import datasets

    try:
        loaded: Any = datasets.load_dataset(path, config)
    # The library raises many kinds for a name that is unknown, a hub out of reach or a bad file.
    except Exception as error:
        raise _unreadable(path, error) from None
    return {str(name): table for name, table in loaded.items()}


def _saved(folder: Path, config: str | None) -> dict[str, Any]:
    import datasets

    if config is not None:
        raise DataError(f"{folder} was saved without configurations; leave data.config out")
    try:
        loaded: Any = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise _unreadable(str(folder), error) from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(
        f"datasets cannot load {path!r}: {one_line(error)[:200]}; "
        "name a folder with train*.parquet or a data set of the hub"
    )


def _table(files: Sequence[Path]) -> Any:
    # Read into memory: the library's own reader would leave a second copy in its cache folder.
    import datasets
    import pyarrow as pa
    from datasets.table import InMemoryTable
    from pyarrow import csv, json, parquet

    readers = {".parquet": parquet.read_table, ".jsonl": json.read_json, ".csv": csv.read_csv}
    tables = [
        datasets.Dataset.from_file(str(file)).data.table
        if file.suffix.lower() == ".arrow"
        else readers[file.suffix.lower()](file)
        for file in files
    ]
    return datasets.Dataset(InMemoryTable(pa.concat_tables(tables)))


def read_labels(
    tables: dict[str, Any], asked: str | None, path: str, where: dict[str, str]
) -> tuple[str, dict[str, np.ndarray], Sequence[str] | None]:
    """Return the name of the column of labels, its numbers by split, and the names of the classes.

    The names are None for numbers that nothing names.
    """
    import datasets

    features = tables["train"].features
    fitting = _label_columns(features)
    name = choose_column(asked, fitting, list(features), "label_column", where["train"])
    kind = features[name]
    known = kind.names if isinstance(kind, datasets.ClassLabel) else None
    cells = {
        split: _label_cells(table, name, known, where[split]) for split, table in tables.items()
    }
    if known is not None or any(isinstance(cell, str) for cell in cells["train"]):
        names = sorted(map(str, set(cells["train"]))) if known is None else known
        return name, number_names(cells, names, where), names
    labels = {split: np.asarray(each) for split, each in cells.items()}
    listed = _label_file(path)
    highest = max((int(each.max()) for each in labels.values() if len(each)), default=-1)
    # The file names the classes of one of several columns of numbers.
    if listed is not None and (len(fitting) == 1 or len(listed) == highest + 1):
        return name, labels, listed
    return name, labels, None


def _label_columns(features: Any) -> list[str]:
    import datasets

    def is_label(name: str, kind: Any) -> bool:
        whole = getattr(kind, "dtype", "").startswith(("int", "uint"))
        return isinstance(kind, datasets.ClassLabel) or (whole and not counts_examples(name))

    numbers = [name for name, kind in features.items() if is_label(name, kind)]
    words = [name for name, kind in features.items() if getattr(kind, "dtype", "") in WORDS]
    return numbers or words


def counts_examples(name: str) -> bool:
    """Return whether a column of integers counts examples by its name, such as id or __index_level_0__.

    Those named as numbers of classes, such as ``label_id``, do not.
    """
    return _IDENTIFIER.match(name) is not None and _CLASSES.search(name) is None


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
        if isinstance(cell, bool) or not isinstance(cell, (int, str)):
            raise DataError(
                f"{where}: labels must be one integer an example, or a word; that of example {row} "
                f"is {cell!r}"
            )
        if isinstance(cell, str) and not cell.strip():
            raise DataError(f"{where}: example {row} has no label, but {cell!r}; remove it")
        if names is not None and isinstance(cell, int) and not 0 <= cell < len(names):
            raise DataError(
                f"{where}: label {cell} of example {row} is out of range; labels must lie in "
                f"[0, {len(names) - 1}]"
            )
    if names is not None:
        cells = [names[cell] if isinstance(cell, int) else cell for cell in cells]
    return [cell.strip() if isinstance(cell, str) else cell for cell in cells]


def _label_file(path: str) -> Sequence[str] | None:
    # Parquet without Hugging Face metadata has no class names; a labels.txt in its folder supplies them.
    file = Path(path) / "labels.txt"
    return (
        file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else None
    )


def _decoded(
    table: Any, asked: str | None, where: str, side: int | None
) -> tuple[np.ndarray, bool]:
    from PIL import Image

    features = table.features
    fitting = [name for name, kind in features.items() if _is_image(kind)]
    name = choose_column(asked, fitting, list(features), "image_column", where)
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


def choose_column(
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
