"""From the `data` part of a recipe to the splits of a study: groups of classes, noise, subsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from distillens.data.examples import Examples, LabelChange, Splits
from distillens.data.recipe import DataRecipe
from distillens.data.sources.images import resize_images
from distillens.data.sources.source import LoadOptions
from distillens.data.tokens import tokenise
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


def regroup(examples: Examples, groups: Sequence[Sequence[int]]) -> Examples:
    """Join classes into groups; the new label is the group's place. Classes in no group are left out.

    Raises
    ------
    DataError
        A class stands in two groups, does not exist, or no example is left.
    """
    table = np.full(len(examples.classes), -1, dtype=np.int64)
    for place, group in enumerate(groups):
        for label in group:
            if not 0 <= label < len(table):
                raise DataError(
                    f"data.groups names class {label}; there are classes 0 to {len(table) - 1}"
                )
            if table[label] >= 0:
                raise DataError(f"data.groups has class {label} twice; a class fits one group")
            table[label] = place
    if not all(len(group) for group in groups):
        raise DataError("data.groups has an empty group; each needs at least one class")
    labels = table[examples.labels.numpy()]
    kept = examples.take(np.flatnonzero(labels >= 0))
    if not len(kept):
        raise DataError("data.groups leaves no example")
    names = tuple("+".join(examples.classes[c] for c in group) for group in groups)
    shortened = tuple(name if len(name) <= 40 else f"{name[:37]}..." for name in names)
    return replace(kept, labels=torch.from_numpy(labels[labels >= 0]), classes=shortened)


def split_off(examples: Examples, size: int, seed: int, what: str) -> tuple[Examples, Examples]:
    """Return (rest, part): ``size`` examples sampled without replacement, classes in proportion.

    Raises
    ------
    DataError
        There are fewer than ``size + 1`` examples.
    """
    if not 0 < size < len(examples):
        raise DataError(
            f"{what} asks for {size} of {len(examples)} examples; "
            f"it must lie between 1 and {len(examples) - 1}"
        )
    chosen = stratified(examples.labels.numpy(), size, seed)
    rest = np.setdiff1d(np.arange(len(examples)), chosen, assume_unique=True)
    return examples.take(rest), examples.take(chosen)


def subset(examples: Examples, size: int, seed: int, what: str) -> Examples:
    """Return ``size`` examples, classes in proportion, in the order of the source."""
    return examples if size == len(examples) else split_off(examples, size, seed, what)[1]


def stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return ``size`` sorted positions with each class's share kept to within one example."""
    generator = np.random.default_rng(seed)
    # Rank each example within its class in random order; taking the lowest relative ranks takes the
    # same share of every class, ties between classes being broken at random.
    order = generator.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    rank += generator.uniform(0, 1e-9, len(labels))
    return np.sort(np.argsort(rank, kind="stable")[:size])


def add_label_noise(
    examples: Examples, share: float, seed: int
) -> tuple[Examples, tuple[LabelChange, ...]]:
    """Replace the labels of a share of the examples by another class, sampled uniformly.

    Every replaced label differs from the one before, so ``share`` is the share of wrong labels.

    Returns
    -------
    The examples and the list of changes, by stable index.
    """
    classes = len(examples.classes)
    if share == 0:
        return examples, ()
    if classes < 2:
        raise DataError("data.label_noise needs at least two classes")
    generator = np.random.default_rng(seed)
    before = examples.labels.numpy()
    count = round(share * len(before))
    rows = np.sort(generator.choice(len(before), count, replace=False))
    after = before.copy()
    after[rows] = (before[rows] + generator.integers(1, classes, count)) % classes
    index = examples.indices.numpy()
    changes = tuple(LabelChange(int(index[row]), int(before[row]), int(after[row])) for row in rows)
    return replace(examples, labels=torch.from_numpy(after)), changes
