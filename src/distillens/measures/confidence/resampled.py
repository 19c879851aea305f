"""Numbers with their resamples, so that differences of two of them are paired.

Shapes: N examples, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.measures.confidence.deviation import FEWEST
from distillens.measures.statistics.bootstrap import Resampler, ratio
from distillens.measures.statistics.intervals import wilson_interval
from distillens.measures.statistics.slopes import (
    least_squares_columns,
    least_squares_slope,
    least_squares_slopes,
)
from distillens.results.base import Estimate

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A number and its resamples."""

    value: float
    drawn_R: Array

    def estimate(self, resampler: Resampler) -> Estimate:
        """Return the number with its interval."""
        return resampler.estimate(self.value, self.drawn_R)

    def minus(self, other: Drawn, resampler: Resampler) -> Estimate:
        """Return the difference to a number of the same resamples, with its interval."""
        return resampler.estimate(self.value - other.value, self.drawn_R - other.drawn_R)


def drawn_share(of_N: Mask, which_N: Mask, resampler: Resampler) -> Drawn:
    """Return the share of some examples that are also among others; there must be some."""
    hits_N = of_N & which_N
    sums_R2 = resampler.sums([of_N, hits_N])
    value = np.count_nonzero(hits_N) / np.count_nonzero(of_N)
    return Drawn(float(value), ratio(sums_R2[:, 1], sums_R2[:, 0]))


def sure_share(share: Drawn, points: int, resampler: Resampler) -> Estimate:
    """Return a share with its interval; where all points agree resamples do so too, so Wilson's."""
    if share.value in (0.0, 1.0):
        return Estimate(share.value, wilson_interval(share.value, points))
    return share.estimate(resampler)


def drawn_slope(x_N: Array, y_N: Array, part_N: Mask, resampler: Resampler) -> Drawn:
    """Return the least-squares slope on a part of the points; NaN where they define none."""
    inside = x_N[part_N]
    if len(inside) < FEWEST or inside.min() == inside.max():
        return Drawn(float("nan"), np.full(resampler.resamples, np.nan))
    # Slopes don't change with the origin, but the sums of squares cancel less near it.
    x, y = x_N - inside.mean(), y_N - y_N[part_N].mean()
    sums_R5 = resampler.sums(least_squares_columns(x, y, part_N))
    return Drawn(least_squares_slope(x[part_N], y[part_N]), least_squares_slopes(sums_R5))
