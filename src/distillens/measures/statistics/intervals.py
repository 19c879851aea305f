"""Means with intervals: over seeds, over test examples, over both.

Shapes: S seeds, N test examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distillens.errors import MeasureError
from distillens.results.base import Estimate, Interval

LEVEL = 0.95


def mean_over_seeds(values_S: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the mean with its Student-t interval; for one seed there is none.

    Raises
    ------
    MeasureError
        There is no value, one is not finite, or the level is not within (0, 1).
    """
    values = _check_values(values_S, "values")
    mean = float(values.mean())
    if len(values) == 1:
        return Estimate(mean)
    half = _t_half_width(values, level)
    return Estimate(
        mean, Interval(mean - half, mean + half, level, f"Student t over {len(values)} seeds")
    )


def accuracy_estimate(
    accuracies_S: Sequence[float], test_count: int, level: float = LEVEL
) -> Estimate:
    """Return the mean accuracy with an interval over seeds and test examples.

    On each side the distance to the Wilson bound (another test sample) and the half-width of the
    Student-t interval (another seed) are combined as the root of the sum of their squares. All
    seeds share one test set, so the former does not shrink with more seeds. For one seed it is the
    Wilson interval alone.

    Parameters
    ----------
    accuracies_S
        One share in [0, 1] a seed.
    test_count
        Examples that each of them was measured on.
    level
        Level of the interval, 0.95 = 95 %.

    Raises
    ------
    MeasureError
        There is no accuracy, one is outside [0, 1], or there are no test examples.
    """
    values = _check_values(accuracies_S, "accuracies")
    if values.min() < 0 or values.max() > 1:
        raise MeasureError(
            f"accuracies go from {values.min():g} to {values.max():g}; give shares in [0, 1]"
        )
    mean = float(values.mean())
    wilson = wilson_interval(mean, test_count, level)
    if len(values) == 1:
        return Estimate(mean, wilson)
    over = f"Student t over {len(values)} seeds and Wilson over {test_count} test examples"
    half = _t_half_width(values, level)
    distances = mean - wilson.low, wilson.high - mean
    return _in_quadrature(mean, *distances, half, (0, 1), level, f"{over}, in quadrature")


def paired_gain(
    accuracies_S: Sequence[float],
    baseline_S: Sequence[float],
    level: float = LEVEL,
    *,
    differences_N: NDArray[np.floating] | None = None,
) -> Estimate:
    """Return the mean difference to a baseline with the same seeds, in the same order.

    The interval combines two parts as the root of the sum of their squares. The first is Student's t
    over the S differences of accuracies (other seeds). The second is `paired_interval` over
    ``differences_N`` (another test sample); all seeds share one test set, so it does not shrink to
    nothing with more seeds. For one seed the interval is the second part alone. Without
    ``differences_N`` it is the first part alone, and for one seed there is none.

    Parameters
    ----------
    accuracies_S, baseline_S
        One share in [0, 1] a seed.
    level
        Level of the interval, 0.95 = 95 %.
    differences_N
        For each test example the mean over the S seeds of student right (1 or 0) minus baseline
        right (1 or 0); its mean is the gain.

    Raises
    ------
    MeasureError
        The two differ in length, are empty or not finite; or the mean of ``differences_N`` is not
        the gain.

    Examples
    --------
    >>> import numpy as np
    >>> right, baseline = np.array([1, 1, 1, 0, 1]), np.array([1, 0, 1, 0, 1])
    >>> gain = paired_gain([0.8], [0.6], differences_N=right - baseline)
    >>> f"{gain.value:.2f} [{gain.interval.low:.2f}, {gain.interval.high:.2f}]"
    '0.20 [-0.24, 0.52]'
    """
    values = _check_values(accuracies_S, "accuracies")
    baseline = _check_values(baseline_S, "baseline accuracies")
    if len(values) != len(baseline):
        raise MeasureError(
            f"{len(values)} accuracies against {len(baseline)} of the baseline; "
            "give the same seeds in the same order"
        )
    gain, seeds = float((values - baseline).mean()), len(values)
    half = _t_half_width(values - baseline, level) if seeds > 1 else 0.0
    method = f"Student t over {seeds} differences paired by seed"
    below = above = 0.0
    if differences_N is not None:
        examples = paired_interval(differences_N, level)
        if abs(float(np.mean(differences_N)) - gain) > 1e-6:
            raise MeasureError(
                f"the mean of differences_N is {float(np.mean(differences_N)):g}, but the accuracies "
                f"differ by {gain:g}; give differences of the same seeds and examples"
            )
        below, above = gain - examples.low, examples.high - gain
        paired = f"paired differences of {len(differences_N)} test examples"
        method = (
            f"{method} and {paired}, in quadrature" if seeds > 1 else f"{paired} only, one seed"
        )
    elif seeds == 1:
        return Estimate(gain)
    # No two accuracies differ by more than 1.
    return _in_quadrature(gain, below, above, half, (-1, 1), level, method)


