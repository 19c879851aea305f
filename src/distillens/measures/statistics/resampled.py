"""Numbers with their bootstrap resamples, so that the difference of two of them is paired.

Shapes: N examples, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.measures.statistics.bootstrap import Resampler, ratio
from distillens.measures.statistics.intervals import wilson_interval
from distillens.measures.statistics.slopes import (
    huber_columns,
    huber_line,
    huber_slopes,
    least_squares_columns,
    least_squares_slope,
    least_squares_slopes,
)
from distillens.results.base import Estimate

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEWEST_POINTS = 10
"""Fewer points define no slope."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """A number and its value in each resample."""

    value: float
    values_R: Array

    @classmethod
    def undefined(cls, resampler: Resampler) -> Resampled:
        """Return NaN with resamples of NaN."""
        return cls(float("nan"), np.full(resampler.resamples, np.nan))

    def estimate(self, resampler: Resampler) -> Estimate:
        """Return the number with its percentile interval."""
        return resampler.estimate(self.value, self.values_R)

    def minus(self, other: Resampled, resampler: Resampler) -> Estimate:
        """Return the difference to a number of the same resamples, with its interval."""
        return resampler.estimate(self.value - other.value, self.values_R - other.values_R)


def resampled_share(of_N: Mask, which_N: Mask, resampler: Resampler) -> Resampled:
    """Return the share of the examples ``of_N`` that are also in ``which_N``; NaN if there are none."""
    if not of_N.any():
        return Resampled.undefined(resampler)
    hits_N = of_N & which_N
    sums_R2 = resampler.sums([of_N, hits_N])
    value = np.count_nonzero(hits_N) / np.count_nonzero(of_N)
    return Resampled(float(value), ratio(sums_R2[:, 1], sums_R2[:, 0]))


def share_estimate(share: Resampled, points: int, resampler: Resampler) -> Estimate:
    """Return a share with its interval.

    At a share of 0 or 1 all resamples agree, so Wilson's interval is used instead.
    """
    if share.value in (0.0, 1.0):
        return Estimate(share.value, wilson_interval(share.value, points))
    return share.estimate(resampler)


def slope_is_defined(x: Array) -> bool:
    """Return whether points define a slope: there are at least 10, and they differ in x."""
    return len(x) >= FEWEST_POINTS and bool(x.min() < x.max())


def resampled_slope(x_N: Array, y_N: Array, part_N: Mask, resampler: Resampler) -> Resampled:
    """Return the least-squares slope of y on x over some of the points; NaN if it is not defined."""
    if not slope_is_defined(x_N[part_N]):
        return Resampled.undefined(resampler)
    x, y = _centred(x_N, part_N), _centred(y_N, part_N)
    sums_R5 = resampler.sums(least_squares_columns(x, y, part_N))
    return Resampled(least_squares_slope(x[part_N], y[part_N]), least_squares_slopes(sums_R5))


def resampled_huber_slope(
    x_N: Array, y_N: Array, part_N: Mask, resampler: Resampler
) -> tuple[Resampled, bool]:
    """Return Huber's slope of y on x over some of the points, and whether its fit converged.

    The points must define a slope.
    """
    x, y = _centred(x_N, part_N), _centred(y_N, part_N)
    line = huber_line(x[part_N], y[part_N])
    sums_R5 = resampler.sums(huber_columns(line, x, y, part_N))
    return Resampled(line.slope, huber_slopes(line, sums_R5)), line.converged


def _centred(values_N: Array, part_N: Mask) -> Array:
    # The origin does not change a slope, but sums of squares lose fewer digits near it, and equal x
    # and y give a slope of exactly 1.
    return values_N - values_N[part_N].mean()
