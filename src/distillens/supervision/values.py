"""The supervisions: labels, a teacher, a mixture, and a switch from one to another."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distillens.data.batches import Batch
from distillens.errors import SupervisionError, nearest
from distillens.supervision import losses, protocol
from distillens.supervision.protocol import Composite, NotCapturable, Supervision, Teacher
from distillens.supervision.recipe import Loss
from distillens.supervision.teachers.followed import as_teacher

_Loss = TypeVar("_Loss")

TeacherLoss = Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Tensor]
"""(student logits, teacher logits, labels, temperature, mask) → scalar.

Logits come in float32 (or float64), with zeros at positions that the mask leaves out.
"""


class OneHot(Composite):
    """The dataset labels (eq. 1, or squared error).

    ``smoothing`` ε mixes them with the uniform distribution: (1 − ε)·one-hot + ε/C. Labels are
    integers; without a mask, those equal to -100 do not count.
    """

    across_examples = False

    def __init__(self, loss: Loss = "cross-entropy", smoothing: float = 0.0) -> None:
        self._loss = _named(loss, losses.LABEL_LOSSES)
        self._smoothing = losses.check_smoothing(smoothing)

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the mean loss to the labels.

        Raises
        ------
        DataError
            The labels are no integers, do not fit the logits, or one is no class.
        """
        logits = protocol.student_logits(logits, batch, self)
        checked = batch.labels_are_classes(logits.shape[-1])
        return self._loss(
            logits, batch.labels, batch.mask, smoothing=self._smoothing, checked=checked
        )

    def phase(self, step: int) -> Hashable:
        """Return the same for all steps."""
        return "labels"


class Distillation(Composite):
    """A teacher's outputs at a temperature (eq. 2 or 13); labels are not used.

    The same class serves every teacher: which one it is decides the logits.

    Parameters
    ----------
    teacher
        Fixed, recorded, online, averaged or trained alongside. A module is taken as a `FixedTeacher`.
    temperature
        A number, or a function of the step.
    loss
        "cross-entropy", "squared-error", or a function (student logits, teacher logits, labels,
        temperature, mask) → scalar. A function gets float32 logits. It may compare the examples of a
        batch; if it is a mean over them, its attribute ``across_examples = False`` declares it and lets
        micro-batches and several processes compute it in parts. If it does the same operations in every
        step, its attribute ``capturable = True`` declares it and lets a GPU replay them as a CUDA graph.
    """

    def __init__(
        self,
        teacher: Teacher | nn.Module,
        temperature: float | Callable[[int], float] = 1.0,
        loss: Loss | TeacherLoss = "cross-entropy",
    ) -> None:
        self.teacher = as_teacher(teacher)
        self.parts = (self.teacher,)
        if not callable(temperature):
            losses.check_temperature(temperature)
        self._temperature = temperature
        self.across_examples = callable(loss) and protocol.is_across_examples(loss)
        self._capturable = not callable(loss) or bool(getattr(loss, "capturable", False))
        self._loss = loss if callable(loss) else _teacher_loss(loss)
        # In place while steps are captured: the teacher's logits of an epoch, and the temperature.
        self._table: Tensor | None = None
        self._table_source: Tensor | None = None
        self._temperature_there: Tensor | None = None

    def temperature(self, step: int) -> float:
        """Return the temperature at a step."""
        now = self._temperature
        return losses.check_temperature(now(step)) if callable(now) else now

    def advance(self, batch: Batch, step: int) -> None:
        """Advance the teacher, and copy its logits of an epoch to where captured steps read them."""
        self.teacher.advance(batch, step)
        if batch.rows is None:
            return
        table, own = protocol.table_of(self.teacher, batch.rows), self._table
        if table is not self._table_source:
            self._table_source = table
            if table is None or own is None or own.shape != table.shape or own.dtype != table.dtype:
                self._table = None if table is None else table.clone()
            else:
                own.copy_(table)
        if callable(self._temperature):
            now = self.temperature(step)
            if self._temperature_there is None:
                self._temperature_there = torch.empty((), device=batch.inputs.device)
            self._temperature_there.fill_(now)

    def phase(self, step: int) -> Hashable:
        """Return the phase, in which steps share a CUDA graph: the place of the teacher's logits.

        Raises
        ------
        NotCapturable
            The loss or the teacher does not allow it.
        """
        if not self._capturable:
            raise NotCapturable("the loss function has no attribute capturable = True")
        if self._table is not None:
            return self._table.data_ptr()
        return protocol.phase_of(self.teacher, step)

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the mean loss to the teacher's outputs.

        Raises
        ------
        SupervisionError
            Teacher and student have different classes.
        """
        logits = protocol.student_logits(logits, batch, self)
        batch = replace(batch.fitted(logits), classes=logits.shape[-1])
        if batch.rows is None or self._table is None:
            given = self.teacher.logits(batch)
        else:
            given = self._table.index_select(0, batch.rows.positions)
        given = protocol.teacher_logits(given, batch)
        temperature: Any = self._temperature_there
        if batch.rows is None or temperature is None:
            temperature = self.temperature(step)
        # The teacher's logits are not rounded to the type of the student's.
        student, teacher, mask = losses.both_logits(logits, given, batch.mask)
        with torch.autocast(student.device.type, enabled=False):
            return self._loss(student, teacher, batch.labels, temperature, mask)

    def class_counts(self, batch: Batch) -> set[int]:
        """Return the teacher's numbers of classes that are possible."""
        return super().class_counts(batch) or {self.teacher.logits(batch).shape[-1]}