def paired_interval(differences_N: NDArray[np.floating], level: float = LEVEL) -> Interval:
    """Return the interval of a mean difference between two classifiers on the same N examples.

    With b examples that only the first classifies correctly and c that only the second does, the
    variance of the difference of proportions (b − c)/N is (b + c − (b − c)²/N)/N². Following Agresti
    and Min, half an example is added to each of the four cells (both right, only one, neither) before
    it is computed, so that the interval does not shrink to nothing where b and c are small:

        D = N + 2,   m = (b − c)/D,   m ± z √((b + c + 1)/D − m²)/√D.

    Where ``differences_N`` are means over seeds, Σd and Σd² take the places of b − c and b + c: the
    variance is that of the mean over these seeds on another sample of examples.

    Source: Agresti and Min, Statistics in Medicine 24 (2005) 729–740.

    Parameters
    ----------
    differences_N
        First right (1 or 0) minus second right (1 or 0), or its mean over seeds, in [−1, 1].
    level
        Level of the interval, 0.95 = 95 %.

    Raises
    ------
    MeasureError
        There is no example, or a difference is not within [−1, 1].
    """
    d_N = np.asarray(differences_N, dtype=np.float64)
    if d_N.ndim != 1 or not d_N.size or not (np.abs(d_N) <= 1).all():
        raise MeasureError(
            f"differences have shape {d_N.shape} and go from {d_N.min(initial=np.inf):g} to "
            f"{d_N.max(initial=-np.inf):g}; give one number within [-1, 1] an example"
        )
    low, high = paired_bounds(float(d_N.sum()), float((d_N**2).sum()), len(d_N), level)
    return Interval(low, high, level, f"paired differences of {len(d_N)} examples")


def paired_bounds(total: float, squares: float, examples: int, level: float) -> tuple[float, float]:
    """Return the ends of `paired_interval` from Σd and Σd²."""
    count = examples + 2
    centre = total / count
    half = normal_quantile(level) * math.sqrt(((squares + 1) / count - centre**2) / count)
    return max(-1.0, centre - half), min(1.0, centre + half)


def mean_of_estimates(
    estimates_S: Sequence[Estimate],
    within: tuple[float, float] = (-math.inf, math.inf),
    level: float = LEVEL,
) -> Estimate:
    """Return the mean over seeds of numbers that each have an interval over examples.

    On each side the mean distance to those intervals (other examples; all seeds share them, so it
    does not shrink with more seeds) and the half-width of the Student-t interval (other seeds) are
    combined as the root of the sum of their squares, and cut off where the number cannot be
    (``within``). One seed keeps its interval. There is none where one of the numbers has none.

    Raises
    ------
    MeasureError
        There is no estimate.
    """
    if not estimates_S:
        raise MeasureError("there are no estimates to take the mean of; give one a seed")
    if len(estimates_S) == 1:
        return estimates_S[0]
    values = np.array([one.value for one in estimates_S])
    mean = float(values.mean())
    known = [one.interval for one in estimates_S if one.interval is not None]
    if len(known) < len(values) or not np.isfinite(mean):
        return Estimate(mean)
    half = _t_half_width(values, level)
    below = np.mean([one.value - one.interval.low for one in estimates_S if one.interval])
    above = np.mean([one.interval.high - one.value for one in estimates_S if one.interval])
    method = f"Student t over {len(values)} seeds, in quadrature with: {known[0].method}"
    return _in_quadrature(mean, float(below), float(above), half, within, level, method)


