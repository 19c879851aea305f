"""From a source to the splits of a study: groups of classes, noise, subsets, validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from distillens.data.examples import Examples, LabelChange
from distillens.errors import DataError


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
    if size == len(examples):
        return examples
    return split_off(examples, size, seed, what)[1]


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
