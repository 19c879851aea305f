"""What the networks of a study predict: classes of examples, or something else of a task's own.

The steps of a study are the same for every task. A task says how batches are made, what is stored of a
network's outputs, and how accuracies with their intervals are computed from it.

Shapes: N examples, C classes, M predictions that an audit compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

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


TeacherSource = Callable[[str, Callable[[], nn.Module]], Teacher]
"""Makes a teacher out of a checkpoint, of which it gets the digest and what loads it."""


class Task:
    """What the networks of a study predict: the class of each example.

    Other tasks are subclasses.
    """

    every_position: ClassVar[bool] = False
    """Whether a network gives logits for every position of its inputs, (B, T, C)."""
    notes: ClassVar[tuple[str, ...]] = ()
    """What a reader of the results must know of the task."""

    @property
    def audit_notes(self) -> tuple[str, ...]:
        """What a reader of the audits must know of the task."""
        return ()

    def classes(self, splits: Splits) -> int:
        """Return how many classes a prediction chooses from."""
        return len(splits.train.classes)

    def source(self, batches: Batches) -> EpochSource:
        """Return the batches of a training; by default as they are."""
        return batches

    def teachers(self, cache: LogitCache) -> TeacherSource:
        """Return what makes teachers out of checkpoints; by default the cache for the same batches."""
        return cache.teacher

    def file(self, files: NetworkFiles) -> Path:
        """Return the npz file that holds what `predict` returns for each split."""
        return files.logits

    def predict(
        self, context: StudyContext, network: nn.Module, examples: Examples, role: Role
    ) -> NDArray:
        """Return what a run stores of a network on un-augmented examples; by default logits, (N, C)."""
        normalisation = context.normalisation_of(role)
        return predict(network, examples, normalisation, device=context.accelerator.device)

    def accuracy(self, stored: NDArray, examples: Examples) -> float:
        """Return the share of right predictions, from what a run stores."""
        return accuracy(stored, examples.labels.numpy())[0]

    def count(self, examples: Examples) -> int:
        """Return the number of predictions."""
        return len(examples)

    def loss(self, stored: NDArray, examples: Examples, form: str) -> float:
        """Return the mean loss of a prediction, in the form of the recipe's losses."""
        loss = cross_entropy if form == "cross-entropy" else squared_error
        return float(loss(torch.from_numpy(stored), examples.labels))

    def outcomes(self, stored: NDArray, examples: Examples) -> NDArray:
        """Return what the estimates below need: by default whether each class is right, (N,)."""
        return is_right(stored, examples.labels.numpy())

    def accuracy_estimate(
        self, cells: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate:
        """Return the mean test accuracy of networks of several seeds."""
        return accuracy_estimate([c.test_accuracy for c in cells], cells[0].test_count, level)

    def gain(
        self, cells: Sequence[Cell], baseline: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate:
        """Return the mean difference of test accuracies, paired by seed and by example."""
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
        """Return the mean test loss of networks of several seeds; None where it is not reported."""
        return None

    def logits(
        self,
        context: StudyContext,
        files: NetworkFiles,
        network: Callable[[], nn.Module | None],
        split: str,
    ) -> NDArray:
        """Return the logits of a trained network that an audit compares, (M, C)."""
        return stored_arrays(files.logits, files)[split]

    def labels(self, context: StudyContext, split: str) -> tuple[NDArray, NDArray]:
        """Return the labels of the predictions that an audit compares, and their indices, (M,)."""
        examples = getattr(context.splits, split)
        return examples.labels.numpy(), examples.indices.numpy()
