"""Image data sets of the Hugging Face kind: a folder of parquet files or any `datasets` name."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from distillens.data.examples import Examples, examples_from_arrays
from distillens.data.sources import Source, one_line
from distillens.errors import DataError


def read_huggingface(
    path: str, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """Read a local folder of parquet files (``train*.parquet``, ``test*.parquet``) or a hub name.

    Parameters
    ----------
    path
        A folder, or a name that ``datasets.load_dataset`` knows.
    image_column, label_column
        Which columns to use; needed only where more than one would do.

    Raises
    ------
    DataError
        Nothing is there, a file is damaged, a column is missing or ambiguous, images differ in size.
    """
    tables = load_tables(path)
    test = next((name for name in ("test", "validation", "valid") if name in tables), None)
    if "train" not in tables:
        raise DataError(f"{path} has the splits {sorted(tables)}; a split named 'train' is needed")
    names = _label_file(path)
    source = {"train": _examples(tables["train"], image_column, label_column, names, f"{path}")}
    if test is not None:
        classes = source["train"].classes
        where = f"{path} ({test})"
        source["test"] = _examples(tables[test], image_column, label_column, classes, where)
    return source


def load_tables(path: str) -> dict[str, Any]:
    """Return the tables of a data set by the names of their splits.

    Raises
    ------
    DataError
        As :func:`read_huggingface`.
    """
    import datasets

    folder = Path(path)
    files: dict[str, list[str]] = {}
    if folder.is_dir():
        for split in ("train", "test", "validation", "valid"):
            found = sorted(str(file) for file in folder.rglob(f"{split}*.parquet"))
            if found:
                files[split] = found
        if not files:
            raise DataError(f"{path} holds no train*.parquet; a Hugging Face folder needs one")
    try:
        if files:
            return {split: _parquet(names) for split, names in files.items()}
        loaded = datasets.load_dataset(path)
    # The library raises many kinds for a name that is unknown, a hub out of reach or a bad file.
    except Exception as error:
        raise DataError(
            f"datasets cannot load {path!r}: {one_line(error)[:200]}; "
            "name a folder with train*.parquet or a data set of the hub"
        ) from None
    return {str(name): table for name, table in loaded.items()}


def _parquet(files: list[str]) -> Any:
    # Read into memory: the library's own reader would leave a second copy in its cache folder.
    import datasets
    import pyarrow as pa
    from datasets.table import InMemoryTable
    from pyarrow import parquet

    tables = [parquet.read_table(file) for file in files]
    return datasets.Dataset(InMemoryTable(pa.concat_tables(tables)))


def _label_file(path: str) -> Sequence[str] | None:
    # Parquet without Hugging Face metadata has no class names; a labels.txt beside it supplies them.
    file = Path(path) / "labels.txt"
    return (
        file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else None
    )


def _examples(
    table: Any, image: str | None, label: str | None, names: Sequence[str] | None, where: str
) -> Examples:
    import datasets

    features = table.features
    images = [name for name, kind in features.items() if _is_image(kind)]
    image_name = choose_column(image, images, list(features), "image_column", where)
    integers = [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.ClassLabel) or getattr(kind, "dtype", "").startswith("int")
    ]
    label_name = choose_column(label, integers, list(features), "label_column", where)
    # A copy: torch warns of arrays that may not be written to.
    labels = np.array(table.data.column(label_name).to_numpy())
    kind = features[label_name]
    if isinstance(kind, datasets.ClassLabel):
        names = kind.names
    # Straight from the Arrow column: going through the library's rows takes longer than decoding.
    cells = table.data.column(image_name).to_pylist()
    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(_decode, cells, range(len(cells)), [where] * len(cells)))
    if not pictures:
        raise DataError(f"{where}: no examples; at least one is needed")
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        raise DataError(f"{where}: images differ in size, {sorted(shapes)[:3]}; resize them first")
    return examples_from_arrays(np.stack(pictures), labels, names, where=where)


def _is_image(kind: object) -> bool:
    import datasets

    return isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)


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


def _decode(cell: dict[str, Any], row: int, where: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        if cell is None:
            raise ValueError("the table holds none")
        if cell["bytes"] is None:
            # A path out of somebody's table could name any file of this machine.
            raise ValueError("the table holds a path instead of the picture's bytes")
        with Image.open(io.BytesIO(cell["bytes"])) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"mode {picture.mode} has more than 8 bits a channel")
            if picture.mode not in ("L", "RGB"):
                return np.asarray(picture.convert("RGB"))
            return np.asarray(picture)
    except UnidentifiedImageError:
        # Its text names the buffer in memory.
        raise DataError(f"{where}: image {row} cannot be decoded: it is no picture") from None
    # Damage shows as many kinds of errors, SyntaxError and decompression bombs among them.
    except Exception as error:
        raise DataError(f"{where}: image {row} cannot be decoded: {one_line(error)}") from None
