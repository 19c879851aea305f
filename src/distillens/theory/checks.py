"""Numbers that the closed forms are defined for, checked with a line that shows the one that is not."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import TheoryError

Array = NDArray[np.float64]


def finite(values: ArrayLike, what: str) -> Array:
    """Return float64 values, all of them finite."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise TheoryError(f"{what} holds NaN or infinity; give finite numbers")
    return array


def positive(values: ArrayLike, what: str) -> Array:
    """Return float64 values, finite and above zero."""
    array = finite(values, what)
    if (array <= 0).any():
        raise TheoryError(f"{what} holds {array.min():g}; give numbers above 0")
    return array


def non_negative(values: ArrayLike, what: str) -> Array:
    """Return float64 values, finite and at least zero."""
    array = finite(values, what)
    if (array < 0).any():
        raise TheoryError(f"{what} holds {array.min():g}; give numbers >= 0")
    return array


def stop_times(values: ArrayLike) -> Array:
    """Return times >= 0; infinity stands for training to the end."""
    array = np.asarray(values, dtype=np.float64)
    if np.isnan(array).any() or (array < 0).any():
        raise TheoryError(
            f"a stop time is {np.nanmin(array):g} or NaN; give times >= 0, or infinity"
        )
    return array


def shares(values: ArrayLike, what: str) -> Array:
    """Return float64 values strictly between 0 and 1."""
    array = finite(values, what)
    if ((array <= 0) | (array >= 1)).any():
        wrong = array[(array <= 0) | (array >= 1)].flat[0]
        raise TheoryError(f"{what} holds {wrong:g}; give shares above 0 and below 1")
    return array


def spectrum(values: ArrayLike, what: str = "the spectrum") -> Array:
    """Return one axis of at least one eigenvalue >= 0."""
    array = non_negative(values, what)
    if array.ndim != 1 or not array.size:
        raise TheoryError(f"{what} has shape {array.shape}; give one axis of eigenvalues, (K,)")
    return array
