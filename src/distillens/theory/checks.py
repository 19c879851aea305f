"""Numbers that the closed forms are defined for, checked with a line that shows the one that is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import TheoryError

Array = NDArray[np.float64]


def finite(values: ArrayLike, what: str) -> Array:
    """Return float64 values, all of them finite."""
    return _checked(values, what, np.isfinite, "finite numbers")


def positive(values: ArrayLike, what: str) -> Array:
    """Return float64 values, finite and above zero."""
    return _checked(values, what, lambda x: np.isfinite(x) & (x > 0), "finite numbers above 0")


def non_negative(values: ArrayLike, what: str) -> Array:
    """Return float64 values, finite and at least zero."""
    return _checked(values, what, lambda x: np.isfinite(x) & (x >= 0), "finite numbers >= 0")


def stop_times(values: ArrayLike) -> Array:
    """Return times >= 0; infinity stands for training to the end."""
    return _checked(values, "a stop time", lambda x: x >= 0, "times >= 0, or infinity")


def shares(values: ArrayLike, what: str) -> Array:
    """Return float64 values strictly between 0 and 1."""
    return _checked(values, what, lambda x: (x > 0) & (x < 1), "shares above 0 and below 1")


def spectrum(values: ArrayLike, what: str = "the spectrum") -> Array:
    """Return one axis of at least one eigenvalue >= 0."""
    array = non_negative(values, what)
    if array.ndim != 1 or not array.size:
        raise TheoryError(f"{what} has shape {array.shape}; give one axis of eigenvalues, (K,)")
    return array


def _checked(
    values: ArrayLike, what: str, allowed: Callable[[Array], NDArray[np.bool_]], wanted: str
) -> Array:
    array = np.asarray(values, dtype=np.float64)
    wrong = array[~allowed(array)]
    if wrong.size:
        raise TheoryError(f"{what} cannot be {wrong.flat[0]:g}; give {wanted}")
    return array
