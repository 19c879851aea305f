"""Conjugate gradients on several right-hand sides, and the interval of yᵀ(K + λI)⁻¹y that any x proves.

For any x, with A = K + λI and the true residual r = y − Ax, A⁻¹y = x + A⁻¹r, hence
yᵀA⁻¹y = yᵀx + rᵀx + rᵀA⁻¹r. The last term is at least 0, and at most rᵀQ⁻¹r for any Q ⪯ A. Q = λI
always serves; Q = LLᵀ + λI does where LLᵀ ⪯ K (see `LowRankKernel.bound`). The smaller one counts.

The product that is seen is Kx + e with ‖e‖ ≤ η, so what is seen of r is r̂ = r − e. Therefore rᵀx
lies within η‖x‖ of r̂ᵀx, and √(rᵀA⁻¹r) is at most √(r̂ᵀA⁻¹r̂) + η/√λ. The rounding of float64 in r̂
and in the inner products is added to this by `sum_error`. So if η is a bound, the
interval is one; if η is an estimate, so is the interval. It does not matter how x was found.

Each column has its own recurrence; the columns share the products, which are what costs.
Source: Hestenes, Stiefel 1952; Golub, Van Loan, Matrix Computations, 4th ed., section 11.5.
Shapes: N rows of the kernel, M right-hand sides (columns) that are still worked on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.errors import KernelError

Array = NDArray[np.float64]

UNIT = float(np.finfo(np.float64).eps) / 2
"""u, the largest relative error of one operation."""


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


def sum_error(terms: int) -> float:
    """γ_n = n·u/(1 − n·u): bounds the error of a sum of n products in any order.

    It is relative to the sum of the absolute values. Source: Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, section 3.1.
    """
    return terms * UNIT / (1 - terms * UNIT)


def columnwise(left_NM: Array, right_NM: Array) -> Array:
    """Return the inner products of columns, (M,), without an array in between."""
    return np.einsum("nm,nm->m", left_NM, right_NM)


def interval(
    y: Array,
    x: Array,
    residual: Array,
    gap: Array,
    error: float,
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
    error
        A bound of ‖computed Kx − Kx‖/‖x‖, from which η follows.
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
    off = (error * x_length + forming) * (1 + sum_error(terms))
    slack = off * x_length + sum_error(terms) * (y_length + r_length) * x_length
    slack = slack + 4 * UNIT * np.abs(center)
    gap = gap * (1 + 2 * sum_error(terms))
    top = (np.sqrt(gap) + off / np.sqrt(ridge)) ** 2
    return Interval(
        # A quadratic form of a positive definite matrix is not below 0.
        low=np.maximum(center - slack, 0.0),
        high=center + slack + top,
        estimate=np.maximum(center, 0.0),
        gap=gap,
        rounding=2 * slack + np.maximum(top - gap, 0.0),
    )


class ConjugateGradients:
    """The state of the iteration for (K + ridge·I)X = Y from X = 0.

    ``error`` bounds ‖computed Kx − Kx‖/‖x‖. ``x``, ``residual`` and ``direction`` are (N, M);
    ``size`` is rᵀP⁻¹r of the residual that the recurrence carries, (M,); ``stuck`` marks columns
    whose next step rounding makes meaningless.
    """

    def __init__(
        self,
        product: Callable[[Array], Array],
        error: float,
        precondition: Callable[[Array], Array],
        ridge: float,
        targets_NM: Array,
    ) -> None:
        self._product = product
        self._error = error
        self._precondition = precondition
        self._ridge = ridge
        self.x = np.zeros_like(targets_NM)
        self.residual = targets_NM.copy()
        self.direction = precondition(self.residual)
        self.size = columnwise(self.residual, self.direction)
        self.stuck = np.zeros(targets_NM.shape[1], dtype=bool)

    def step(self) -> None:
        """Take one step in every column that is not stuck: one product.

        Raises
        ------
        KernelError
            pᵀKp is negative beyond the product's stated error.
        """
        image = self._product(self.direction)
        curvature = columnwise(self.direction, image)
        length = np.linalg.norm(self.direction, axis=0)
        rounding = sum_error(len(image) + 3) * np.linalg.norm(image, axis=0)
        allowed = length * (self._error * length + rounding)
        worst = int(np.argmin(curvature + allowed))
        if curvature[worst] + allowed[worst] < 0:
            raise KernelError(
                f"the kernel is not positive semidefinite: pᵀKp is {curvature[worst]:.3g} for a p "
                f"of length {length[worst]:.3g}, where the stated product error allows "
                f"{-allowed[worst]:.3g}; check the product or state its error"
            )
        image += self._ridge * self.direction
        curvature = curvature + self._ridge * length**2
        self.stuck |= (curvature <= 0) | (self.size <= 0)
        step = np.divide(self.size, curvature, out=np.zeros_like(self.size), where=~self.stuck)
        self.x += step * self.direction
        image *= step
        self.residual -= image
        towards = self._precondition(self.residual)
        size = columnwise(self.residual, towards)
        share = np.divide(size, self.size, out=np.zeros_like(size), where=~self.stuck)
        self.direction *= share
        self.direction += towards
        self.size = size

    def replace(self, columns: NDArray[np.bool_], residual: Array) -> None:
        """Go on from the true residual (N, count of ``columns``), with new directions there."""
        self.residual[:, columns] = residual
        towards = self._precondition(residual)
        self.direction[:, columns] = towards
        self.size[columns] = columnwise(residual, towards)
        self.stuck[columns] = False

    def keep(self, columns: NDArray[np.bool_]) -> None:
        """Drop the other columns."""
        self.x = self.x[:, columns]
        self.residual = self.residual[:, columns]
        self.direction = self.direction[:, columns]
        self.size = self.size[columns]
        self.stuck = self.stuck[columns]
