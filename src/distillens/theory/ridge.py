"""Self-distillation of kernel ridge regression: each round shrinks the targets' weak directions.

Source: Mobahi, Farajtabar, Bartlett, *Self-Distillation Amplifies Regularization in Hilbert Space*,
NeurIPS 2020, arXiv 2002.05715. With the eigenvalues d_k of the Gram, a round with ridge c multiplies the
targets along eigenvector k by d_k/(c + d_k). The paper's round minimises the norm subject to a mean
squared training error ε, so that c follows from the targets of that round.
Shapes: K = N eigenvalues and examples, R rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import root_scalar

from distillens.errors import TheoryError
from distillens.theory.checks import finite, non_negative, positive

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RidgeRounds:
    """Rounds of self-distillation at one tolerance."""

    ridges_R: Array
    """c of each round."""
    filters_RK: Array
    """Remaining share of the labels after each round: Π d_k/(c + d_k), the paper's B."""
    norms_R: Array
    """‖y‖ of the targets of each round; the first is that of the labels."""
    collapsed: bool
    """The next round's targets were within the tolerance of zero, so that zero is its solution."""
    sure_rounds: int
    """Rounds that no spectrum can prevent: each lowers ‖y‖ by at most √(Nε), so ⌈‖y‖/√(Nε)⌉ − 1. The
    paper's bound has the condition number in the denominator and is at most this."""


def ridge_filter(eigenvalues_K: ArrayLike, ridges: Sequence[float]) -> Array:
    """Return Π_r d_k/(c_r + d_k), what rounds with known ridges leave of the labels, (K,).

    Raises
    ------
    TheoryError
        An eigenvalue is not above 0, a ridge is negative, or there is no round.
    """
    values = positive(eigenvalues_K, "the spectrum")
    penalties = non_negative(ridges, "the ridges")
    if penalties.ndim != 1 or not penalties.size:
        raise TheoryError(f"the ridges have shape {penalties.shape}; give one a round")
    return (values / (penalties[:, None] + values)).prod(axis=0)


def ridge_for_tolerance(eigenvalues_K: ArrayLike, targets_K: ArrayLike, tolerance: float) -> float:
    """Return c at which the mean squared training error (1/N)Σ (c/(c + d_k))² z_k² equals ε.

    Parameters
    ----------
    eigenvalues_K
        d_k > 0 of the Gram.
    targets_K
        z_k, the targets on its eigenvectors.
    tolerance
        ε > 0, below ‖z‖²/N, where zero is the solution.

    Raises
    ------
    TheoryError
        A number is not in its range, or zero already fits within the tolerance.
    """
    values, targets = _pair(eigenvalues_K, targets_K)
    positive(tolerance, "the tolerance")
    norm, limit = float(np.linalg.norm(targets)), float(np.sqrt(len(values) * tolerance))
    if norm <= limit:
        raise TheoryError(
            f"the targets' mean square is {norm**2 / len(values):g} and the tolerance {tolerance:g}: "
            "zero fits them; give a lower tolerance"
        )

    def excess(log_ridge: float) -> float:
        ridge = np.exp(log_ridge)
        return float(np.linalg.norm(ridge / (ridge + values) * targets)) - limit

    # c/(c + d) lies between its values at d_min and d_max, which puts c between these two.
    middle = limit / (norm - limit)
    low, high = np.log(values.min() * middle), np.log(values.max() * middle)
    if high - low < 1e-12:
        return float(np.exp(low))
    found = root_scalar(excess, bracket=(low - 1e-9, high + 1e-9), xtol=1e-14, rtol=1e-14)
    return float(np.exp(found.root))


def self_distil_ridge(
    eigenvalues_K: ArrayLike, targets_K: ArrayLike, tolerance: float, rounds: int
) -> RidgeRounds:
    """Fit the labels, then the fit, and so on, each within the same tolerance, until collapse.

    Parameters
    ----------
    eigenvalues_K, targets_K, tolerance
        As for `ridge_for_tolerance`; the targets are the labels.
    rounds
        Largest number of rounds; fewer if the targets collapse.

    Raises
    ------
    TheoryError
        A number is not in its range, or zero fits the labels themselves.
    """
    if rounds < 1:
        raise TheoryError(f"{rounds} rounds; give at least 1")
    values, targets = _pair(eigenvalues_K, targets_K)
    positive(tolerance, "the tolerance")
    ridges, filters, norms = [], [], []
    kept, limit = np.ones_like(values), float(np.sqrt(len(values) * tolerance))
    sure = int(np.ceil(np.linalg.norm(targets) / limit)) - 1
    collapsed = False
    for done in range(rounds):
        norm = float(np.linalg.norm(kept * targets))
        collapsed = done > 0 and norm <= limit
        if collapsed:
            break
        ridge = ridge_for_tolerance(values, kept * targets, tolerance)
        kept = kept * values / (ridge + values)
        ridges.append(ridge)
        filters.append(kept)
        norms.append(norm)
    return RidgeRounds(np.array(ridges), np.stack(filters), np.array(norms), collapsed, sure)


def ridge_shortfall(top: float, bottom: float, ridges: Sequence[float]) -> tuple[float, float]:
    """Compare rounds of ridge with one round of equal progress along the top direction.

    The counterpart of Thm. 4.1. With x_r = c_r/d₁ and ρ = d₁/d₂ > 1, one round with
    c = d₁(Π(1 + x_r) − 1) keeps as much of the top direction. Of the bottom one it keeps 1/(1 + ρc/d₁),
    the rounds Π 1/(1 + ρx_r): less, since their denominator is larger by Σ_{m≥2}(ρᵐ − ρ)e_m(x), e_m the
    elementary symmetric polynomials.

    Returns
    -------
    tuple
        Bottom shares of the rounds and of the single round.

    Raises
    ------
    TheoryError
        A number is not in its range.
    """
    both = positive([top, bottom], "the eigenvalues")
    rounds = ridge_filter(both, ridges)
    single = both[0] * (1 / rounds[0] - 1)
    return float(rounds[1]), float(ridge_filter(both, [single])[1])


def _pair(eigenvalues_K: ArrayLike, targets_K: ArrayLike) -> tuple[Array, Array]:
    values = positive(eigenvalues_K, "the spectrum")
    targets = finite(targets_K, "the targets")
    if values.ndim != 1 or targets.shape != values.shape:
        raise TheoryError(
            f"targets of shape {targets.shape} do not fit a spectrum of shape {values.shape}"
        )
    return values, targets
