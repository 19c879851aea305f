"""The supervisions: labels, a teacher, and a mixture of supervisions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distillens.data.batches import Batch
from distillens.errors import SupervisionError
from distillens.supervision.losses import (
    LABEL_LOSSES,
    TEACHER_LOSSES,
    Loss,
    check_temperature,
)
from distillens.supervision.protocol import Stateless, Supervision, Teacher


class OneHot(Stateless):
    """The dataset labels (eq. 1, or squared error)."""

    def __init__(self, loss: Loss = "cross-entropy") -> None:
        self._loss = LABEL_LOSSES[loss]

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the mean loss to the labels."""
        return self._loss(logits, batch.labels, batch.mask)


class Distillation(Stateless):
    """A teacher's outputs at a temperature (eq. 2 or 13); labels are not used.

    The same class serves a fixed and an online teacher: which teacher it is decides the logits.
    """

    def __init__(
        self, teacher: Teacher, temperature: float = 1.0, loss: Loss = "cross-entropy"
    ) -> None:
        self.teacher = teacher
        self.temperature = check_temperature(temperature)
        self._loss = TEACHER_LOSSES[loss]

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
        return self._loss(logits, teacher_logits.to(logits), self.temperature, batch.mask)


class Mixed:
    """(1 − α) · one supervision + α · another (Table 6 of the supervision-complexity paper)."""

    def __init__(self, labels: Supervision, teacher: Supervision, alpha: float) -> None:
        if not 0 <= alpha <= 1:
            raise SupervisionError(f"alpha must lie in [0, 1], got {alpha}")
        self.parts = (labels, teacher)
        self.weights = (1 - alpha, alpha)

    def advance(self, batch: Batch, step: int) -> None:
        """Advance the parts that count."""
        for part, weight in zip(self.parts, self.weights, strict=True):
            if weight:
                part.advance(batch, step)

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the weighted sum; a part of weight 0 is not computed."""
        terms = [
            part.loss(logits, batch, step) * weight
            for part, weight in zip(self.parts, self.weights, strict=True)
            if weight
        ]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both parts."""
        return {str(place): part.state_dict() for place, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the states of both parts."""
        for place, part in enumerate(self.parts):
            part.load_state_dict(state[str(place)])
