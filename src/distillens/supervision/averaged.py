"""A teacher averaged over checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from distillens.data.batches import Batch
from distillens.errors import SupervisionError
from distillens.supervision.losses import full_precision
from distillens.supervision.protocol import Stateless, Teacher, separate_from


class AveragedTeacher(Stateless):
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

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float]) -> None:
        if not teachers or len(teachers) != len(weights) or any(w <= 0 for w in weights):
            raise SupervisionError(
                f"an average needs teachers with positive weights, got {len(teachers)} teachers "
                f"and weights {list(weights)}"
            )
        self._teachers = list(teachers)
        self._weights = [weight / sum(weights) for weight in weights]

    def separate_from(self, student: nn.Module) -> bool:
        """Keep the teachers as they are while the student changes."""
        parted = [separate_from(teacher, student) for teacher in self._teachers]
        return any(parted)

    def advance(self, batch: Batch, step: int) -> None:
        """Advance all of them."""
        for teacher in self._teachers:
            teacher.advance(batch, step)

    def logits(self, batch: Batch) -> Tensor:
        """Return the mean logits."""
        parts = [
            weight * full_precision(teacher.logits(batch))
            for teacher, weight in zip(self._teachers, self._weights, strict=True)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def decaying_weights(count: int, decay: float) -> list[float]:
    """Return weights of an exponential average over ``count`` checkpoints, the last one's being 1.

    Weights below a thousandth are left out by the caller's choice of ``count``.
    """
    return [decay ** (count - 1 - place) for place in range(count)]
