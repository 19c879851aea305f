"""The interval of yᵀ(K + λI)⁻¹y that any x proves, however it was found.

For any x, with A = K + λI and the true residual r = y − Ax, A⁻¹y = x + A⁻¹r, hence
yᵀA⁻¹y = yᵀx + rᵀx + rᵀA⁻¹r. The last term is at least 0, and at most rᵀQ⁻¹r for any Q ⪯ A. Q = λI
always serves; Q = LLᵀ + λI does where LLᵀ ⪯ K (see `LowRankKernel.bound`). The smaller one counts.

The product that is seen is Kx + e with ‖e‖ ≤ η, so what is seen of r is r̂ = r − e. Therefore rᵀx
lies within η‖x‖ of r̂ᵀx, and √(rᵀA⁻¹r) is at most √(r̂ᵀA⁻¹r̂) + η/√λ. The rounding of float64 in r̂
and in the inner products is added to this by the bounds in `rounding`. So if η is a bound, the
interval is one; if η is an estimate, so is the interval. It does not matter how x was found.

Shapes: N rows of the kernel, M right-hand sides (columns).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.linalg.conjugate import columnwise
from distillens.linalg.rounding import UNIT, sum_error

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Interval:
    """The interval of each column; arrays are (M,)."""

    low: Array
    high: Array
    estimate: Array
    gap: Array
    """The upper bound of r̂ᵀA⁻¹r̂: what is left for iterations to narrow."""
    rounding: Array
    """The rest of high − low."""
    residual: Array
    length: Array


def interval(
    y: Array,
    x: Array,
    residual: Array,
    gap: Array,
    product_error: Array,
    ridge: float,
    image: Array | None = None,
) -> Interval:
    """Return the interval of yᵀ(K + ridge·I)⁻¹y that an iterate x proves.

    Parameters
    ----------
    y, x, residual
        Targets, iterate, and y − (K + ridge·I)x as computed, each (N, M).
    gap
        Upper bounds of r̂ᵀA⁻¹r̂, (M,).
    product_error
        η, bounds of ‖computed Kx − Kx‖, (M,).
    ridge
        λ > 0.
    image
        The computed Kx, (N, M). Without it the residual is taken for exact, which is a preview.
    """
    y_length, x_length, r_length = (np.linalg.norm(array, axis=0) for array in (y, x, residual))
    terms = len(y) + 3
    center = columnwise(y, x) + columnwise(residual, x)
    forming = 4 * UNIT * (y_length + ridge * x_length)
    if image is not None:
        forming += 4 * UNIT * np.linalg.norm(image, axis=0)
    off = (product_error + forming) * (1 + sum_error(terms))
    slack = off * x_length + sum_error(terms) * (y_length + r_length) * x_length
    slack = slack + 4 * UNIT * np.abs(center)
    gap = gap * (1 + 2 * sum_error(terms))
    top = (np.sqrt(gap) + off / np.sqrt(ridge)) ** 2
    share = np.divide(r_length, y_length, out=np.zeros_like(r_length), where=y_length > 0)
    return Interval(
        # A quadratic form of a positive definite matrix is not below 0.
        low=np.maximum(center - slack, 0.0),
        high=center + slack + top,
        estimate=np.maximum(center, 0.0),
        gap=gap,
        rounding=2 * slack + np.maximum(top - gap, 0.0),
        residual=share,
        length=x_length,
    )
