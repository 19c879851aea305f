"""Folders of image files: both layouts are read as they lie, and damage is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CLASSES, class_folders, picture, write_picture
from PIL import Image

from distillens.data import DataRecipe, Splits, load_splits
from distillens.errors import DataError, RecipeError
from distillens.study import parse_recipe


def tiny_imagenet(folder: Path) -> None:
    """Write two classes as Tiny ImageNet has them, listed in another order than the sorted one."""
    for wnid in ("n02", "n01"):
        for place in range(3):
            write_picture(
                folder / "train" / wnid / "images" / f"{wnid}_{place}.JPEG", picture(place)
            )
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t7\t7\n")
    lines = []
    for place, wnid in enumerate(("n02", "n01", "n02")):
        write_picture(folder / "val" / "images" / f"val_{place}.JPEG", picture(50 + place))
        lines.append(f"val_{place}.JPEG\t{wnid}\t0\t0\t7\t7\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("n02\nn01\n")
    write_picture(folder / "test" / "images" / "test_0.JPEG", picture(99))


def load(folder: Path, **more: Any) -> Splits:
    return load_splits(DataRecipe(source="folder", path=str(folder), **more))


@pytest.mark.parametrize("test", ["test", "val"])
def test_class_folders_are_read_as_they_are_stored(tmp_path: Path, test: str) -> None:
    written = class_folders(tmp_path, test)
    splits = load(tmp_path)
    assert splits.train.classes == CLASSES
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert splits.test.labels.tolist() == [0, 1, 2]
    for split, part in (("train", splits.train), (test, splits.test)):
        stored = [pixels for key, pixels in written.items() if key.startswith(split)]
        assert np.array_equal(part.inputs.permute(0, 2, 3, 1).numpy(), np.stack(stored))


def test_tiny_imagenet_is_read_with_its_annotations(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    splits = load(tmp_path)
    assert splits.train.classes == ("n01", "n02")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [1, 0, 1]
    for place in range(3):
        stored = np.asarray(Image.open(tmp_path / "val" / "images" / f"val_{place}.JPEG"))
        assert np.array_equal(splits.test.inputs[place].permute(1, 2, 0).numpy(), stored)


def test_without_a_test_folder_one_is_taken_out(tmp_path: Path) -> None:
    class_folders(tmp_path, "elsewhere")
    with pytest.raises(DataError, match=r"no test split; set data\.test_size"):
        load(tmp_path)
    assert len(load(tmp_path, test_size=3).test) == 3


def test_grey_pictures_have_one_channel_unless_one_is_coloured(tmp_path: Path) -> None:
    class_folders(tmp_path, channels=1)
    assert load(tmp_path).train.input_shape == (1, 8, 8)
    write_picture(tmp_path / "test" / "cat" / "0.png", picture(3))
    splits = load(tmp_path)
    assert splits.train.input_shape == (3, 8, 8)
    assert bool((splits.train.inputs == splits.train.inputs[:, :1]).all())


def test_pictures_are_cropped_to_the_centre_and_resized(tmp_path: Path) -> None:
    class_folders(tmp_path)
    wide = np.zeros((16, 40, 3), np.uint8)
    wide[:, 6:34] = (10, 200, 30)
    write_picture(tmp_path / "train" / "cat" / "0.png", wide)
    with pytest.raises(DataError, match=r"0\.png is 40x16, .*1\.png 8x8; set data\.image_size"):
        load(tmp_path)
    splits = load(tmp_path, image_size=4)
    assert splits.train.input_shape == (3, 4, 4)
    assert splits.train.inputs[0].flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 30]


def test_what_is_no_picture_is_left_alone(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("three whiskers")
    assert len(load(tmp_path).train) == 6


def empty_class(folder: Path) -> None:
    (folder / "train" / "fox").mkdir()


def unknown_class(folder: Path) -> None:
    write_picture(folder / "test" / "fox" / "0.png", picture(0))


def damaged_image(folder: Path) -> None:
    file = folder / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:60])


def text_as_image(folder: Path) -> None:
    (folder / "test" / "emu" / "0.png").write_text("not a picture")


def deep_image(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "train" / "dog" / "1.png")


def no_classes(folder: Path) -> None:
    for name in CLASSES:
        (folder / "train" / name).rename(folder / name)


def no_train(folder: Path) -> None:
    (folder / "train").rename(folder / "training")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_class, "train/fox holds no image"),
        (unknown_class, "test/fox is a class that the training folder lacks"),
        (damaged_image, r"dog/1\.png is no readable image"),
        (text_as_image, r"emu/0\.png is no readable image"),
        (deep_image, r"dog/1\.png has more than 8 bits a channel \(mode I;16\)"),
        (no_classes, "train has no class folders"),
        (no_train, "has no train folder"),
    ],
)
def test_damaged_class_folders_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    class_folders(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("wnids.txt", "n01\nn02\nn03\n", r"names 'n03', but .*train/n03 does not exist"),
        ("wnids.txt", "n01\n", r"train/n02 exists, but .*wnids\.txt does not name it"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01\n", r"no class for .*val_1\.JPEG"),
        ("val/val_annotations.txt", "val_0.JPEG n01\n", "line 1: '' is no class"),
        ("val/val_annotations.txt", "a.JPEG\tn01\na.JPEG\tn02\n", "a.JPEG is listed twice"),
        ("val/val_annotations.txt", "val_0.JPEG\tn09\t0\n", "line 1: 'n09' is no class"),
    ],
)
def test_damaged_tiny_imagenet_is_refused(
    tmp_path: Path, file: str, content: str, message: str
) -> None:
    tiny_imagenet(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_picture_that_an_annotation_names_is_missed(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    (tmp_path / "val" / "images" / "val_2.JPEG").unlink()
    with pytest.raises(DataError, match=r"names val_2\.JPEG, but .* does not exist"):
        load(tmp_path)


def test_a_recipe_says_where_the_folder_is_and_how_large_images_are(tiny: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no folder /nowhere"):
        load(Path("/nowhere"))
    for data, message in (
        ({"source": "folder"}, "needs data.path"),
        (
            {"source": "text", "path": "x", "image_size": 8, "tokenizers": [{"vocabulary": 9}]},
            "image_size resizes images; source 'text' has none",
        ),
        ({"source": "folder", "path": "x", "image_size": 0}, "greater than or equal to 1, got 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe({**tiny, "data": data})
