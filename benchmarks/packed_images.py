"""CIFAR-100 as arrays, from a folder of parquet files or from mosaics that are faster to carry.

    python benchmarks/packed_images.py data/cifar100 packed

writes labels.npy and 24 lossless WebP files of 50 x 50 images, 98 MB instead of 184 MB of arrays.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillens.data import DataRecipe, load_splits

SIDE, ROWS, TRAIN = 32, 50, 50_000
PER_FILE = ROWS * ROWS
Arrays = dict[str, NDArray[np.uint8]]


def pack(source: Path, target: Path) -> None:
    """Write mosaics of all images, those of the test split last."""
    arrays = read_images(source)
    target.mkdir(parents=True, exist_ok=True)
    images = np.concatenate([arrays["x_train"], arrays["x_test"]])
    np.save(target / "labels.npy", np.concatenate([arrays["y_train"], arrays["y_test"]]))
    for number in range(len(images) // PER_FILE):
        block = images[number * PER_FILE : (number + 1) * PER_FILE]
        tiles = block.reshape(ROWS, ROWS, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4)
        mosaic = Image.fromarray(tiles.reshape(ROWS * SIDE, ROWS * SIDE, 3))
        mosaic.save(target / f"m{number:02d}.webp", lossless=True, method=5, quality=80)


def read_images(folder: Path) -> Arrays:
    """Return x_train, y_train, x_test and y_test: (N, 32, 32, 3) images and (N,) labels, uint8."""
    labels = folder / "labels.npy"
    if not labels.is_file():
        splits = load_splits(DataRecipe(source="huggingface", path=str(folder)))
        return {
            f"{letter}_{name}": values
            for name, part in (("train", splits.train), ("test", splits.test))
            for letter, values in (
                ("x", part.inputs.numpy().transpose(0, 2, 3, 1)),
                ("y", part.labels.numpy().astype(np.uint8)),
            )
        }
    files = sorted(folder.glob("m*.webp"))
    named = np.load(labels)
    if len(files) * PER_FILE != len(named):
        sys.exit(f"{folder} holds {len(files)} mosaics for {len(named)} labels; pack it again")
    with ThreadPoolExecutor() as pool:
        images = np.concatenate(list(pool.map(_unpack, files)))
    return {
        "x_train": images[:TRAIN], "y_train": named[:TRAIN],
        "x_test": images[TRAIN:], "y_test": named[TRAIN:],
    }  # fmt: skip


def _unpack(path: Path) -> NDArray[np.uint8]:
    mosaic = np.array(Image.open(path).convert("RGB"))
    tiles = mosaic.reshape(ROWS, SIDE, ROWS, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(PER_FILE, SIDE, SIDE, 3)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
