"""Solving with a Gram matrix by Cholesky in float64, with the error of each solve.

How sensitive yᵀK⁻¹y is to errors of the Gram itself: for a symmetric error ΔK with ‖ΔK‖₂ ≤ δ, K −
δI ⪯ K + ΔK ⪯ K + δI. Where K − δI is positive definite (Weyl: where the smallest eigenvalue of K is
above δ) the inverse turns the order round: yᵀ(K + δI)⁻¹y ≤ yᵀ(K + ΔK)⁻¹y ≤ yᵀ(K − δI)⁻¹y. Both ends
are reached, at ΔK = ±δI, so no bound from δ alone is tighter; that by eigenvalues, yᵀK⁻¹y/(1 ±
δ/λ_min), is wider. To first order the movement is |xᵀΔKx| ≤ δ‖x‖² with x = K⁻¹y.

Shapes: N rows of the matrix, M right-hand sides, C blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError, MeasureError

Array = NDArray[np.float64]

# Float32 tiles that were summed in another order differ by about this much; more is a mistake.
ASYMMETRY = 1e-6
# A Gram has no negative eigenvalue; down to this share of the largest one it is float32 rounding.
_NEGATIVE = 1e-6

DETERMINED = 0.01
"""A value is determined if no error of the stated size moves it by more than this share."""


class SingularGramError(KernelError):
    """A Gram that is positive semidefinite but cannot be told from a singular one."""


@dataclass(frozen=True, eq=False)
class Factor:
    """Cholesky factor of K = gram + ridge·I, made by `factorise`.

    Both matrices are (N, N); the factor's lower triangle counts. The Gram is kept for residuals,
    without a copy, so it must not be changed afterwards.
    """

    gram: Array
    cholesky: Array
    ridge: float

    def solve(self, rhs: ArrayLike) -> tuple[Array, float]:
        """Solve Kx = y, with one step of iterative refinement.

        Parameters
        ----------
        rhs
            y, of shape (N,) or (N, M).

        Returns
        -------
        tuple
            x in the shape of y, and the relative residual ‖Kx − y‖/‖y‖ (of the worst column).

        Raises
        ------
        MeasureError
            y has another length or holds a value that is not finite.
        """
        y = checked_targets(rhs, len(self.gram))
        x = self._substitute(y)
        x = x + self._substitute(y - self._apply(x))
        error = np.atleast_1d(np.linalg.norm(y - self._apply(x), axis=0))
        length = np.atleast_1d(np.linalg.norm(y, axis=0))
        # y = 0 has the exact solution 0, for which 0/0 would be no help.
        ratio = np.divide(error, length, out=np.zeros_like(error), where=length > 0)
        return x, float(ratio.max(initial=0.0))

    def _substitute(self, y: Array) -> Array:
        return scipy.linalg.cho_solve((self.cholesky, True), y, check_finite=False)

    def _apply(self, x: Array) -> Array:
        return self.gram @ x + self.ridge * x


@dataclass(frozen=True)
class EigenSummary:
    """Summary of the spectrum of a Gram; condition is infinite if smallest ≤ 0."""

    trace: float
    smallest: float
    largest: float
    condition: float
    effective_rank: float


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


def factorise(gram_NN: ArrayLike, ridge: float = 0.0) -> Factor:
    """Factorise K = gram + ridge·I by Cholesky.

    Rounding lets Cholesky pass on some singular matrices, so the condition is checked as well:
    K counts as singular where its smallest eigenvalue is at most max(N, 100)·2.2e-16 times its
    largest. A Gram given in float32 (or float16) has that type's rounding error, so there the
    share is at least that type's epsilon (1.2e-7).

    Parameters
    ----------
    gram_NN
        A symmetric matrix, (N, N).
    ridge
        Value added to each diagonal entry, in the units of the Gram.

    Raises
    ------
    SingularGramError
        K is singular to rounding; the message has the smallest and the largest eigenvalue.
    KernelError
        The Gram is not square, not finite, not symmetric or has a negative eigenvalue; or the
        ridge is negative. `SingularGramError` is a kind of `KernelError`.
    """
    given = np.asarray(gram_NN)
    gram = checked_gram(given)
    if not (np.isfinite(ridge) and ridge >= 0):
        raise KernelError(f"the ridge is {ridge}; give a finite number >= 0")
    ridge = float(ridge)
    limit = singular_share(given)
    shifted = shifted_gram(gram, ridge)
    factor, reciprocal = cholesky_of(shifted)
    # In the 1-norm the condition of a symmetric matrix is never below that in the 2-norm, so only
    # matrices that look suspicious here need their eigenvalues; 10 allows for LAPACK's estimate.
    if factor is None or reciprocal < 10 * limit:
        _refuse_singular(gram, ridge, limit, failed=factor is None)
    assert factor is not None  # _refuse_singular raises where Cholesky failed
    return Factor(gram, factor, ridge)


def quadratic_form(factor: Factor, targets: ArrayLike) -> tuple[Array, float]:
    """Compute yᵀK⁻¹y.

    Parameters
    ----------
    factor
        Factor of K, (N, N).
    targets
        y of shape (N,), or M of them as columns, (N, M).

    Returns
    -------
    tuple
        The value, of shape () or one a column, (M,); and the relative residual of the worst solve.
    """
    y = np.asarray(targets, dtype=np.float64)
    x, residual = factor.solve(y)
    return np.asarray(np.sum(y * x, axis=0)), residual


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


def eigen_summary(gram: ArrayLike) -> EigenSummary:
    """Summarise the eigenvalues of a Gram (N, N), or of C diagonal blocks (C, N, N) together.

    Raises
    ------
    KernelError
        The Gram (or a block) is not square, not finite or not symmetric.
    """
    array = np.asarray(gram)
    blocks = array if array.ndim == 3 else array[None]
    if len(blocks) == 0:
        raise KernelError(f"a Gram of shape {array.shape} has no blocks; give at least one")
    checked = [checked_gram(block) for block in blocks]
    spectra = [scipy.linalg.eigvalsh(block, check_finite=False) for block in checked]
    smallest = float(min(values[0] for values in spectra))
    largest = float(max(values[-1] for values in spectra))
    return EigenSummary(
        trace=float(sum(np.trace(block) for block in checked)),
        smallest=smallest,
        largest=largest,
        condition=largest / smallest if smallest > 0 else float("inf"),
        effective_rank=effective_rank(np.concatenate(spectra)),
    )


def effective_rank(eigenvalues: ArrayLike) -> float:
    """Return exp(−Σ p ln p) with p = λ/Σλ: 1 for rank one, K for the identity, 0 for a zero matrix.

    Negative eigenvalues count as 0. Source: Roy and Vetterli, EUSIPCO 2007.
    """
    positive_K = np.asarray(eigenvalues, dtype=np.float64)
    positive_K = positive_K[positive_K > 0]
    if positive_K.size == 0:
        return 0.0
    # Divided by the largest first: a sum of extreme values could leave float64's range.
    relative_K = positive_K / positive_K.max()
    share_K = relative_K / relative_K.sum()
    # A share can be 0 by underflow; p ln p then is 0 too.
    share_K = share_K[share_K > 0]
    return float(np.exp(-np.sum(share_K * np.log(share_K))))


def eigenpairs(gram: ArrayLike) -> tuple[Array, Array]:
    """Return the eigenvalues of a Gram in ascending order, (N,), and its eigenvectors as columns.

    Negative eigenvalues no larger than rounding (1e-6 of the largest) are returned as they are.

    Raises
    ------
    KernelError
        The Gram (N, N) is not square, not finite, not symmetric or has a negative eigenvalue.
    """
    gram_NN = checked_gram(gram)
    values_N, vectors_NN = scipy.linalg.eigh(gram_NN, check_finite=False)
    smallest, size = float(values_N[0]), float(np.abs(values_N).max())
    if smallest < -_NEGATIVE * size:
        raise KernelError(
            f"the Gram ({len(gram_NN)} rows) is not positive semidefinite: smallest eigenvalue "
            f"{smallest:.3g}, largest {float(values_N[-1]):.3g}; check how it was computed"
        )
    return values_N, vectors_NN


def checked_gram(gram: ArrayLike) -> Array:
    """Return a Gram (N, N) in float64, exactly symmetric.

    Raises
    ------
    KernelError
        It is not square, not finite or not symmetric.
    """
    gram = np.asarray(gram)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise KernelError(
            f"a Gram must be a square matrix with at least one row, this one has shape {gram.shape}"
        )
    gram_NN = np.asarray(gram, dtype=np.float64)
    require_finite(gram_NN, "the Gram")
    difference = float(np.abs(gram_NN - gram_NN.T).max())
    if difference == 0:
        return gram_NN
    size = float(np.abs(gram_NN).max())
    if difference > ASYMMETRY * size:
        raise KernelError(
            f"the Gram is not symmetric: mirrored entries differ by up to {difference:.3g} "
            f"where the largest is {size:.3g}; check the order of the examples along both axes"
        )
    # Cholesky reads one triangle, residuals both: they must mean the same matrix.
    return 0.5 * (gram_NN + gram_NN.T)


def checked_targets(targets: ArrayLike, rows: int | None = None) -> Array:
    """Return targets of shape (N,) or (N, M) in float64, for N rows if that is given."""
    y = np.asarray(targets, dtype=np.float64)
    if y.ndim not in (1, 2) or len(y) != (rows or len(y)) or len(y) == 0:
        wanted = rows or "N"
        raise MeasureError(
            f"targets of shape {y.shape} do not fit the kernel; give ({wanted},) or ({wanted}, M)"
        )
    if not np.isfinite(y).all():
        raise MeasureError(f"the targets of shape {y.shape} hold NaN or infinity")
    return y


def require_finite(array: Array, what: str) -> None:
    """Raise KernelError if an array holds NaN or infinity."""
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise KernelError(
            f"{what} holds {bad} values that are NaN or infinite; look for non-finite weights or "
            "inputs in what it was computed from"
        )


def singular_share(gram: NDArray) -> float:
    """Share of the largest eigenvalue at or below which the smallest one is rounding."""
    share = max(len(gram), 100) * float(np.finfo(np.float64).eps)
    if np.issubdtype(gram.dtype, np.floating):
        share = max(share, float(np.finfo(gram.dtype).eps))
    return share


def shifted_gram(gram_NN: Array, ridge: float) -> Array:
    """Copy the Gram in C order and add the ridge."""
    shifted = np.array(gram_NN, order="C")
    shifted[np.diag_indices_from(shifted)] += ridge
    return shifted


def cholesky_of(shifted_NN: Array) -> tuple[Array | None, float]:
    """Factorise in the matrix's own memory; also the reciprocal condition in the 1-norm.

    Where Cholesky fails these are None and 0.
    """
    lange, pocon = scipy.linalg.get_lapack_funcs(("lange", "pocon"), (shifted_NN,))
    norm = lange("1", shifted_NN.T)
    try:
        # A symmetric matrix is its own transpose: this view is in Fortran order, so LAPACK
        # works in place.
        factor, _ = scipy.linalg.cho_factor(
            shifted_NN.T, lower=True, overwrite_a=True, check_finite=False
        )
    except np.linalg.LinAlgError:
        return None, 0.0
    return factor, float(pocon(factor, norm, uplo="L")[0])


def _refuse_singular(gram_NN: Array, ridge: float, limit: float, *, failed: bool) -> None:
    """Raise if K is singular to rounding or not positive definite; ``failed``: Cholesky was."""
    eigenvalues = scipy.linalg.eigvalsh(shifted_gram(gram_NN, ridge), check_finite=False)
    smallest, size = float(eigenvalues[0]), float(np.abs(eigenvalues).max())
    what = f"the Gram ({len(gram_NN)} rows, ridge {ridge:g})"
    values = f"smallest eigenvalue {smallest:.3g}, largest {float(eigenvalues[-1]):.3g}"
    if smallest < -_NEGATIVE * size:
        raise KernelError(
            f"{what} is not positive definite: {values}; no Gram has a negative eigenvalue, "
            "so check how it was computed"
        )
    if size == 0:
        raise SingularGramError(f"{what} is singular: it is zero")
    if failed or smallest <= limit * size:
        advice = max(1e-6 * size, 10 * limit * size, -10 * smallest)
        share = advice / float(np.trace(gram_NN) / len(gram_NN))
        raise SingularGramError(
            f"{what} is singular to rounding: {values}; leave out duplicate examples, take "
            f"float64 if it was made in float32, or add a ridge such as {advice:.1g} "
            f"({share:.1g} of the mean diagonal)"
        )
