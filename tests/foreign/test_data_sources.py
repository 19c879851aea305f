"""Folders, tables and arrays as other tools leave them: what is read, and what is asked about."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from distillens.data import load_splits
from distillens.data.examples import Examples, examples_from_arrays
from distillens.data.recipe import DataRecipe
from distillens.data.sources.arrays import NpzFile
from distillens.data.sources.dataset_files import find_splits
from distillens.data.sources.folders import ImageFolder
from distillens.data.sources.source import LoadOptions
from distillens.data.sources.tables import HuggingFace
from distillens.errors import DataError

RNG = np.random.default_rng(0)


def read_huggingface(path: Path, **settings: str) -> dict[str, Examples]:
    return HuggingFace(path=str(path), **settings).load(LoadOptions())


def read_folder(path: Path) -> dict[str, Examples]:
    return ImageFolder(path=str(path)).load(LoadOptions())


def read_npz(path: Path) -> dict[str, Examples]:
    return NpzFile(path=str(path)).load(LoadOptions())


def png(shape: tuple[int, ...] = (8, 8, 3), **save: Any) -> dict[str, Any]:
    stored = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, shape, dtype=np.uint8)).save(stored, "PNG", **save)
    return {"bytes": stored.getvalue(), "path": None}


def write_table(
    path: Path, labels: Any, images: Sequence[Any] | None = None, **columns: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([png() for _ in labels] if images is None else images, kind)
    parquet.write_table(pa.table({"image": pictures, "label": labels, **columns}), path)


def class_folders(root: Path, splits: Sequence[str] = ("train", "test")) -> None:
    for split in splits:
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(root / split / name / f"{number}.png")


# Layouts of downloaded data sets.

HUB_LAYOUTS: dict[str, tuple[list[str], dict[str, int]]] = {
    "flat": (["train.parquet", "test.parquet"], {"train": 1, "test": 1}),
    "shards": (
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
         "data/validation-00000-of-00001.parquet"],
        {"train": 2, "validation": 1},
    ),
    "shards with hashes": (
        ["data/train-00000-of-00001-0123456789abcdef.parquet"], {"train": 1},
    ),
    "converted": (
        ["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"],
        {"train": 2, "test": 1},
    ),
    "old conversion": (
        ["plain_text/mnist-train.parquet", "plain_text/mnist-test.parquet"],
        {"train": 1, "test": 1},
    ),
    "folders of Spark": (["train/part-00000-a1-c000.snappy.parquet"], {"train": 1}),
    "another split beside": (
        ["train-00000-of-00001.parquet", "train_extra-00000-of-00001.parquet",
         "train_clean.parquet"],
        {"train": 1, "train_extra": 1, "train_clean": 1},
    ),
    "other names": (["training.parquet", "dev.parquet"], {"training": 1, "dev": 1}),
    "hidden copies": (
        ["train.parquet", ".cache/train.parquet", "__MACOSX/train.parquet", "._train.parquet"],
        {"train": 1},
    ),
}  # fmt: skip


def touch(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize("layout", HUB_LAYOUTS)
def test_layouts_of_the_hub_give_the_files_of_each_split(tmp_path: Path, layout: str) -> None:
    names, expected = HUB_LAYOUTS[layout]
    found = find_splits(touch(tmp_path, names))
    assert {split: len(files) for split, files in found.items()} == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"], "a, b; choose one"),
        (["a/train/0000.parquet", "b/train/0000.parquet"], "a, b; choose one"),
        (["train.parquet", "old/train.parquet"], r"\., old; choose one"),
        (["a-train.parquet", "b-train.parquet"], "a, b; choose one"),
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "lacks shard 1 of 3"),
        (["train/0000.parquet", "train/0002.parquet"], "lacks shard 1 of 3"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "several versions"),
        (["train.parquet", "train-00000-of-00001.parquet"], "several versions"),
        (
            ["train-00000-of-00001-0123456789abcdef.parquet",
             "train-00000-of-00001-fedcba9876543210.parquet"],
            "shard 0 twice",
        ),
        (["train.parquet", "train.csv"], r"as \.csv and \.parquet"),
        (["train_extra.parquet"], "holds no train"),
    ],
)  # fmt: skip
def test_ambiguous_and_incomplete_folders_are_asked_about(
    tmp_path: Path, names: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_splits(touch(tmp_path, names))


def test_a_configuration_is_chosen_by_name(tmp_path: Path) -> None:
    for config, count in (("cropped", 6), ("full", 4)):
        write_table(tmp_path / config / "train-00000-of-00001.parquet", [0, 1] * (count // 2))
        write_table(tmp_path / config / "test-00000-of-00001.parquet", [0, 1])
    for config, count in (("cropped", 6), ("full", 4)):
        values = {"source": "huggingface", "path": str(tmp_path), "config": config}
        recipe = DataRecipe.model_validate(values)
        assert len(load_splits(recipe).train) == count
    with pytest.raises(DataError, match="no configuration 'crop'; did you mean 'cropped'"):
        read_huggingface(tmp_path, config="crop")


def test_the_head_of_a_readme_names_configurations(tmp_path: Path) -> None:
    write_table(tmp_path / "a" / "one.parquet", [0, 1, 0])
    write_table(tmp_path / "a" / "two.parquet", [0, 1])
    readme = tmp_path / "README.md"
    readme.write_text(
        "---\nconfigs:\n- config_name: x\n  data_files:\n  - split: train\n    path: a/o*.parquet\n"
        "  - split: test\n    path: [a/two.parquet]\n---\n# Data\n"
    )
    found = read_huggingface(tmp_path)
    assert {split: len(part) for split, part in found.items()} == {"train": 3, "test": 2}
    readme.write_text(readme.read_text().replace("a/two", "a/three"))
    with pytest.raises(DataError, match="none of them exists"):
        read_huggingface(tmp_path)


def test_a_saved_dataset_dict_is_read(tmp_path: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])}
    )
    cells = {"image": [png() for _ in range(4)], "label": [0, 1, 1, 0]}
    part = datasets.Dataset.from_dict(cells, features=features)
    datasets.DatasetDict({"train": part, "validation": part}).save_to_disk(tmp_path / "saved")
    found = read_huggingface(tmp_path / "saved")
    assert found["train"].classes == ("b", "a")
    assert found["test"].labels.tolist() == [0, 1, 1, 0]


# Labels of tables.


def test_class_names_are_matched_by_name_not_by_number(tmp_path: Path) -> None:
    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        )
        cells = {"image": [png() for _ in range(2)], "label": ["cat", "dog"]}
        table = datasets.Dataset.from_dict(cells, features=features)
        table.to_parquet(tmp_path / f"{split}.parquet")
    found = read_huggingface(tmp_path)
    assert found["train"].labels.tolist() == found["test"].labels.tolist() == [0, 1]


def test_words_become_classes_in_alphabetical_order(tmp_path: Path) -> None:
    # A row number beside the words is no label.
    write_table(tmp_path / "train.parquet", ["pear", "fig", "pear"], id=[7, 8, 9])
    write_table(tmp_path / "test.parquet", ["fig"], id=[1])
    found = read_huggingface(tmp_path)
    assert found["train"].classes == found["test"].classes == ("fig", "pear")
    assert found["train"].labels.tolist() == [1, 0, 1]
    write_table(tmp_path / "test.parquet", ["plum"], id=[1])
    with pytest.raises(
        DataError, match="'plum', which is none of the 2 classes of the training split"
    ):
        read_huggingface(tmp_path)


def test_the_label_file_names_the_column_that_it_fits(tmp_path: Path) -> None:
    """CIFAR-100 has fine and coarse labels; the names of the fine ones are no coarse classes."""
    write_table(tmp_path / "train.parquet", [0, 1, 2, 3], coarse=[0, 1, 0, 1])
    write_table(tmp_path / "test.parquet", [3], coarse=[1])
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(DataError, match=r"2 columns would do .*set data\.label_column"):
        read_huggingface(tmp_path)
    assert read_huggingface(tmp_path, label_column="label")["test"].classes == ("a", "b", "c", "d")
    assert read_huggingface(tmp_path, label_column="coarse")["test"].classes == ("0", "1")


def test_a_test_split_without_labels_is_asked_about(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", [0, 1, 0])
    write_table(tmp_path / "validation.parquet", [1, 0])
    write_table(tmp_path / "test.parquet", [-1, -1])
    with pytest.raises(DataError, match=r"no example has a label, all are -1; .*data\.test_split"):
        read_huggingface(tmp_path)
    found = read_huggingface(tmp_path, test_split="validation")
    assert found["test"].labels.tolist() == [1, 0]
    write_table(tmp_path / "test.parquet", [1, None])
    with pytest.raises(DataError, match="example 1 is None"):
        read_huggingface(tmp_path)


def test_grey_and_coloured_pictures_of_one_table_are_coloured(tmp_path: Path) -> None:
    grey = png((8, 8))
    write_table(tmp_path / "train.parquet", [0, 1], [grey, png()])
    write_table(tmp_path / "test.parquet", [0], [grey])
    found = read_huggingface(tmp_path)
    assert found["train"].input_shape == found["test"].input_shape == (3, 8, 8)
    picture = np.asarray(Image.open(io.BytesIO(grey["bytes"])).convert("RGB"))
    assert np.array_equal(found["test"].inputs[0].permute(1, 2, 0).numpy(), picture)


def test_pictures_of_tables_are_turned_as_datasets_turns_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = png((8, 8, 3), exif=exif)
    write_table(tmp_path / "train.parquet", [0, 1], [turned, turned])
    found = read_huggingface(tmp_path)["train"].inputs[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.asarray(datasets.Image().decode_example(turned)))


# Folders of image files.


def listed(root: Path) -> Examples:
    return read_folder(root)["train"]


def test_copies_of_other_programs_are_no_examples(tmp_path: Path) -> None:
    class_folders(tmp_path)
    cat = tmp_path / "train" / "cat"
    picture = (cat / "0.png").read_bytes()
    for name in (
        ".ipynb_checkpoints/0-checkpoint.png", ".AppleDouble/0.png", "@eaDir/0.png/thumb.jpg",
        "__MACOSX/0.png", "._0.png", ".hidden/deep/0.png",
    ):  # fmt: skip
        (cat / name).parent.mkdir(parents=True, exist_ok=True)
        (cat / name).write_bytes(picture)
    (cat / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "__MACOSX").mkdir()
    assert len(listed(tmp_path)) == 6


def test_links_are_followed_once(tmp_path: Path) -> None:
    class_folders(tmp_path / "data")
    class_folders(tmp_path / "far", ("more",))
    cat = tmp_path / "data" / "train" / "cat"
    (cat / "more").symlink_to(tmp_path / "far" / "more" / "dog")
    (cat / "again").symlink_to(tmp_path / "far" / "more" / "dog")
    (tmp_path / "data" / "train" / "owl").symlink_to(tmp_path / "far" / "more" / "cat")
    found = listed(tmp_path / "data")
    assert found.classes == ("cat", "dog", "owl")
    assert found.labels.bincount().tolist() == [6, 3, 3]
    (tmp_path / "linked").mkdir()
    for split in ("train", "test"):
        (tmp_path / "linked" / split).symlink_to(tmp_path / "data" / split)
    assert listed(tmp_path / "linked").fingerprint == found.fingerprint


@pytest.mark.parametrize("target", [".", "..", "../../..", "nowhere"])
def test_loops_and_broken_links_are_named(tmp_path: Path, target: str) -> None:
    class_folders(tmp_path)
    (tmp_path / "train" / "cat" / "loop").symlink_to(target)
    expected = "which does not exist" if target == "nowhere" else "which contains it"
    with pytest.raises(DataError, match=rf"cat/loop is a link to .*{expected}"):
        listed(tmp_path)


def test_classes_and_pixels_are_those_of_torchvisions_image_folder(tmp_path: Path) -> None:
    """Sorted names as `sorted` has them, any case of suffix, and what ``convert("RGB")`` gives."""
    names = ["10", "2", "Zebra", "apple"]
    rgb = Image.fromarray(RNG.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = {
        "a.JPG": rgb, "b.PNG": rgb.convert("RGBA"), "c.webp": rgb, "d.bmp": rgb, "e.TIFF": rgb,
        "f.gif": rgb.convert("P"), "g.jpeg": rgb.convert("CMYK"), "h.png": rgb.convert("L"),
        "i.png": rgb.convert("LA"), "j.png": rgb.convert("1"),
    }  # fmt: skip
    for name in names:
        (tmp_path / "train" / name / "inner").mkdir(parents=True)
        for file, picture in pictures.items():
            picture.save(tmp_path / "train" / name / file)
        rgb.save(tmp_path / "train" / name / "inner" / "k.jpg", exif=exif)
    found = listed(tmp_path)
    assert found.classes == tuple(sorted(names))
    files = sorted(path for path in (tmp_path / "train" / "2").rglob("*") if path.is_file())
    expected = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    mine = found.inputs[found.labels == sorted(names).index("2")]
    assert np.array_equal(mine.permute(0, 2, 3, 1).numpy(), expected)


def test_a_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "train" / "dog" / "9.HEIC").write_bytes(b"x")
    with pytest.raises(DataError, match=r"9\.HEIC is of a format that is not read"):
        listed(tmp_path)


def test_classes_of_test_folders_are_matched_by_name(tmp_path: Path) -> None:
    class_folders(tmp_path, ("train",))
    (tmp_path / "val" / "dog").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "dog" / "0.png")
    found = read_folder(tmp_path)
    assert found["test"].labels.tolist() == [1]
    assert found["test"].classes == ("cat", "dog")


# Classes that a split lacks.


def write_idx(folder: Path, name: str, values: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    (folder / name).write_bytes(bytes((0, 0, 8, values.ndim)) + sizes + values.tobytes())


def as_npz(folder: Path, train: np.ndarray, test: np.ndarray) -> str:
    arrays = {"train_labels": train, "test_labels": test}
    inputs = {
        key.replace("labels", "inputs"): np.zeros((len(each), 3), np.float32)
        for key, each in arrays.items()
    }
    np.savez(folder / "d.npz", allow_pickle=False, **arrays, **inputs)
    return str(folder / "d.npz")


def as_idx(folder: Path, train: np.ndarray, test: np.ndarray) -> str:
    for prefix, labels in (("train", train), ("t10k", test)):
        write_idx(folder, f"{prefix}-labels.idx1-ubyte", labels.astype(np.uint8))
        write_idx(folder, f"{prefix}-images.idx3-ubyte", np.zeros((len(labels), 4, 4), np.uint8))
    return str(folder)


def as_huggingface(folder: Path, train: np.ndarray, test: np.ndarray) -> str:
    write_table(folder / "train.parquet", train)
    write_table(folder / "test.parquet", test)
    return str(folder)


def as_text(folder: Path, train: np.ndarray, test: np.ndarray) -> str:
    for split, labels in (("train", train), ("test", test)):
        lines = ["sentence\tlabel", *(f"some words {label}\t{label}" for label in labels)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)


SOURCES = {"npz": as_npz, "idx": as_idx, "huggingface": as_huggingface, "text": as_text}
Write = Callable[[Path, np.ndarray, np.ndarray], str]


@pytest.mark.parametrize("source", SOURCES)
def test_both_splits_have_the_classes_of_the_task(tmp_path: Path, source: Any) -> None:
    """A split that lacks a class, also the highest, has as many classes as the other."""
    write: Write = SOURCES[source]
    path = write(tmp_path, np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 1]))
    tokenizers = ({"vocabulary": 60, "length": 4},) if source == "text" else ()
    recipe = DataRecipe(source=source, path=path, tokenizers=tokenizers)  # type: ignore[arg-type]
    splits = load_splits(recipe)
    assert splits.train.classes == splits.test.classes == ("0", "1", "2")


@pytest.mark.parametrize("source", ["npz", "idx", "huggingface"])
@pytest.mark.parametrize(
    ("train", "test", "classes"),
    [
        ([0, 1, 1], [0, 2], ["0", "1", "2"]),
        ([0, 2, 2], [1, 0], ["0", "1", "2"]),
        ([1, 2, 3], [3, 1], ["1", "2", "3"]),
        ([1, 2], [1], ["1", "2"]),
        ([0, 4], [4], ["0", "1", "2", "3", "4"]),
        ([3, 4], [4], ["0", "1", "2", "3", "4"]),
    ],
)
def test_classes_are_numbered_over_both_splits(
    tmp_path: Path, source: str, train: list[int], test: list[int], classes: list[str]
) -> None:
    path = SOURCES[source](tmp_path, np.array(train), np.array(test))
    splits = load_splits(DataRecipe(source=source, path=path))  # type: ignore[arg-type]
    assert splits.train.classes == splits.test.classes == tuple(classes)
    for part, labels in ((splits.train, train), (splits.test, test)):
        assert [int(part.classes[label]) for label in part.labels] == labels


def test_groups_name_labels_as_the_source_has_them(tmp_path: Path) -> None:
    path = as_npz(tmp_path, np.array([1, 2, 3, 4]), np.array([1, 4]))
    splits = load_splits(DataRecipe(source="npz", path=path, groups=[[1, 2], [3, 4]]))
    assert splits.train.classes == ("1+2", "3+4")
    assert splits.train.labels.tolist() == [0, 0, 1, 1]


# Arrays in an npz.

ROWS = np.zeros((4, 3), np.float32)
COUNT = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "sizes"),
    [
        ({"x_train": ROWS, "y_train": COUNT, "x_test": ROWS[:2], "y_test": COUNT[:2]}, (4, 2)),
        ({"X_train": ROWS, "y_train": COUNT[:, None]}, (4, None)),
        (
            {"train_images": ROWS, "train_labels": COUNT[:, None], "val_images": ROWS[:1],
             "val_labels": COUNT[:1], "test_images": ROWS[:2], "test_labels": COUNT[:2]},
            (4, 2),
        ),
        ({"train_data": ROWS, "train_targets": COUNT, "val_data": ROWS[:3], "val_y": COUNT[:3]},
         (4, 3)),
        ({"X": ROWS, "y": COUNT}, (4, None)),
    ],
)  # fmt: skip
def test_well_known_names_of_arrays_are_understood(
    tmp_path: Path, arrays: dict[str, np.ndarray], sizes: tuple[int, int | None]
) -> None:
    np.savez(tmp_path / "d.npz", allow_pickle=False, **arrays)
    found = read_npz(tmp_path / "d.npz")
    assert len(found["train"]) == sizes[0]
    assert (len(found["test"]) if "test" in found else None) == sizes[1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x_train": ROWS, "y_train": COUNT, "train_inputs": ROWS},
            "train_inputs and x_train, which could all be the inputs of train",
        ),
        (
            {"x_train": ROWS, "y_train": COUNT, "inputs": ROWS, "labels": COUNT},
            "has both x_train and inputs",
        ),
        ({"x_train": ROWS, "y_train": COUNT, "x_test": ROWS}, "no labels for these inputs"),
        ({"features": ROWS, "y_train": COUNT}, "needs train_inputs and train_labels"),
    ],
)
def test_ambiguous_arrays_are_asked_about(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "d.npz", allow_pickle=False, **arrays)
    with pytest.raises(DataError, match=message):
        read_npz(tmp_path / "d.npz")


# Labels of sentences.


def read_sentences(folder: Path, train: Any, test: Any, **more: Any) -> tuple[Any, ...]:
    """Return classes and labels of text whose splits have these columns beside the sentences."""
    folder.mkdir(exist_ok=True)
    for split, columns in (("train", train), ("test", test)):
        count = len(next(iter(columns.values())))
        table = pd.DataFrame({"text": [f"some words {i}" for i in range(count)], **columns})
        table.to_csv(folder / f"{split}.csv", index=bool(more.get("index")))
    recipe: dict[str, Any] = {
        "source": "text", "path": str(folder), "tokenizers": [{"vocabulary": 60, "length": 4}],
        "label_column": more.get("label_column"), "groups": more.get("groups"),
    }  # fmt: skip
    found = load_splits(DataRecipe.model_validate(recipe))
    return found.train.classes, found.train.labels.tolist(), found.test.labels.tolist()


def test_numbers_of_sentences_are_classes_as_those_of_images(tmp_path: Path) -> None:
    """AG News counts its classes from 1."""
    train, test = {"label": [1, 2, 3, 4]}, {"label": [4, 1]}
    expected = (("1", "2", "3", "4"), [0, 1, 2, 3], [3, 0])
    assert read_sentences(tmp_path, train, test) == expected
    grouped = read_sentences(tmp_path, train, test, groups=[[1, 2], [3, 4]])
    assert grouped == (("1+2", "3+4"), [0, 0, 1, 1], [1, 0])
    higher = read_sentences(tmp_path, {"label": [0, 1]}, {"label": [2, 1]})
    assert higher == (("0", "1", "2"), [0, 1], [2, 1])


def test_columns_that_count_sentences_are_no_labels(tmp_path: Path) -> None:
    """GLUE has ``idx`` beside the label, pandas its index."""
    expected = (("0", "1"), [0, 1, 1], [1, 0])
    for name in ("idx", "id", "Unnamed: 0", "sentence_id"):
        train, test = {"label": [0, 1, 1], name: [0, 1, 2]}, {"label": [1, 0], name: [0, 1]}
        assert read_sentences(tmp_path, train, test) == expected
        assert read_sentences(tmp_path, train, test, index=True) == expected
    assert read_sentences(tmp_path, {"label_id": [0, 1, 1]}, {"label_id": [1, 0]}) == expected
    words = {"id": [0, 1], "label": ["no", " yes"]}
    with pytest.raises(DataError, match=r"set data\.label_column"):
        read_sentences(tmp_path, words, words)
    named = read_sentences(tmp_path, words, words, label_column="label")
    assert named == (("no", "yes"), [0, 1], [0, 1])


# Arrays of other libraries.


def test_tables_and_tensors_of_any_kind_are_examples() -> None:
    inputs = RNG.normal(size=(6, 3)).astype(np.float32)
    labels, order = np.array([0, 1, 2, 2, 1, 0]), np.array([3, 1, 9, 5, 4, 2])
    plain = examples_from_arrays(inputs, labels)
    for x, y in (
        (pd.DataFrame(inputs, order), pd.Series(labels, order)),
        (torch.tensor(inputs).to_sparse(), torch.tensor(labels)[:, None]),
        (list(torch.tensor(inputs)), list(torch.tensor(labels))),
        (inputs[::-1][::-1], labels[:, None].astype(np.uint8)),
    ):
        assert examples_from_arrays(x, y).fingerprint == plain.fingerprint


def test_class_names_of_bytes_are_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_train=ROWS, y_train=COUNT, classes=np.array([b"a", b"b"]))
    assert read_npz(tmp_path / "d.npz")["train"].classes == ("a", "b")
