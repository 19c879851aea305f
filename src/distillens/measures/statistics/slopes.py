"""Straight lines through points, by least squares and by Huber's estimate, ready to be resampled.

Both come with columns whose sums over examples give the slope of a resample. Sources: Huber, *Robust
estimation of a location parameter*, 1964; one step from the estimate in each resample, as in
Salibián-Barrera and Zamar, *Bootstrapping robust estimates of regression*, 2002 (here with the scale
held where it is). Shapes: N points, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HUBER_K = 1.345
"""Residuals up to this number of scales have full weight: 95 % efficiency under normal noise."""

_MAD_TO_DEVIATION = 1.4826
_SMALLEST_SCALE = 1e-6
_ITERATIONS = 500


@dataclass(frozen=True)
class HuberLine:
    """y ≈ intercept + slope · x; ``scale`` is what residuals are measured by."""

    slope: float
    intercept: float
    scale: float
    converged: bool


def least_squares_slope(x: Array, y: Array) -> float:
    """Return the slope of y on x; the points must differ in x."""
    dx = x - x.mean()
    return float(np.sum(dx * (y - y.mean())) / np.sum(dx * dx))


def least_squares_columns(x: Array, y: Array, part_N: NDArray) -> list[Array]:
    """Return 1, x, y, x², xy of the points of a part and 0 elsewhere."""
    part = part_N.astype(np.float64)
    x_part, y_part = x * part, y * part
    return [part, x_part, y_part, x * x_part, x * y_part]


def least_squares_slopes(sums_R5: Array) -> Array:
    """Return slopes from the sums of `least_squares_columns`; NaN where x has no spread."""
    w, x, y, xx, xy = sums_R5.T
    spread = w * xx - x * x
    slope = np.full(len(w), np.nan)
    np.divide(w * xy - x * y, spread, out=slope, where=spread > 1e-12 * w * xx)
    return slope


def huber_line(x: Array, y: Array) -> HuberLine:
    """Fit a line that outlying y hardly move, by reweighted least squares.

    The scale is 1.4826 times the median absolute residual, at least 10⁻⁶ of y's deviation: where
    more than half of the points lie on one line it is that line. The scale settles in the first
    iterations and is then held, so that the rest is a convex problem.
    """
    origin = float(x.mean())
    dx = x - origin
    slope = least_squares_slope(x, y)
    level = float(y.mean())
    floor = max(_SMALLEST_SCALE * float(y.std()), np.finfo(np.float64).tiny)
    scale, converged = floor, False
    for iteration in range(_ITERATIONS):
        residual = y - level - slope * dx
        size = np.abs(residual)
        if iteration < 30:
            scale = max(_MAD_TO_DEVIATION * float(np.median(size)), floor)
        weight = np.minimum(1.0, HUBER_K * scale / np.maximum(size, floor * 1e-6))
        w, wx, wy = weight.sum(), weight @ dx, weight @ residual
        wxx, wxy = weight @ (dx * dx), weight @ (dx * residual)
        spread = w * wxx - wx * wx
        step = float((w * wxy - wx * wy) / spread)
        slope += step
        level += float((wy - step * wx) / w)
        if abs(step) < 1e-9 * max(1.0, abs(slope)) and iteration > 3:
            converged = True
            break
    return HuberLine(slope, level - slope * origin, scale, converged)


def huber_columns(line: HuberLine, x: Array, y: Array, part_N: NDArray) -> list[Array]:
    """Return ψ′, ψ′x, ψ′x², ψ and ψx of the points of a part and 0 elsewhere."""
    residual = y - line.intercept - line.slope * x
    bound = HUBER_K * line.scale
    inner = ((np.abs(residual) <= bound) & part_N).astype(np.float64)
    psi = np.clip(residual, -bound, bound) * part_N
    return [inner, inner * x, inner * x * x, psi, psi * x]


def huber_slopes(line: HuberLine, sums_R5: Array) -> Array:
    """Return slopes one Newton step from the line in each resample, from `huber_columns`' sums."""
    j, jx, jxx, g, gx = sums_R5.T
    spread = j * jxx - jx * jx
    step = np.full(len(j), np.nan)
    np.divide(j * gx - jx * g, spread, out=step, where=spread > 1e-12 * j * jxx)
    return line.slope + step
