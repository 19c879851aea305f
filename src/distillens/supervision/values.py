"""The supervisions: labels, a teacher, a mixture, and a switch from one to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from distillens.data.batches import Batch
from distillens.errors import SupervisionError
from distillens.supervision.losses import (
    LABEL_LOSSES,
    TEACHER_LOSSES,
    Loss,
    check_temperature,
    smoothed_cross_entropy,
    smoothed_squared_error,
)
from distillens.supervision.protocol import Stateless, Supervision, Teacher, separate_from

TeacherLoss = Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Tensor]
"""(student logits, teacher logits, labels, temperature, mask) → scalar."""


class OneHot(Stateless):
    """The dataset labels (eq. 1, or squared error).

    ``smoothing`` ε mixes them with the uniform distribution: (1 − ε)·one-hot + ε/C.
    """

    def __init__(self, loss: Loss = "cross-entropy", smoothing: float = 0.0) -> None:
        if not 0 <= smoothing <= 1:
            raise SupervisionError(f"label smoothing must lie in [0, 1], got {smoothing}")
        self._loss = LABEL_LOSSES[loss]
        self._smoothed = (
            smoothed_cross_entropy if loss == "cross-entropy" else smoothed_squared_error
        )
        self._smoothing = smoothing

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the mean loss to the labels."""
        if self._smoothing:
            return self._smoothed(logits, batch.labels, self._smoothing, batch.mask)
        return self._loss(logits, batch.labels, batch.mask)


class Distillation:
    """A teacher's outputs at a temperature (eq. 2 or 13); labels are not used.

    The same class serves every teacher: which one it is decides the logits.

    Parameters
    ----------
    teacher
        Fixed, recorded, online, averaged or trained alongside.
    temperature
        A number, or a function of the step.
    loss
        "cross-entropy", "squared-error", or a function (student logits, teacher logits, labels,
        temperature, mask) → scalar.
    """

    def __init__(
        self,
        teacher: Teacher,
        temperature: float | Callable[[int], float] = 1.0,
        loss: Loss | TeacherLoss = "cross-entropy",
    ) -> None:
        self.teacher = teacher
        if not callable(temperature):
            check_temperature(temperature)
        self._temperature = temperature
        self._loss = loss if callable(loss) else without_labels(TEACHER_LOSSES[loss])

    def temperature(self, step: int) -> float:
        """Return the temperature at a step."""
        now = self._temperature
        return check_temperature(now(step)) if callable(now) else now

    def separate_from(self, student: nn.Module) -> bool:
        """Keep the teacher as it is while the student changes."""
        return separate_from(self.teacher, student)

    def advance(self, batch: Batch, step: int) -> None:
        """Let the teacher follow."""
        self.teacher.advance(batch, step)

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the mean loss to the teacher's outputs."""
        teacher_logits = self.teacher.logits(batch)
        if teacher_logits.shape != logits.shape:
            raise SupervisionError(
                f"the teacher gives logits of shape {tuple(teacher_logits.shape)}, the student "
                f"{tuple(logits.shape)}; both must have the same classes"
            )
        return self._loss(
            logits, teacher_logits.to(logits), batch.labels, self.temperature(step), batch.mask
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's state, where it has one."""
        return self.teacher.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the teacher's state."""
        self.teacher.load_state_dict(state)


def without_labels(
    loss: Callable[[Tensor, Tensor, float, Tensor | None], Tensor],
) -> TeacherLoss:
    """Return a teacher's loss in the form that is also given the labels."""

    def ignoring(
        logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float, mask: Tensor | None
    ) -> Tensor:
        return loss(logits, teacher, temperature, mask)

    return ignoring


class _Pair:
    """Two supervisions whose weights depend on the step; one of weight 0 is not computed."""

    def __init__(self, first: Supervision, second: Supervision) -> None:
        self.parts = (first, second)

    def weight(self, step: int) -> float:
        """Return the second one's weight; the first one's is the rest."""
        raise NotImplementedError

    def separate_from(self, student: nn.Module) -> bool:
        """Keep the teachers of both parts as they are while the student changes."""
        parted = [separate_from(part, student) for part in self.parts]
        return any(parted)

    def advance(self, batch: Batch, step: int) -> None:
        """Advance the parts that count."""
        for part, weight in self._weighed(step):
            if weight or _learns(part):
                part.advance(batch, step)

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the weighted sum of the parts that count."""
        terms = [
            part.loss(logits, batch, step) * weight
            for part, weight in self._weighed(step)
            if weight
        ]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def _weighed(self, step: int) -> list[tuple[Supervision, float]]:
        second = self.weight(step)
        return [(self.parts[0], 1 - second), (self.parts[1], second)]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both parts."""
        return {str(place): part.state_dict() for place, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the states of both parts."""
        for place, part in enumerate(self.parts):
            part.load_state_dict(state[str(place)])


def _learns(part: Supervision) -> bool:
    # A teacher that trains alongside must not stand still while its part does not count.
    if isinstance(part, _Pair):
        return any(_learns(inner) for inner in part.parts)
    return bool(part.state_dict())


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

    def weight(self, step: int) -> float:
        """Return the share of the second supervision at a step."""
        if step < self._at:
            return 0.0
        if step >= self._at + self._window:
            return 1.0
        return (step - self._at + 1) / (self._window + 1)
