"""Sensitivity of yᵀK⁻¹y to errors of the Gram itself.

For a symmetric error ΔK with ‖ΔK‖₂ ≤ δ, K − δI ⪯ K + ΔK ⪯ K + δI. Where K − δI is positive definite
(Weyl: where the smallest eigenvalue of K is above δ) the inverse turns the order round:
yᵀ(K + δI)⁻¹y ≤ yᵀ(K + ΔK)⁻¹y ≤ yᵀ(K − δI)⁻¹y. Both ends are reached, at ΔK = ±δI, so no bound from δ
alone is tighter; that by eigenvalues, yᵀK⁻¹y/(1 ± δ/λ_min), is wider. To first order the movement is
|xᵀΔKx| ≤ δ‖x‖² with x = K⁻¹y.

Shapes: N rows of the matrix, M right-hand sides (columns).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError
from distillens.linalg.dense import (
    Factor,
    cholesky_of,
    quadratic_form,
    shifted_gram,
    singular_share,
)

Array = NDArray[np.float64]

DETERMINED = 0.01
"""A value is determined if no error of the stated size moves it by more than this share."""


@dataclass(frozen=True, eq=False)
class PerturbedValues:
    """yᵀ(K + ΔK)⁻¹y for all ‖ΔK‖₂ ≤ error lies within [low, high]; arrays are (M,).

    ``value`` is yᵀK⁻¹y. ``movement`` is the larger of (high − value)/value and (value − low)/value.
    ``high`` and ``movement`` are infinite where K + ΔK may be singular. ``determined`` is true where
    ``movement`` is at most ``DETERMINED``. The rounding of the solves is not in the interval.
    """

    value: Array
    low: Array
    high: Array
    movement: Array
    determined: NDArray[np.bool_]


def perturbed_quadratic_form(factor: Factor, targets: ArrayLike, error: float) -> PerturbedValues:
    """Bound yᵀ(K + ΔK)⁻¹y over all symmetric ΔK with ‖ΔK‖₂ ≤ error.

    Two more factorisations are made. Independent errors of the entries move the value far less than
    the worst ΔK of their size, for which this is the bound.

    Parameters
    ----------
    factor
        Factor of K = gram + ridge·I, (N, N).
    targets
        y of shape (N,), or M of them as columns, (N, M).
    error
        δ, a bound or an estimate of ‖ΔK‖₂ in the units of the Gram; the interval is as good.

    Raises
    ------
    KernelError
        The error is negative or not finite.
    MeasureError
        The targets have another length or are not finite.
    """
    if not (np.isfinite(error) and error >= 0):
        raise KernelError(f"the error of the Gram is {error}; give a finite number >= 0")
    error = float(error)
    value = np.atleast_1d(quadratic_form(factor, targets)[0])
    y = np.asarray(targets, dtype=np.float64).reshape(len(factor.gram), -1)
    low, high = _shifted_form(factor, y, error), _shifted_form(factor, y, -error)
    if error == 0:
        low, high = value, value
    # Rounding may turn their order round where the error is far below it.
    low, high = np.minimum(low, value), np.maximum(high, value)
    moved = np.maximum(high - value, value - low)
    # A zero target has the value 0, which nothing moves.
    movement = np.divide(moved, value, out=np.zeros_like(moved), where=value > 0)
    return PerturbedValues(value, low, high, movement, movement <= DETERMINED)


def _shifted_form(factor: Factor, y: Array, shift: float) -> Array:
    """Return yᵀ(K + shift·I)⁻¹y; infinite where that is singular or not definite."""
    ridge = factor.ridge + shift
    triangle, reciprocal = cholesky_of(shifted_gram(factor.gram, ridge))
    # Rounding lets Cholesky pass on some matrices that are singular, so look at the condition.
    if triangle is None or reciprocal < singular_share(factor.gram):
        return np.where(y.any(axis=0), np.inf, 0.0)
    return quadratic_form(Factor(factor.gram, triangle, ridge), y)[0]
