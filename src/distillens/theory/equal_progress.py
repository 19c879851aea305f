"""Thm. 4.1: at equal progress along the top direction a student has less of the bottom one.

Source: Nagarajan et al. 2023, arXiv 2301.12923, Thm. 4.1. Arrays broadcast.

Let κ = λ₂/λ₁ < 1, x = 1 − e^{−λ₁T} and y = 1 − e^{−λ₁t̃}. The student has learnt xy of the top
direction. A one-hot network with that progress has learnt f(xy) of the bottom one, f(x) = 1 − (1−x)^κ,
and the student f(x)f(y).

**Why it holds for every T and t̃.** f(x) = Σ pₙxⁿ over n ≥ 1 with all pₙ > 0 and Σ pₙ = 1 (the
binomial series), so f(x) = E[x^N] for a random N. Then f(xy) − f(x)f(y) is the covariance of x^N and
y^N, which both fall in N: it is positive. The same holds for any number of generations, and a larger
progress of the one-hot network only adds to it. For κ > 1 the signs turn.

**How it is computed.** The numbers that are compared agree to all digits for κ near 1 and for late
times, so the shortfall ln f(xy) − ln f(x)f(y) gets its own formula. With u₁ ≥ u₂ the two values of
λ₁t, u₃ that of the one-hot network and h(u) = ln((1 − e^{−κu})/(1 − e^{−u})), it is
−h(u₁) − (h(u₂) − h(u₃)).
In the last difference, u₂ − u₃ = ln(1 + e^{−u₁}(e^{u₂} − 1)) is known to full precision; where κ is
near 1 as well, it is the integral of u/(e^{cu} − 1) over c from κ to 1, by Gauss-Legendre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import TheoryError
from distillens.theory.checks import positive, shares
from distillens.theory.flow import learnt_share, time_to_learn

Array = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
# Below this, (1 − κ)·u₃ leaves the direct difference fewer digits than the integral.
_NEAR = 0.1


@dataclass(frozen=True, eq=False)
class EqualProgress:
    """A student and a one-hot network with the same share of the top direction; one shape for all."""

    progress: Array
    """Share of the top direction that both have learnt."""
    one_hot_time: Array
    one_hot_bottom: Array
    """Share of the bottom direction that the one-hot network has learnt."""
    student_bottom: Array
    log_shortfall: Array
    """ln(one_hot_bottom/student_bottom), to nearly full precision also where both are equal to all
    digits: positive where the student has less of the bottom direction."""


def compare_at_equal_progress(
    top: ArrayLike, bottom: ArrayLike, teacher_time: ArrayLike, student_time: ArrayLike
) -> EqualProgress:
    """Compare a student with the one-hot network that has learnt as much of the top direction.

    Parameters
    ----------
    top, bottom
        λ_{k1} and λ_{k2}, above 0. The theorem's premise is top > bottom; other pairs are computed
        as well; the shortfall then has the other sign, and fewer digits at late times.
    teacher_time, student_time
        T and t̃, above 0 and finite.

    Raises
    ------
    TheoryError
        A number is not in its range, or so early or late that shares are 0 or 1 to some 300 digits.
    """
    first, second, teacher, student = np.broadcast_arrays(
        positive(top, "the top eigenvalue"),
        positive(bottom, "the bottom eigenvalue"),
        positive(teacher_time, "the teacher's time"),
        positive(student_time, "the student's time"),
    )
    later, earlier = np.maximum(teacher, student) * first, np.minimum(teacher, student) * first
    # Where e^{−u} underflows, nothing is left to compare.
    if (later > 700).any() or (later * second / first > 700).any():
        raise TheoryError(
            f"eigenvalue × time is {max(later.max(), (later * second / first).max()):g}; give at "
            "most 700, above it teacher and student have learnt everything"
        )
    step = np.log1p(np.exp(-later) * np.expm1(earlier))
    progress = np.expm1(-later) * np.expm1(-earlier)
    if (progress < 1e-290).any():
        raise TheoryError(
            "a time is so early that nothing is learnt to 290 digits; give later ones"
        )
    # Small times nearly cancel in earlier − step, late ones in the logarithm.
    reached = np.where(progress < 0.5, -np.log1p(-np.minimum(progress, 0.5)), earlier - step)
    # Subtracting first keeps the digits of eigenvalues that are nearly equal.
    gap = (first - second) / first
    shortfall = -_log_ratio(later, gap) + _log_fall(reached, step, gap)
    return EqualProgress(
        progress=progress,
        one_hot_time=reached / first,
        one_hot_bottom=learnt_share(second, reached / first),
        student_bottom=learnt_share(second, teacher) * learnt_share(second, student),
        log_shortfall=shortfall,
    )


def witness(top: ArrayLike, bottom: ArrayLike, progress: ArrayLike) -> EqualProgress:
    """Return the comparison at the theorem's witness: T = t̃ with (1 − e^{−λ_{k1}t̃})² = α*.

    Then one_hot_bottom = 1 − (1−α*)^κ and student_bottom = (1 − (1−√α*)^κ)².

    Parameters
    ----------
    top, bottom
        λ_{k1} > λ_{k2} > 0.
    progress
        α* in (0, 1).

    Raises
    ------
    TheoryError
        A number is not in its range, or top is not above bottom.
    """
    first, second = positive(top, "the top eigenvalue"), positive(bottom, "the bottom eigenvalue")
    if (first <= second).any():
        raise TheoryError("Thm. 4.1 speaks of a top eigenvalue above the bottom one; swap them")
    time = time_to_learn(first, progress, generations=2)
    return compare_at_equal_progress(first, second, time, time)


def student_time(top: ArrayLike, teacher_time: ArrayLike, progress: ArrayLike) -> Array:
    """Return t̃ at which the student of a teacher stopped at T has learnt α* of the top direction.

    Raises
    ------
    TheoryError
        A number is not in its range, or the teacher itself has learnt α* or less.
    """
    wanted = shares(progress, "the progress")
    learnt = learnt_share(positive(top, "the top eigenvalue"), teacher_time)
    if (learnt <= wanted).any():
        raise TheoryError(
            "the teacher has learnt no more of the top direction than the student shall; stop it later"
        )
    # 1 − α*/x as (x − α*)/x keeps its digits where the two are close.
    return -np.log((learnt - wanted) / learnt) / np.asarray(top, dtype=np.float64)


def _log_ratio(times: Array, gap: Array) -> Array:
    """Return h(u) = ln((1 − e^{−κu})/(1 − e^{−u})) with κ = 1 − gap."""
    excess = np.exp(-times * np.minimum(1 - gap, 1)) * np.expm1(-np.abs(gap) * times)
    # For κ > 1 the roles turn: 1 − e^{−κu} = (1 − e^{−u}) + e^{−u}(1 − e^{−(κ−1)u}).
    close = np.log1p(np.maximum(np.sign(gap) * excess / -np.expm1(-times), -0.75))
    far = np.log(np.expm1(-(1 - gap) * times) / np.expm1(-times))
    return np.where(np.abs(far) < 0.5, close, far)


def _log_fall(times: Array, step: Array, gap: Array) -> Array:
    """Return h(u) − h(u + s) for the one-hot network's u = u₃ and the step s = u₂ − u₃."""
    ratio = 1 - gap
    direct = np.log1p(_rise(times, step, np.ones_like(ratio))) - np.log1p(_rise(times, step, ratio))
    half = gap[..., None] / 2
    at = ratio[..., None] + half * (1 + _NODES)
    slope = _slope_fall(times[..., None], step[..., None], at)
    integral = -(half[..., 0]) * (slope * _WEIGHTS).sum(axis=-1)
    return np.where(np.abs(gap) * np.maximum(times, 1) < _NEAR, integral, direct)


def _rise(times: Array, step: Array, ratio: Array) -> Array:
    """Return (1 − e^{−c(u+s)})/(1 − e^{−cu}) − 1."""
    return np.exp(-ratio * times) * np.expm1(-ratio * step) / np.expm1(-ratio * times)


def _slope_fall(times: Array, step: Array, ratio: Array) -> Array:
    """Return φ(u) − φ(u + s) with φ(u) = u/(e^{cu} − 1), the derivative of ln(1 − e^{−cu}) in c."""
    # Both sides times e^{−cu}(…), so that nothing overflows at late times.
    below = -np.expm1(-ratio * times)
    after = -np.expm1(-ratio * (times + step))
    grown = np.expm1(ratio * step)
    decay = np.exp(-ratio * times)
    return decay * np.exp(-ratio * step) * (times * grown - step * below) / (below * after)
