"""Filters of gradient flow: the learnt share along each eigenvector at a stop time.

Source: Nagarajan et al. 2023, arXiv 2301.12923, section on eigenspace (A(t) and Ã).
Shapes: K eigenvalues λ of XXᵀ, G generations. Time is that of gradient flow on ½‖Xβ − y‖²; for a mean
over N examples it runs N times slower, and a gradient descent step of size η is a time of about η.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import TheoryError
from distillens.theory.checks import positive, shares, spectrum, stop_times

Array = NDArray[np.float64]


def learnt_share(eigenvalues: ArrayLike, time: ArrayLike) -> Array:
    """Return α_k(t) = 1 − e^{−λ_k t}, the share of the target that is learnt, in their common shape.

    A direction with λ = 0 is never learnt, not even at an infinite time.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    # 0 · infinity has no value; the direction is not in the data, so it stays at 0.
    product = np.where(values == 0, 0.0, np.where(values == 0, 1.0, values) * stop_times(time))
    return -np.expm1(-product)


def distilled_filter(eigenvalues_K: ArrayLike, times_G: Sequence[float]) -> Array:
    """Return the share learnt after generations that each fit the one before it.

    Π_g (1 − e^{−λ_k t_g}): one time is the teacher (one-hot network), two its student (Ã = A(t̃)A(T)),
    more are self-distillation in generations, each from zero weights.

    Parameters
    ----------
    eigenvalues_K
        λ ≥ 0, (K,).
    times_G
        Stop time of each generation, the teacher first; infinity for the end.

    Returns
    -------
    array
        Shares in [0, 1], (K,).

    Raises
    ------
    TheoryError
        A number is not in its range, or there is no generation.
    """
    values = spectrum(eigenvalues_K)
    times = stop_times(times_G)
    if times.ndim != 1 or not times.size:
        raise TheoryError(f"the times have shape {times.shape}; give one a generation")
    return learnt_share(values, times[:, None]).prod(axis=0)


def time_to_learn(eigenvalue: ArrayLike, share: ArrayLike, generations: int = 1) -> Array:
    """Return the time at which each of equal generations stops so that together they learn a share.

    Solves (1 − e^{−λt})^G = share: t = −ln(1 − share^{1/G})/λ. With G = 2 this is the witness of
    Thm. 4.1, T = t̃ with (1 − e^{−λt̃})² = α*.

    Parameters
    ----------
    eigenvalue
        λ > 0.
    share
        In (0, 1).
    generations
        G ≥ 1.

    Raises
    ------
    TheoryError
        A number is not in its range.
    """
    if generations < 1:
        raise TheoryError(f"{generations} generations; give at least 1")
    log_share = np.log(shares(share, "the share")) / generations
    # 1 − share^{1/G}; for a share near 1 only expm1 keeps its digits, for one near 0 log1p does.
    log_rest = np.where(
        log_share > -np.log(2), np.log(-np.expm1(log_share)), np.log1p(-np.exp(log_share))
    )
    return -log_rest / positive(eigenvalue, "the eigenvalue")
