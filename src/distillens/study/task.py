"""What the networks of a study predict: classes of examples, or something else of a task's own.

The steps of a study are the same for every task. A task says how batches are made, what is stored of a
network's outputs, and how accuracies with their intervals are computed from it.

Shapes: N examples, C classes, M predictions that an audit compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distillens.data import Batches, Examples, Splits
from distillens.data.batches import EpochSource
from distillens.measures import accuracy_estimate, paired_gain
from distillens.results.base import Estimate
from distillens.results.training import Cell
from distillens.runs.layout import NetworkFiles
from distillens.runs.read import stored_arrays
from distillens.supervision import LogitCache, Teacher, cross_entropy, squared_error
from distillens.training import accuracy, is_right, predict

if TYPE_CHECKING:
    from distillens.study.context import StudyContext
    from distillens.study.normalisations import Role

Outcomes = Callable[[Cell], NDArray]
"""Returns for a trained network what `Task.outcomes` says of the test examples."""


class TeacherSource(Protocol):
    """Makes teachers out of checkpoints."""

    def teacher(self, digest: str, module: Callable[[], nn.Module]) -> Teacher:
        """Return a checkpoint with the digest as a teacher; ``module`` loads it."""
        ...


class Task(Protocol):
    """What the networks of a study predict."""

    every_position: bool
    """Whether a network gives logits for every position of its inputs, (B, T, C)."""
    notes: tuple[str, ...]
    """What a reader of the results must know of the task."""
    audit_notes: tuple[str, ...]
    """What a reader of the audits must know of the task."""

    def classes(self, splits: Splits) -> int:
        """Return how many classes a prediction chooses from."""
        ...

    def source(self, batches: Batches) -> EpochSource:
        """Return the batches of a training."""
        ...

    def teachers(self, cache: LogitCache) -> TeacherSource:
        """Return what makes teachers out of checkpoints, from a cache for the same batches."""
        ...

    def file(self, files: NetworkFiles) -> Path:
        """Return the npz file that holds what `predict` returns for each split."""
        ...

    def predict(
        self, context: StudyContext, network: nn.Module, examples: Examples, role: Role
    ) -> NDArray:
        """Return what a run stores of a network's outputs on examples, (N, …)."""
        ...

    def accuracy(self, stored: NDArray, examples: Examples) -> float:
        """Return the share of right predictions."""
        ...

    def count(self, examples: Examples) -> int:
        """Return the number of predictions."""
        ...

    def loss(self, stored: NDArray, examples: Examples, form: str) -> float:
        """Return the mean loss of a prediction, in the form of the recipe's losses."""
        ...

    def outcomes(self, stored: NDArray, examples: Examples) -> NDArray:
        """Return what the estimates below need of a network, (N, …)."""
        ...

    def accuracy_estimate(
        self, cells: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate:
        """Return the mean test accuracy of networks of several seeds."""
        ...

    def gain(
        self, cells: Sequence[Cell], baseline: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate:
        """Return the mean difference of test accuracies, paired by seed."""
        ...

    def loss_estimate(
        self, cells: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate | None:
        """Return the mean test loss of networks of several seeds; None where it is not reported."""
        ...

    def logits(
        self,
        context: StudyContext,
        files: NetworkFiles,
        network: Callable[[], nn.Module | None],
        split: str,
    ) -> NDArray:
        """Return the logits of a trained network that an audit compares, (M, C)."""
        ...

    def labels(self, context: StudyContext, split: str) -> tuple[NDArray, NDArray]:
        """Return the labels of the predictions that an audit compares, and their indices, (M,)."""
        ...


class ClassifyExamples:
    """Networks name the class of each example."""

    every_position = False
    notes: tuple[str, ...] = ()
    audit_notes: tuple[str, ...] = ()

    def classes(self, splits: Splits) -> int:
        """Return the number of classes of the examples."""
        return len(splits.train.classes)

    def source(self, batches: Batches) -> EpochSource:
        """Return the batches as they are."""
        return batches

    def teachers(self, cache: LogitCache) -> TeacherSource:
        """Return the cache."""
        return cache

    def file(self, files: NetworkFiles) -> Path:
        """Return the file of the logits."""
        return files.logits

    def predict(
        self, context: StudyContext, network: nn.Module, examples: Examples, role: Role
    ) -> NDArray:
        """Return the logits on the un-augmented examples, (N, C)."""
        normalisation = context.normalisation_of(role)
        return predict(network, examples, normalisation, device=context.accelerator.device)

    def accuracy(self, stored: NDArray, examples: Examples) -> float:
        """Return the share of examples whose class is right."""
        return accuracy(stored, examples.labels.numpy())[0]

    def count(self, examples: Examples) -> int:
        """Return the number of examples."""
        return len(examples)

    def loss(self, stored: NDArray, examples: Examples, form: str) -> float:
        """Return the mean loss to the labels."""
        loss = cross_entropy if form == "cross-entropy" else squared_error
        return float(loss(torch.from_numpy(stored), examples.labels))

    def outcomes(self, stored: NDArray, examples: Examples) -> NDArray:
        """Return for each example whether its class is right, (N,)."""
        return is_right(stored, examples.labels.numpy())

    def accuracy_estimate(
        self, cells: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate:
        """Return the mean with an interval over seeds and examples."""
        return accuracy_estimate([c.test_accuracy for c in cells], cells[0].test_count, level)

    def gain(
        self, cells: Sequence[Cell], baseline: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate:
        """Return the mean difference, paired by seed and by example."""
        differences_SN = [
            outcomes(cell).astype(float) - outcomes(other)
            for cell, other in zip(cells, baseline, strict=True)
        ]
        return paired_gain(
            [cell.test_accuracy for cell in cells],
            [cell.test_accuracy for cell in baseline],
            level,
            differences_N=np.mean(differences_SN, axis=0),
        )

    def loss_estimate(
        self, cells: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate | None:
        """Return None: classifiers are compared by their accuracies."""
        return None

    def logits(
        self,
        context: StudyContext,
        files: NetworkFiles,
        network: Callable[[], nn.Module | None],
        split: str,
    ) -> NDArray:
        """Return the stored logits of all examples."""
        return stored_arrays(files.logits, files)[split]

    def labels(self, context: StudyContext, split: str) -> tuple[NDArray, NDArray]:
        """Return the given labels of the examples and their stable indices."""
        examples = getattr(context.splits, split)
        return examples.labels.numpy(), examples.indices.numpy()
