"""Teachers: a fixed module, an array of logits, and the online teacher that follows a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from distillens.data.batches import Batch
from distillens.errors import SupervisionError
from distillens.sequences import run
from distillens.supervision.pace import Pace, pace_of
from distillens.supervision.protocol import Stateless, Teacher


class FixedTeacher(Stateless):
    """Any module, in evaluation mode; the offline teacher.

    The module gets the batch's inputs, and those of its further inputs that its ``forward`` takes by
    name. A text model of transformers gives the logits that it has for each sentence alone, as in
    `distillens.models.SequenceModel`; padding is marked by -1.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Return the module's outputs for the batch."""
        return run(self.module.to(batch.inputs.device), batch.inputs, batch.further)


class RecordedTeacher(Stateless):
    """Logits that were computed before, looked up by stable index.

    Parameters
    ----------
    logits_NC
        (N, C) array or tensor; memory-mapped arrays are read row by row.
    indices_N
        (N,) stable index of each row; None where row i belongs to index i.
    """

    def __init__(self, logits_NC: np.ndarray | Tensor, indices_N: Tensor | None = None) -> None:
        if logits_NC.ndim < 2:
            raise SupervisionError(
                f"teacher logits must have shape (N, C), got {tuple(logits_NC.shape)}"
            )
        self._logits = logits_NC
        self._rows = None if indices_N is None else _rows_by_index(indices_N, len(logits_NC))

    def logits(self, batch: Batch) -> Tensor:
        """Return the rows of the batch's examples.

        Raises
        ------
        SupervisionError
            An example has no recorded row, or a row is not finite.
        """
        index = batch.indices
        outside = (index < 0) | (
            index >= (len(self._logits) if self._rows is None else len(self._rows))
        )
        rows = index if self._rows is None else self._rows[index.clamp(0, len(self._rows) - 1)]
        missing = outside | (rows < 0)
        if bool(missing.any()):
            raise SupervisionError(
                f"no teacher logits for the example with index {int(index[missing][0])}; "
                f"{len(self._logits)} rows were given"
            )
        found = self._logits[rows if isinstance(self._logits, Tensor) else rows.numpy()]
        values = torch.as_tensor(found).to(batch.inputs.device)
        if not bool(torch.isfinite(values).all()):
            raise SupervisionError("the teacher logits hold a NaN or an infinity")
        return values


def _rows_by_index(indices: Tensor, rows: int) -> Tensor:
    if len(indices) != rows:
        raise SupervisionError(f"{rows} rows of teacher logits but {len(indices)} indices")
    table = torch.full((int(indices.max()) + 1,), -1, dtype=torch.int64)
    table[indices] = torch.arange(rows)
    return table


@dataclass(frozen=True)
class TeacherCheckpoint:
    """A place on the teacher's trajectory: the step after which it was saved, and how to load it."""

    step: int
    load: Callable[[], Teacher]


class OnlineTeacher(Stateless):
    """The teacher's checkpoints in the order in which it learned (Algorithm 1).

    At the student's step t the teacher is the checkpoint min{tᵢ > t}; after the last, the last. The
    student's steps are mapped to the teacher's by their share of the whole training, so that a
    student with other batches or epochs follows the same path; with equal step counts the map is
    the identity of the paper.

    Parameters
    ----------
    checkpoints
        In any order; at least one.
    student_steps
        Steps of the student's whole training.
    pace
        From the student's progress to the teacher's.
    """

    def __init__(
        self,
        checkpoints: Sequence[TeacherCheckpoint],
        student_steps: int,
        *,
        pace: Pace | None = None,
    ) -> None:
        if not checkpoints:
            raise SupervisionError("an online teacher needs at least one checkpoint, got none")
        self._checkpoints = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
        self._student_steps = student_steps
        self._pace = pace or pace_of(1)
        self._place: int | None = None
        self._teacher: Teacher | None = None

    def place(self, step: int) -> int:
        """Return which checkpoint, in order of steps, the student follows at its step."""
        progress = min(Fraction(1), Fraction(step, self._student_steps))
        teacher_step = self._pace(progress) * self._checkpoints[-1].step
        for place, checkpoint in enumerate(self._checkpoints):
            if checkpoint.step > teacher_step:
                return place
        return len(self._checkpoints) - 1

    def advance(self, batch: Batch, step: int) -> None:
        """Load the checkpoint of this step where it is another than before."""
        place = self.place(step)
        if place != self._place:
            self._teacher = self._checkpoints[place].load()
            self._place = place
        assert self._teacher is not None
        self._teacher.advance(batch, step)

    def logits(self, batch: Batch) -> Tensor:
        """Return the current checkpoint's outputs.

        Raises
        ------
        SupervisionError
            ``advance`` was not called before.
        """
        if self._teacher is None:
            raise SupervisionError("advance(batch, step) must be called before logits(batch)")
        return self._teacher.logits(batch)
