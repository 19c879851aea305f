"""Functions of the student's progress: where the teacher is on its path, and at which temperature.

Progress is a share of a training, from 0 at the first step to 1 after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field

from distillens.errors import SupervisionError

Pace = Callable[[Fraction], Fraction]
"""From the student's progress to the teacher's, increasing; the paper's is the identity."""


def pace_of(description: float | Sequence[tuple[float, float]]) -> Pace:
    """Return a pace from how a recipe writes it.

    Parameters
    ----------
    description
        A speed s > 0 (the teacher's progress is s times the student's, and 1 from then on), or points
        (student's, teacher's) joined by straight lines, such as ``[[0, 0], [0.5, 0.9], [1, 1]]``.

    Raises
    ------
    SupervisionError
        The speed is not positive, or the points do not increase from [0, …] to [1, …] within [0, 1].
    """
    if isinstance(description, (int, float)):
        if not 0 < description < float("inf"):
            raise SupervisionError(f"a pace must be positive and finite, got {description}")
        # Exact, so that a speed of 1 meets every checkpoint at the paper's step.
        speed = Fraction(str(description))
        return lambda progress: min(Fraction(1), speed * progress)
    points = [(Fraction(str(x)), Fraction(str(y))) for x, y in description]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    joined = len(points) >= 2 and xs[0] == 0 and xs[-1] == 1 and len(set(xs)) == len(xs)
    if not (joined and xs == sorted(xs) and ys == sorted(ys) and ys[0] >= 0 and ys[-1] <= 1):
        raise SupervisionError(
            "the points of a pace must go from [0, …] to [1, …], both numbers increasing within "
            f"[0, 1], got {[list(map(float, point)) for point in points]}"
        )

    def along(progress: Fraction) -> Fraction:
        for (x0, y0), (x1, y1) in pairwise(points):
            if progress <= x1:
                return y0 + (y1 - y0) * (progress - x0) / (x1 - x0)
        return ys[-1]

    return along


class TemperatureSchedule(BaseModel):
    """A temperature that moves from ``start`` to ``end`` along a straight line over the training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: float = Field(gt=0, allow_inf_nan=False)
    end: float = Field(gt=0, allow_inf_nan=False)

    def at(self, progress: float) -> float:
        """Return the temperature at a share of the training."""
        return self.start + (self.end - self.start) * min(1.0, progress)

    def __format__(self, _: str) -> str:
        return f"{self.start:g}→{self.end:g}"