def mean_over_sentences(
    sums_N: NDArray[np.floating], counts_N: NDArray[np.floating], level: float = LEVEL
) -> Estimate:
    """Return Σ sums / Σ counts with an interval that takes sentences, not tokens, as independent.

    The variance is that of a ratio by linearisation. For one sentence there is no interval.

    Source: Cochran, Sampling Techniques, 1977, section 6.3.

    Parameters
    ----------
    sums_N
        The sum over the tokens of each sentence.
    counts_N
        The number of tokens of each sentence; their sum is positive.
    level
        Of the interval, 0.95 = 95 %.
    """
    total, count = float(counts_N.sum()), len(sums_N)
    mean = float(sums_N.sum()) / total
    if count < 2:
        return Estimate(mean)
    squares = float(((sums_N - mean * counts_N) ** 2).sum())
    half = normal_quantile(level) * math.sqrt(squares * count / (count - 1)) / total
    method = f"normal, over {count} test sentences"
    return Estimate(mean, Interval(mean - half, mean + half, level, method))


def wilson_interval(share: float, count: int, level: float = LEVEL) -> Interval:
    """Return Wilson's score interval of a share seen in ``count`` independent examples.

    Unlike the normal interval it does not shrink to nothing at 0 or 1.

    Raises
    ------
    MeasureError
        The share is outside [0, 1], the count below 1 or the level not within (0, 1).
    """
    if not 0 <= share <= 1 or count < 1:
        raise MeasureError(
            f"a share of {share:g} of {count} examples has no interval; "
            "give a share in [0, 1] of at least 1 example"
        )
    z = normal_quantile(level)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    # Exact at the ends, where rounding would leave the bound just inside the share.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return Interval(low, high, level, f"Wilson over {count} examples")


def observed_share(hits_N: NDArray[np.bool_]) -> Estimate:
    """Return the share of true values with Wilson's interval; there must be at least one value."""
    share = float(hits_N.mean())
    return Estimate(share, wilson_interval(share, len(hits_N)))


@cache
def normal_quantile(level: float) -> float:
    """Return how many standard deviations hold a share ``level`` of a normal distribution."""
    return float(stats.norm.ppf(0.5 + _check_level(level) / 2))


def _in_quadrature(
    mean: float,
    below: float,
    above: float,
    half: float,
    within: tuple[float, float],
    level: float,
    method: str,
) -> Estimate:
    """Combine distances to the ends of one interval with the half-width of another, independent one."""
    low, high = mean - math.hypot(below, half), mean + math.hypot(above, half)
    return Estimate(mean, Interval(max(low, within[0]), min(high, within[1]), level, method))


def _t_half_width(values_S: NDArray[np.float64], level: float) -> float:
    count = len(values_S)
    quantile = float(stats.t.ppf(0.5 + _check_level(level) / 2, count - 1))
    return quantile * float(values_S.std(ddof=1)) / math.sqrt(count)


def _check_values(values_S: Sequence[float], what: str) -> NDArray[np.float64]:
    values = np.asarray(values_S, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise MeasureError(f"{what} have shape {values.shape}; give one number a seed")
    if not np.isfinite(values).all():
        raise MeasureError(f"{what} are {values.tolist()}; each must be finite")
    return values


def _check_level(level: float) -> float:
    if not 0 < level < 1:
        raise MeasureError(f"the level is {level:g}; give a share within (0, 1), such as 0.95")
    return level
