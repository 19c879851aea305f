"""A teacher averaged over checkpoints."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from distillens.data.batches import Batch, Rows
from distillens.errors import SupervisionError
from distillens.supervision import protocol
from distillens.supervision.losses import full_precision
from distillens.supervision.protocol import Composite, Teacher
from distillens.supervision.recipe import AverageRecipe
from distillens.supervision.teachers.followed import TeacherCheckpoint, as_teacher

NEGLIGIBLE = 1e-3
"""Weights of a decaying average below this share of the newest one are left out."""


class AveragedTeacher(Composite):
    """The weighted mean of several teachers' logits.

    Averaging logits is the normalised geometric mean of their probabilities, at every temperature;
    unlike an average of weights it needs no statistics to be measured again, and it reads the
    logits that are cached.

    Parameters
    ----------
    teachers
        At least one.
    weights
        One positive number each; they are divided by their sum.
    """

    def __init__(self, teachers: Sequence[Teacher | nn.Module], weights: Sequence[float]) -> None:
        sound = all(0 < weight < float("inf") for weight in weights)
        if not teachers or len(teachers) != len(weights) or not sound:
            raise SupervisionError(
                f"an average needs teachers with positive weights, got {len(teachers)} teachers "
                f"and weights {list(weights)}"
            )
        self.parts = [as_teacher(teacher) for teacher in teachers]
        self._weights = [weight / sum(weights) for weight in weights]
        self._table: tuple[list[Tensor], Tensor] | None = None

    def logits(self, batch: Batch) -> Tensor:
        """Return the mean logits.

        Raises
        ------
        SupervisionError
            The teachers have different numbers of classes.
        """
        parts = [protocol.teacher_logits(each.logits(batch), batch) for each in self.parts]
        return self._mean(parts)

    def table(self, rows: Rows) -> Tensor | None:
        """Return the mean logits of all examples, where all teachers have them."""
        parts = [protocol.table_of(teacher, rows) for teacher in self.parts]
        tables = [part for part in parts if part is not None]
        if len(tables) < len(parts):
            return None
        if self._table is None or [*map(id, self._table[0])] != [*map(id, tables)]:
            self._table = (tables, self._mean(tables))
        return self._table[1]

    def phase(self, step: int) -> Hashable:
        """Return the phases of the teachers."""
        return tuple(protocol.phase_of(teacher, step) for teacher in self.parts)

    def _mean(self, parts: Sequence[Tensor]) -> Tensor:
        if len({part.shape for part in parts}) > 1:
            raise SupervisionError(
                "the teachers of an average give logits of shapes "
                f"{', '.join(str(tuple(part.shape)) for part in parts)}; all must have the same classes"
            )
        total = torch.zeros((), device=parts[0].device)
        for part, weight in zip(parts, self._weights, strict=True):
            total = total + weight * full_precision(part)
        return total


def averaged_places(last: int, average: AverageRecipe | None) -> range:
    """Return the places of the checkpoints that an average up to a place consists of."""
    if average is None:
        return range(last, last + 1)
    count = average.last or 1 + math.floor(math.log(NEGLIGIBLE) / math.log(average.decay or 0.5))
    return range(max(0, last + 1 - count), last + 1)


def averaged(
    path: Sequence[TeacherCheckpoint], average: AverageRecipe | None
) -> list[TeacherCheckpoint]:
    """Return checkpoints each of which averages those up to itself."""
    if average is None:
        return list(path)

    def mean(last: int) -> Teacher:
        used = [path[place] for place in averaged_places(last, average)]
        ages = range(len(used) - 1, -1, -1)
        weights = [1.0 if average.decay is None else average.decay**age for age in ages]
        return AveragedTeacher([point.load() for point in used], weights)

    return [
        TeacherCheckpoint(point.step, partial(mean, place), point.epoch)
        for place, point in enumerate(path)
    ]