def _named(name: str, known: Mapping[str, _Loss]) -> _Loss:
    if name not in known:
        raise SupervisionError(f"unknown loss {name!r}{nearest(str(name), known)}")
    return known[name]


def _teacher_loss(name: str) -> TeacherLoss:
    """Return a named loss in the form that is also given the labels."""
    loss = _named(name, losses.TEACHER_LOSSES)
    return lambda logits, teacher, labels, temperature, mask: loss(
        logits, teacher, temperature, mask
    )


class _Pair(Composite):
    """Two supervisions whose weights depend on the step; one of weight 0 is not computed."""

    def __init__(self, first: Supervision, second: Supervision) -> None:
        self.parts = (protocol.checked_supervision(first), protocol.checked_supervision(second))

    @property
    def across_examples(self) -> bool:
        """Whether the loss of a part may compare the examples of a batch."""
        return any(protocol.is_across_examples(part) for part in self.parts)

    @property
    def reads_layers(self) -> bool:
        """Whether a part reads inner features."""
        return any(protocol.reads_layers(part) for part in self.parts)

    def weight(self, step: int) -> float:
        """Return the second one's weight; the first one's is the rest."""
        raise NotImplementedError

    def phase(self, step: int) -> Hashable:
        """Return the parts with non-zero weight and their phases."""
        # Both phases, because capturability must not depend on the step.
        phases = [protocol.phase_of(part, step) for part in self.parts]
        counting = [weight > 0 for _, weight in self._weighed(step)]
        if any(phase is None for phase, counts in zip(phases, counting, strict=True) if counts):
            return None
        return tuple((counts and phase) for phase, counts in zip(phases, counting, strict=True))

    def advance(self, batch: Batch, step: int) -> None:
        """Advance the parts that count."""
        for part, weight in self._weighed(step):
            # A teacher that trains alongside must not stand still while its part does not count.
            if weight or part.state_dict():
                part.advance(batch, step)

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the weighted sum of the parts that count."""
        logits = protocol.student_logits(logits, batch, self)
        terms = [
            part.loss(logits, batch, step) * weight
            for part, weight in self._weighed(step)
            if weight
        ]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def _weighed(self, step: int) -> list[tuple[Supervision, float]]:
        second = self.weight(step)
        return [(self.parts[0], 1 - second), (self.parts[1], second)]


class Mixed(_Pair):
    """(1 − α) · one supervision + α · another (Table 6 of the supervision-complexity paper)."""

    def __init__(self, labels: Supervision, teacher: Supervision, alpha: float) -> None:
        if not 0 <= alpha <= 1:
            raise SupervisionError(f"alpha must lie in [0, 1], got {alpha}")
        super().__init__(labels, teacher)
        self._alpha = alpha

    def weight(self, step: int) -> float:
        """Return α."""
        return self._alpha


class Switched(_Pair):
    """One supervision, then another (loss switching of the student-teacher deviations paper).

    Parameters
    ----------
    first, then
        Before and after.
    at
        The step at which the change begins.
    window
        Steps over which the weight moves along a straight line; 0 switches at once.
    """

    def __init__(self, first: Supervision, then: Supervision, at: int, window: int = 0) -> None:
        if at < 0 or window < 0:
            raise SupervisionError(f"a switch needs at and window of 0 or more, got {at}, {window}")
        super().__init__(first, then)
        self._at, self._window = at, window

    def phase(self, step: int) -> Hashable:
        """Return which part counts; None within the window, where the weights change at every step."""
        phase = super().phase(step)
        return phase if self.weight(step) in (0, 1) else None

    def weight(self, step: int) -> float:
        """Return the share of the second supervision at a step."""
        if step < self._at:
            return 0.0
        if step >= self._at + self._window:
            return 1.0
        return (step - self._at + 1) / (self._window + 1)
