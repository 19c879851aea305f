"""From the `data` part of a recipe to the splits of a study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from distillens.data.examples import Examples, Splits
from distillens.data.prepare import add_label_noise, regroup, split_off, subset
from distillens.data.recipe import DataRecipe
from distillens.data.resize import resize_images
from distillens.data.sources.folders import read_folder
from distillens.data.sources.huggingface import read_huggingface
from distillens.data.sources.named import Source, read_digits, read_idx, read_npz
from distillens.data.sources.text import Texts, read_text
from distillens.data.tokens.tokenizers import tokenise
from distillens.errors import DataError


def load_splits(recipe: DataRecipe) -> Splits:
    """Read and prepare the splits that a recipe asks for.

    Raises
    ------
    DataError
        The source is missing or damaged, or holds fewer examples than are asked for.
    """
    texts = _read_text(recipe) if recipe.source == "text" else None
    source = texts.source if texts is not None else _resized(_read(recipe), recipe)
    if recipe.groups is not None:
        source = {name: regroup(part, recipe.groups) for name, part in source.items()}
    train, test = _train_and_test(source, recipe)
    if len(train.labels.unique()) < 2:
        raise DataError("the training examples have one class; at least two are needed")
    validation = None
    if recipe.validation_size:
        train, validation = split_off(
            train, recipe.validation_size, recipe.seed + 1, "data.validation_size"
        )
    if recipe.train_size is not None:
        train = subset(train, recipe.train_size, recipe.seed + 2, "data.train_size")
    noisy, changed = add_label_noise(train, recipe.label_noise, recipe.seed + 3)
    splits = Splits(noisy, validation, test, changed)
    return splits if texts is None else tokenise(splits, texts, recipe.tokenizers)


def _read_text(recipe: DataRecipe) -> Texts:
    assert recipe.path is not None  # the recipe refuses text without a path
    return read_text(
        recipe.path,
        recipe.text_column,
        recipe.label_column,
        config=recipe.config,
        test_split=recipe.test_split,
        # Groups name labels as the source has them.
        from_one=recipe.groups is None,
    )


def _read(recipe: DataRecipe) -> Source:
    if recipe.path is None:
        return read_digits()
    # Groups name labels as the source has them.
    from_one = recipe.groups is None
    if recipe.source == "idx":
        return read_idx(Path(recipe.path), from_one=from_one)
    if recipe.source == "npz":
        return read_npz(Path(recipe.path), from_one=from_one)
    if recipe.source == "huggingface":
        return read_huggingface(
            recipe.path,
            recipe.image_column,
            recipe.label_column,
            config=recipe.config,
            test_split=recipe.test_split,
            image_size=recipe.image_size,
            from_one=from_one,
        )
    return read_folder(Path(recipe.path), recipe.image_size)


def _resized(source: Source, recipe: DataRecipe) -> Source:
    # The other sources resize each image as they decode it, since images may differ in size.
    if recipe.image_size is None or recipe.source in ("folder", "huggingface"):
        return source
    side = recipe.image_size
    for part in source.values():
        if part.inputs.ndim != 4:
            raise DataError(
                f"data.image_size is {side}, but the inputs have shape {part.input_shape}; it resizes "
                "images (channels, height, width)"
            )
    return {
        name: replace(part, inputs=torch.from_numpy(resize_images(part.inputs.numpy(), side)))
        for name, part in source.items()
    }


def _train_and_test(source: Source, recipe: DataRecipe) -> tuple[Examples, Examples]:
    train = source["train"]
    if "test" not in source:
        if recipe.test_size is None:
            raise DataError(
                f"source {recipe.source!r} has no test split; set data.test_size to take one out "
                f"of its {len(train)} examples"
            )
        return split_off(train, recipe.test_size, recipe.seed, "data.test_size")
    test = source["test"]
    if test.input_shape != train.input_shape:
        raise DataError(
            f"training inputs have shape {train.input_shape}, test inputs {test.input_shape}"
        )
    if recipe.test_size is not None:
        test = subset(test, recipe.test_size, recipe.seed, "data.test_size")
    return train, test
