"""Kernel regression on the examples of a Gram: what it predicts there and how large its norm is.

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245: the interpolant f* has ‖f*‖² = YᵀK⁻¹Y. That
the ridge solution's norm is no larger is a line of algebra, below. Shapes: N examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError
from distillens.linalg import Factor
from distillens.measures.complexity.complexity import ComplexityMeter
from distillens.measures.complexity.forms import fit_targets, operator_trace

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class KernelFit:
    """A function in the kernel's space, as the bounds need it; made by `kernel_fit` or by hand.

    ``predictions`` is f*(X), (N,) for one output, else (N, C). ``complexity`` is ‖f*‖² or anything
    that is not below it, such as YᵀK⁻¹Y. ``trace`` is that of the whole kernel matrix, which for
    a trace-form Gram is C·Tr k; ``largest_diagonal`` the largest k(x, x) of one output. None of
    them has a ridge in it. ``residual`` is the relative residual of the worst solve.
    """

    predictions: Array
    complexity: float
    trace: float
    largest_diagonal: float
    residual: float = 0.0


def kernel_fit(meter: ComplexityMeter, targets: ArrayLike) -> KernelFit:
    """Fit targets with the kernel of a meter: the interpolant, or the ridge solution.

    With the meter's ridge λ (of (K + λI)α = Y), f*(X) = Kα and ‖f*‖² = αᵀKα. Since
    (K + λI)⁻¹K(K + λI)⁻¹ lies below both (K + λI)⁻¹ and K⁻¹, this norm is never above
    either complexity; with λ = 0 it is YᵀK⁻¹Y and f*(X) = Y.

    Parameters
    ----------
    meter
        From `factorise_gram`.
    targets
        Y, (N,) for the binary form, else (N, C).

    Raises
    ------
    KernelError
        K + λI is singular.
    MeasureError
        The targets do not fit the Gram or are not finite.
    """
    y = fit_targets(targets, meter.form, meter.gram_shape)
    if meter.singular is not None:
        raise KernelError(f"there is no kernel fit: {meter.singular}")
    outputs = 1 if y.ndim == 1 else y.shape[1]
    if meter.form == "class-diagonal":
        parts = [_fit(factor, y[:, c]) for c, factor in enumerate(meter.factors)]
        predictions = np.stack([fitted for fitted, _, _ in parts], axis=1)
    elif meter.form == "trace":
        parts = [_fit(meter.factors[0], y)]
        predictions = parts[0][0]
    else:
        # Row n·C + c of a full Gram is class c of example n.
        parts = [_fit(meter.factors[0], y.reshape(-1))]
        predictions = parts[0][0].reshape(y.shape)
    diagonals = [np.diagonal(factor.gram) for factor in meter.factors]
    trace = float(sum(diagonal.sum() for diagonal in diagonals))
    return KernelFit(
        predictions=predictions,
        complexity=sum(norm for _, norm, _ in parts),
        trace=operator_trace(trace, meter.form, outputs),
        largest_diagonal=float(max(diagonal.max() for diagonal in diagonals)),
        residual=max(residual for _, _, residual in parts),
    )


def _fit(factor: Factor, y: Array) -> tuple[Array, float, float]:
    """Return Kα, αᵀKα (summed over columns) and the residual of the solve."""
    alpha, residual = factor.solve(y)
    fitted = factor.gram @ alpha
    return fitted, float(np.sum(alpha * fitted)), residual
