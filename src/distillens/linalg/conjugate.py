"""Preconditioned conjugate gradients on several right-hand sides at once.

Each column has its own recurrence; the columns share the products, which are what costs.
Source: Hestenes, Stiefel 1952; Golub, Van Loan, Matrix Computations, 4th ed., section 11.5.
Shapes: N rows of the kernel, M right-hand sides that are still worked on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from distillens.errors import KernelError
from distillens.linalg.interval import columnwise, sum_error

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


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

    def replace(self, columns: Mask, residual: Array) -> None:
        """Go on from the true residual (N, count of ``columns``), with new directions there."""
        self.residual[:, columns] = residual
        towards = self._precondition(residual)
        self.direction[:, columns] = towards
        self.size[columns] = columnwise(residual, towards)
        self.stuck[columns] = False

    def keep(self, columns: Mask) -> None:
        """Drop the other columns."""
        self.x = self.x[:, columns]
        self.residual = self.residual[:, columns]
        self.direction = self.direction[:, columns]
        self.size = self.size[columns]
        self.stuck = self.stuck[columns]
