"""From the `data` part of a recipe to the splits of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from distillens.data.examples import Examples, Splits
from distillens.data.prepare import add_label_noise, regroup, split_off, subset
from distillens.data.recipe import DataRecipe
from distillens.data.resize import resize_images
from distillens.data.sources.source import LoadOptions
from distillens.data.tokens.tokenizers import tokenise
from distillens.errors import DataError


def load_splits(recipe: DataRecipe) -> Splits:
    """Read and prepare the splits that a recipe asks for.

    Raises
    ------
    DataError
        The source is missing or damaged, or holds fewer examples than are asked for.
    """
    settings = recipe.settings()
    if problem := settings.problem():
        raise DataError(problem)
    # Groups name labels as the source has them.
    options = LoadOptions(recipe.image_size, from_one=recipe.groups is None)
    source = {
        split: _resized(part, recipe.image_size)
        for split, part in _checked(settings.load(options), recipe.source).items()
    }
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
    return tokenise(splits, recipe.tokenizers) if settings.is_text else splits


def _checked(loaded: Any, name: str) -> Mapping[str, Examples]:
    """Refuse what a source returns if it is no mapping from splits to examples."""
    sound = isinstance(loaded, Mapping) and "train" in loaded
    if not sound or not all(isinstance(part, Examples) for part in loaded.values()):
        raise DataError(
            f"source {name!r} returned {type(loaded).__name__}; its load() must return a mapping "
            'with the Examples of "train" and perhaps "test"'
        )
    return loaded


def _resized(part: Examples, side: int | None) -> Examples:
    if side is None or part.input_shape[-2:] == (side, side):
        return part
    if part.inputs.ndim != 4:
        raise DataError(
            f"data.image_size is {side}, but the inputs have shape {part.input_shape}; it resizes "
            "images (channels, height, width)"
        )
    return replace(part, inputs=torch.from_numpy(resize_images(part.inputs.numpy(), side)))


def _train_and_test(
    source: Mapping[str, Examples], recipe: DataRecipe
) -> tuple[Examples, Examples]:
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
