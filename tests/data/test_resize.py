"""Images of another size: exact means over areas, for every source of images."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from distillens.data import DataRecipe, load_splits
from distillens.data.sources.images import resize_images
from distillens.errors import DataError, ModelError, RecipeError
from distillens.models import ModelRecipe, build_model


def mean_over_area(row: np.ndarray, side: int) -> list[Fraction]:
    """Integrate a row of pixels over ``side`` intervals of equal length, by fractions."""
    length = len(row)
    found = []
    for cell in range(side):
        start, end = Fraction(cell * length, side), Fraction((cell + 1) * length, side)
        parts = (
            max(Fraction(0), min(end, Fraction(p + 1)) - max(start, Fraction(p))) * int(row[p])
            for p in range(length)
        )
        found.append(sum(parts, Fraction(0)) / (end - start))
    return found


@pytest.mark.parametrize(("length", "side"), [(32, 16), (28, 16), (7, 3), (3, 7), (5, 5), (9, 1)])
def test_bytes_are_the_rounded_means_over_areas(length: int, side: int) -> None:
    image = np.random.default_rng(length).integers(0, 256, (length, length)).astype(np.uint8)
    rows = np.array([mean_over_area(row, side) for row in image])
    # The mean over a rectangle is the mean over rows of the means over columns.
    weights = np.array([mean_over_area(row, side) for row in np.eye(length)])
    exact = weights.T @ rows
    expected = [[int((2 * value + 1) // 2) for value in row] for row in exact]
    assert resize_images(image, side).tolist() == expected
    floats = resize_images(image.astype(np.float32), side)
    assert floats.dtype == np.float32
    assert np.allclose(floats, exact.astype(float), rtol=1e-6)


def test_half_the_size_is_the_mean_of_blocks_also_beyond_one_chunk() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5000, 1, 4, 4)).astype(np.uint8)
    blocks = images.reshape(5000, 1, 2, 2, 2, 2).sum((3, 5)).astype(int)
    assert (resize_images(images, 2) == (blocks + 2) // 4).all()


def test_the_largest_centred_square_is_taken() -> None:
    image = np.zeros((4, 9), np.uint8)
    image[:, 2:6] = 8
    assert resize_images(image, 2).tolist() == [[8, 8], [8, 8]]
    assert resize_images(image.T, 4).tolist() == [[8] * 4] * 4


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"resizes images, these inputs have shape \(4,\)"):
        resize_images(np.zeros(4, np.uint8), 2)
    with pytest.raises(DataError, match="uint8 or floating point, got int32"):
        resize_images(np.zeros((4, 4), np.int32), 2)
    path = tmp_path / "vectors.npz"
    labels = np.arange(6) % 2
    vectors = np.zeros((6, 3), np.float32)
    np.savez(path, x_train=vectors, y_train=labels, x_test=vectors, y_test=labels)
    with pytest.raises(DataError, match=r"image_size is 2, but the inputs have shape \(3,\)"):
        load_splits(DataRecipe(source="npz", path=str(path), image_size=2))


def test_every_source_gives_the_same_small_images(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (6, 6, 6, 3)).astype(np.uint8)
    labels = np.arange(6) % 2
    expected = resize_images(images.transpose(0, 3, 1, 2), 4)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    for split in ("train", "test"):
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = tmp_path / "folder" / split / f"c{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{row}.png")
    table = tmp_path / "table"
    table.mkdir()
    for split in ("train", "test"):
        # Images of a table may differ in size where image_size is given: the border is cut off here.
        cells = [png(np.pad(images[0], ((0, 0), (3, 3), (0, 0)))), *map(png, images[1:])]
        datasets.Dataset.from_dict(
            {"image": cells, "label": labels.tolist()},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(2)}
            ),
        ).to_parquet(table / f"{split}.parquet")
    for source, path in (("npz", "a.npz"), ("folder", "folder"), ("huggingface", "table")):
        recipe = DataRecipe(source=source, path=str(tmp_path / path), image_size=4)  # type: ignore[arg-type]
        splits = load_splits(recipe)
        order = np.argsort(labels, kind="stable") if source == "folder" else np.arange(6)
        for part in (splits.train, splits.test):
            assert torch.equal(part.inputs, torch.from_numpy(expected[order])), source


def png(image: np.ndarray) -> dict[str, bytes]:
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "png")
    return {"bytes": stored.getvalue()}


def test_digits_are_resized_too() -> None:
    splits = load_splits(DataRecipe(test_size=100, image_size=4))
    assert splits.train.input_shape == (1, 4, 4)


def test_an_unpadded_lenet_ends_in_one_pixel_and_needs_sixteen() -> None:
    small = ModelRecipe(name="lenet5", width=8, pad_to=0)  # type: ignore[call-arg]
    network: Any = build_model(small, (3, 16, 16), 100, seed=0)
    assert network.fc1.in_features == 16 * 8
    assert network.conv1.padding == (0, 0)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 100)
    padded: Any = build_model(ModelRecipe(name="lenet5", width=8), (3, 16, 16), 100, seed=0)  # type: ignore[call-arg]
    assert padded.conv1.padding == (8, 8)
    with pytest.raises(
        ModelError, match=r"at least 16x16 pixels, these have 15x15 after padding to 0"
    ):
        build_model(small, (3, 15, 15), 100, seed=0)
    with pytest.raises(
        RecipeError, match=r"'lenet5': pad_to: .*greater than or equal to 0, got -1"
    ):
        build_model(ModelRecipe(name="lenet5", pad_to=-1), (3, 32, 32), 10, seed=0)  # type: ignore[call-arg]
