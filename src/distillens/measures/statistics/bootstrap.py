"""A bootstrap whose cost hardly grows with the number of examples, of means, shares and slopes.

Every statistic of an audit is a function of sums over examples. So a resample, in which example i
counts w_i times, needs only weighted sums. Up to `BLOCKS` of them, single examples are resampled. Beyond
that, the examples are dealt at random into blocks of equal size (to within one) and whole blocks
are resampled.

Why blocks are valid: for independent examples the sums over randomly dealt blocks are independent
with the same distribution, and a sum over N examples is a sum over B blocks. So drawing B blocks
estimates the variance of any sum without bias but for the factor (B − 1)/B; its relative error is
about √(2/B), 3 % at B = 2,000, of which the interval's width has half. Smooth functions of sums
follow by the delta method. Dealing at random keeps this true for files that are sorted by class.
Examples that hang together, such as frames of one film, need blocks that the data define; this does
not know them.

Straight lines are fitted by least squares and by Huber's estimate. Both come with columns whose sums
over examples give the slope of a resample. Sources: Huber, *Robust estimation of a location
parameter*, 1964; one step from the estimate in each resample, as in Salibián-Barrera and Zamar,
*Bootstrapping robust estimates of regression*, 2002 (here with the scale held where it is).

Shapes: N examples, B blocks, R resamples, K sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distillens.errors import MeasureError
from distillens.measures.statistics.intervals import LEVEL, wilson_interval
from distillens.results.base import Estimate, Interval
from distillens.results.confidence import Infinite

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

BLOCKS = 2_000
FEWEST_RESAMPLES = 100

FEWEST_POINTS = 10
"""Fewer points define no slope."""

HUBER_K = 1.345
"""Residuals up to this number of scales have full weight: 95 % efficiency under normal noise."""

_MAD_TO_DEVIATION = 1.4826
_SMALLEST_SCALE = 1e-6
_ITERATIONS = 500


class Resampler:
    """The same R resamples of the examples for every statistic, so that differences are paired.

    Raises
    ------
    MeasureError
        There are fewer than 100 resamples or no example.
    """

    def __init__(
        self, examples: int, resamples: int = 1000, seed: int = 0, blocks: int = BLOCKS
    ) -> None:
        if resamples < FEWEST_RESAMPLES:
            raise MeasureError(
                f"{resamples} resamples are too few for 95 % intervals; "
                f"give {FEWEST_RESAMPLES} or more"
            )
        if examples < 1:
            raise MeasureError("there are no examples to draw from; give at least 1")
        rng = np.random.default_rng(seed)
        self.resamples, self.seed = resamples, seed
        self.blocks = min(examples, blocks)
        self._block_N = None
        self.method = f"bootstrap percentiles over examples, {resamples} resamples"
        if examples > blocks:
            self._block_N = rng.permutation(examples) % blocks
            self.method = (
                f"bootstrap percentiles over {blocks:,} random blocks of examples, "
                f"{resamples} resamples"
            )
        self._weights_RB = np.empty((resamples, self.blocks))
        for row in self._weights_RB:
            sampled = rng.integers(self.blocks, size=self.blocks)
            row[:] = np.bincount(sampled, minlength=self.blocks)

    def sums(self, columns: Sequence[NDArray]) -> Array:
        """Return the resampled sums (R, K) of K arrays of shape (N,)."""
        if self._block_N is None:
            blocks_BK = np.stack([np.asarray(c, dtype=np.float64) for c in columns], axis=1)
        else:
            blocks_BK = np.stack(
                [np.bincount(self._block_N, weights=c, minlength=self.blocks) for c in columns],
                axis=1,
            )
        return self._weights_RB @ blocks_BK

    def estimate(self, value: float, values_R: Array) -> Estimate:
        """Return a value with the percentile interval of its resamples.

        None stands for the interval where more than 5 % of the resamples do not define the value.
        """
        finite = values_R[np.isfinite(values_R)]
        if len(finite) < LEVEL * self.resamples:
            return Estimate(value)
        low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value, Interval(float(low), float(high), LEVEL, self.method))

    def mean(self, values_N: NDArray) -> Estimate:
        """Return the mean of an array with its interval; an infinite mean has none."""
        if not np.isfinite(values_N).all():
            return Estimate(float(np.mean(values_N)))
        return self._mean(values_N, np.ones(len(values_N), dtype=bool))

    def without_infinite(self, values_N: NDArray) -> Infinite | None:
        """Return the number of infinite values and the mean of the others; None without any."""
        finite_N = np.isfinite(values_N)
        count = int(np.count_nonzero(~finite_N))
        if count == 0:
            return None
        if count == len(values_N):
            return Infinite(count, Estimate(float("nan")))
        return Infinite(count, self._mean(np.where(finite_N, values_N, 0.0), finite_N))

    def _mean(self, values_N: NDArray, of_N: NDArray) -> Estimate:
        """Return the mean over some examples; the values of the others are 0."""
        sums_R2 = self.sums([of_N, values_N])
        return self.estimate(float(values_N[of_N].mean()), ratio(sums_R2[:, 1], sums_R2[:, 0]))


@lru_cache(maxsize=2)
def shared_resampler(examples: int, resamples: int, seed: int) -> Resampler:
    """Return the resampler of these settings; the last two are kept, one for each split of a run.

    All students of a run are resampled alike, and making the weights costs as much as using them.
    """
    return Resampler(examples, resamples, seed)


def ratio(above_R: Array, below_R: Array) -> Array:
    """Divide resampled sums; NaN where a resample has nothing to divide by."""
    out = np.full(len(above_R), np.nan)
    np.divide(above_R, below_R, out=out, where=below_R > 0)
    return out


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
