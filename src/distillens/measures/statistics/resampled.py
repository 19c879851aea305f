"""Shares and slopes with their bootstrap resamples, so that the difference of two of them is paired.

Straight lines are fitted by least squares and by Huber's estimate. Both come with columns whose sums
over examples give the slope of a resample. Sources: Huber, *Robust estimation of a location
parameter*, 1964; one step from the estimate in each resample, as in Salibián-Barrera and Zamar,
*Bootstrapping robust estimates of regression*, 2002 (here with the scale held where it is).

Shapes: N examples, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.measures.statistics.bootstrap import Resampler, ratio
from distillens.measures.statistics.intervals import wilson_interval
from distillens.results.base import Estimate

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEWEST_POINTS = 10
"""Fewer points define no slope."""

HUBER_K = 1.345
"""Residuals up to this number of scales have full weight: 95 % efficiency under normal noise."""

_MAD_TO_DEVIATION = 1.4826
_SMALLEST_SCALE = 1e-6
_ITERATIONS = 500


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
    sums_R5 = resampler.sums(huber_columns(UNBOUNDED, x, y, part_N))
    return Resampled(least_squares_slope(x[part_N], y[part_N]), huber_slopes(UNBOUNDED, sums_R5))


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


@dataclass(frozen=True)
class HuberLine:
    """y ≈ intercept + slope · x; ``scale`` is what residuals are measured by."""

    slope: float
    intercept: float
    scale: float
    converged: bool


UNBOUNDED = HuberLine(0.0, 0.0, float("inf"), converged=True)
"""A line from which one Newton step is least squares, since no residual is bounded."""


def least_squares_slope(x: Array, y: Array) -> float:
    """Return the slope of y on x; the points must differ in x."""
    dx = x - x.mean()
    return float(np.sum(dx * (y - y.mean())) / np.sum(dx * dx))


def huber_line(x: Array, y: Array) -> HuberLine:
    """Fit a line that outlying y hardly move, by reweighted least squares.

    The scale is 1.4826 times the median absolute residual, at least 10⁻⁶ of y's deviation: where
    more than half of the points lie on one line it is that line. The scale settles in the first
    iterations and is then held, so that the rest is a convex problem.
    """
    origin = float(x.mean())
    dx = x - origin
    slope = least_squares_slope(x, y)
    level = float(y.mean())
    floor = max(_SMALLEST_SCALE * float(y.std()), np.finfo(np.float64).tiny)
    scale, converged = floor, False
    for iteration in range(_ITERATIONS):
        residual = y - level - slope * dx
        size = np.abs(residual)
        if iteration < 30:
            scale = max(_MAD_TO_DEVIATION * float(np.median(size)), floor)
        weight = np.minimum(1.0, HUBER_K * scale / np.maximum(size, floor * 1e-6))
        w, wx, wy = weight.sum(), weight @ dx, weight @ residual
        wxx, wxy = weight @ (dx * dx), weight @ (dx * residual)
        spread = w * wxx - wx * wx
        step = float((w * wxy - wx * wy) / spread)
        slope += step
        level += float((wy - step * wx) / w)
        if abs(step) < 1e-9 * max(1.0, abs(slope)) and iteration > 3:
            converged = True
            break
    return HuberLine(slope, level - slope * origin, scale, converged)


def huber_columns(line: HuberLine, x: Array, y: Array, part_N: NDArray) -> list[Array]:
    """Return ψ′, ψ′x, ψ′x², ψ and ψx of the points of a part and 0 elsewhere."""
    residual = y - line.intercept - line.slope * x
    bound = HUBER_K * line.scale
    inner = ((np.abs(residual) <= bound) & part_N).astype(np.float64)
    psi = np.clip(residual, -bound, bound) * part_N
    return [inner, inner * x, inner * x * x, psi, psi * x]


def huber_slopes(line: HuberLine, sums_R5: Array) -> Array:
    """Return slopes one Newton step from the line in each resample, from `huber_columns`' sums."""
    j, jx, jxx, g, gx = sums_R5.T
    spread = j * jxx - jx * jx
    step = np.full(len(j), np.nan)
    np.divide(j * gx - jx * g, spread, out=step, where=spread > 1e-12 * j * jxx)
    return line.slope + step
