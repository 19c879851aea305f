"""A bootstrap whose cost hardly grows with the number of examples.

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

Shapes: N examples, B blocks, R resamples, K sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from distillens.errors import MeasureError
from distillens.measures.statistics.intervals import LEVEL
from distillens.results.base import Estimate, Interval
from distillens.results.confidence import Infinite

Array = NDArray[np.float64]

BLOCKS = 2_000
FEWEST_RESAMPLES = 100


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
