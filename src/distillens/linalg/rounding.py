"""Rounding errors of sums and products in float64."""

from __future__ import annotations

import numpy as np

UNIT = float(np.finfo(np.float64).eps) / 2
"""u, the largest relative error of one operation."""


def sum_error(terms: int) -> float:
    """γ_n = n·u/(1 − n·u): bounds the error of a sum of n products in any order.

    It is relative to the sum of the absolute values. Source: Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, section 3.1.
    """
    return terms * UNIT / (1 - terms * UNIT)
