"""Quadratic forms of a Gram that may be singular: by definition, and with a ridge.

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245, Def. 1: yᵀK⁻¹y is infinite for a singular K.
Shapes: N rows of the matrix, M right-hand sides (columns).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError
from distillens.linalg.dense import (
    SingularGramError,
    checked_gram,
    eigenvalues_of,
    factorise,
    quadratic_form,
    singular_share,
)

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RidgedValues:
    """yᵀK⁻¹y as defined, and yᵀ(K + ridge·I)⁻¹y; arrays are (M,).

    ``value`` is infinite in every column where K is singular to rounding. ``rank`` counts the
    eigenvalues above ``limit``, the share of the largest at which `factorise` calls K singular, of
    ``size`` in all; ``smallest`` and ``largest`` are those of K without the ridge. ``residual`` is
    that of the solve with the ridge.
    """

    value: Array
    ridged: Array
    ridge: float
    rank: int
    size: int
    smallest: float
    largest: float
    limit: float
    residual: float

    @property
    def singular(self) -> bool:
        """Whether K is singular to rounding."""
        return bool(np.isinf(self.value).any())


def quadratic_form_with_ridge(gram_NN: ArrayLike, targets: ArrayLike, ridge: float) -> RidgedValues:
    """Compute yᵀK⁻¹y, infinite where K is singular, and the same with a ridge.

    Parameters
    ----------
    gram_NN
        K, a symmetric positive semidefinite matrix, (N, N).
    targets
        y of shape (N,), or M of them as columns, (N, M).
    ridge
        λ > 0 of the value with a ridge, in the units of the Gram.

    Raises
    ------
    SingularGramError
        The ridge is so small that K + ridge·I is still singular to rounding.
    KernelError
        The Gram is not square, not finite, not symmetric or has a negative eigenvalue; or the ridge
        is not above 0.
    MeasureError
        The targets have another length or are not finite.
    """
    if not (np.isfinite(ridge) and ridge > 0):
        raise KernelError(f"the ridge is {ridge}; give a finite number > 0")
    given = np.asarray(gram_NN)
    ridged, residual = quadratic_form(factorise(given, ridge), targets)
    ridged = np.atleast_1d(ridged)
    try:
        value = np.atleast_1d(quadratic_form(factorise(given), targets)[0])
    except SingularGramError:
        value = np.full(ridged.shape, np.inf)
    spectrum = eigenvalues_of(checked_gram(given))
    limit = singular_share(given)
    return RidgedValues(
        value=value,
        ridged=ridged,
        ridge=float(ridge),
        rank=int(np.count_nonzero(spectrum > limit * spectrum[-1])),
        size=len(spectrum),
        smallest=float(spectrum[0]),
        largest=float(spectrum[-1]),
        limit=limit,
        residual=residual,
    )
