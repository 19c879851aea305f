"""yᵀ(K + λI)⁻¹y by iteration, within an interval that certainly holds it.

The kernel K is positive semidefinite and is given as a product X → KX; K + λI is never formed.

Any iterate has an interval, see `iteration`; conjugate gradients only make it narrow.

Shapes: N rows of the kernel, M right-hand sides (columns).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError
from distillens.linalg.dense import checked_targets, require_finite
from distillens.linalg.iteration import (
    ConjugateGradients,
    Interval,
    columnwise,
    interval,
    sum_error,
)
from distillens.linalg.nystrom import LowRankKernel

Array = NDArray[np.float64]

# The recurrence's residual is a little off: look at the true one when the width is safely reached.
_AHEAD = 0.95
# Where the rest of the interval is below this share of its rounding, iterating on is no help.
_ROUNDING_RULES = 0.01


@dataclass(frozen=True, eq=False)
class CertifiedValues:
    """yᵀ(K + ridge·I)⁻¹y of M columns, each within [low, high]; arrays are (M,).

    ``estimate`` is yᵀx + rᵀx, whose error is second order in that of x. ``width`` is
    (high − low)/low, infinite where low is 0 and high is not. ``converged`` marks the columns whose
    intervals are as narrow as requested. ``products`` counts the calls of the product.
    """

    low: Array
    high: Array
    estimate: Array
    width: Array
    converged: NDArray[np.bool_]
    products: int


class UndeterminedError(KernelError):
    """Columns whose interval stayed too wide; ``result`` has all intervals, which hold still."""

    def __init__(self, message: str, result: CertifiedValues) -> None:
        super().__init__(message)
        self.result = result


def certified_quadratic_form(
    product: Callable[[Array], ArrayLike],
    targets: ArrayLike,
    ridge: float,
    *,
    product_error: float,
    norm: float | None = None,
    preconditioner: LowRankKernel | None = None,
    width: float = 0.02,
    max_iterations: int = 1000,
) -> CertifiedValues:
    """Compute yᵀ(K + ridge·I)⁻¹y for each column y by preconditioned conjugate gradients.

    About eight arrays of the targets' shape are held, besides the preconditioner. Columns that are
    done are left out of further products.

    Parameters
    ----------
    product
        Takes X, (N, m) with 1 <= m <= M, in float64 and returns KX. K is positive semidefinite.
    targets
        y of shape (N,), or M of them as columns, (N, M).
    ridge
        λ > 0, in the units of the kernel.
    product_error
        e with ‖computed Kx − Kx‖₂ ≤ e·‖K‖₂·‖x‖₂ for every x; it needs an upper bound of ‖K‖₂
        (``norm``, or that of the preconditioner). 0 states that the product is exact.
    norm
        An upper bound of ‖K‖₂; the trace is one. An estimate by power iteration is not.
    preconditioner
        See `rp_cholesky`. Without it the iteration is plain and only Q = λI bounds it.
    width
        Stop a column where its interval is at most this share of its lower end.
    max_iterations
        Steps after which it is an error.

    Returns
    -------
    CertifiedValues
        With every column determined.

    Raises
    ------
    UndeterminedError
        Columns did not become narrow enough; it names the width reached and has the ``result``.
    KernelError
        The ridge is not above 0, an option is out of range, the preconditioner has another number
        of rows, the product returns another shape or values that are not finite, or the kernel has
        a negative eigenvalue beyond the stated error.
    MeasureError
        The targets have another shape or are not finite.
    """
    y_NM = checked_targets(targets)
    y_NM = y_NM.reshape(len(y_NM), -1)
    _check_options(ridge, width, max_iterations, preconditioner, len(y_NM))
    ridge = float(ridge)
    error = _error_of_product(product_error, norm, preconditioner)
    calls = 0

    def counted(x_NM: Array) -> Array:
        nonlocal calls
        calls += 1
        return _checked_image(product(x_NM), x_NM.shape)

    def precondition(r_NM: Array) -> Array:
        return r_NM.copy() if preconditioner is None else preconditioner.solve(r_NM, ridge)

    def bound(r_NM: Array) -> Array:
        gap = columnwise(r_NM, r_NM) / ridge
        return gap if preconditioner is None else np.minimum(gap, preconditioner.bound(r_NM, ridge))

    # The interval of x = 0, for which no product is needed.
    start = bound(y_NM) * (1 + 2 * sum_error(len(y_NM) + 3))
    ledger = _Ledger(start, width)
    open_M = np.flatnonzero(y_NM.any(axis=0))
    y = y_NM[:, open_M]
    iteration = ConjugateGradients(counted, error, precondition, ridge, y)
    gaps_M = np.full(y_NM.shape[1], np.inf)
    for step in range(1, max_iterations + 1):
        if len(open_M) == 0:
            break
        iteration.step()
        # The recurrence's own residual indicates for free when computing the true one is worth a
        # product; it drifts, so it proves nothing.
        free = columnwise(iteration.residual, iteration.residual) / ridge
        if preconditioner is not None:
            free = np.minimum(free, preconditioner.above(iteration.size, ridge))
        guess = interval(y, iteration.x, iteration.residual, free, error, ridge)
        ready = ledger.narrow(guess, _AHEAD) | ledger.hopeless(guess) | iteration.stuck
        ready |= step == max_iterations
        if not ready.any():
            continue
        x = iteration.x[:, ready]
        image = counted(x)
        residual = y[:, ready] - image - ridge * x
        gap = bound(residual)
        seen = interval(y[:, ready], x, residual, gap, error, ridge, image)
        columns = open_M[ready]
        # A restart from the true residual that does not halve the gap meets rounding.
        stalled = gap > 0.5 * gaps_M[columns]
        gaps_M[columns] = gap
        done = ledger.enter(columns, seen) | stalled | (step == max_iterations)
        if done.all() and ready.all():
            break
        again = ready.copy()
        again[ready] = ~done
        if again.any():
            iteration.replace(again, residual[:, ~done])
        if done.any():
            remaining = ~ready | again
            iteration.keep(remaining)
            y, open_M = y[:, remaining], open_M[remaining]
    return ledger.close(ridge, calls, max_iterations)


class _Ledger:
    """Current values of each of the M columns, and whether they suffice."""

    def __init__(self, start_M: Array, width: float) -> None:
        columns = len(start_M)
        self._width = width
        # A zero target has the value 0 without any iteration.
        self._low, self._high = np.zeros(columns), start_M.copy()
        self._estimate, self._rounding = np.zeros(columns), np.zeros(columns)

    def narrow(self, seen: Interval, share: float = 1.0) -> NDArray[np.bool_]:
        return seen.high - seen.low <= share * self._width * seen.low

    def hopeless(self, seen: Interval) -> NDArray[np.bool_]:
        rounding = seen.rounding
        return (rounding > self._width * seen.low) & (seen.gap <= _ROUNDING_RULES * rounding)

    def enter(self, columns: NDArray[np.intp], seen: Interval) -> NDArray[np.bool_]:
        """Write down the intervals of ``columns``; return which of them are finished."""
        # Each look has an interval that holds the value, so what all of them share holds it too.
        self._low[columns] = np.maximum(self._low[columns], seen.low)
        self._high[columns] = np.minimum(self._high[columns], seen.high)
        self._estimate[columns], self._rounding[columns] = seen.estimate, seen.rounding
        return self.narrow(seen) | self.hopeless(seen)

    def close(self, ridge: float, products: int, max_iterations: int) -> CertifiedValues:
        low, high = self._low, self._high
        width = np.divide(high - low, low, out=np.where(high > low, np.inf, 0.0), where=low > 0)
        converged = high - low <= self._width * low
        estimate = np.clip(self._estimate, low, high)
        result = CertifiedValues(low, high, estimate, width, converged, products)
        if converged.all():
            return result
        worst = int(np.argmax(np.where(converged, -1.0, width)))
        raise UndeterminedError(
            f"{np.sum(~converged)} of {len(low)} columns are undetermined: column {worst} is "
            f"within [{low[worst]:.6g}, {high[worst]:.6g}], {width[worst]:.3g} of its value where "
            f"{self._width:g} was asked for; product error and rounding alone make "
            f"{self._rounding[worst]:.3g} of that; allow more than {max_iterations} iterations, give "
            "a preconditioner of higher rank, compute the product more precisely or raise the ridge "
            f"from {ridge:g}",
            result,
        )


def _check_options(
    ridge: float,
    width: float,
    max_iterations: int,
    preconditioner: LowRankKernel | None,
    size: int,
) -> None:
    if not (np.isfinite(ridge) and ridge > 0):
        raise KernelError(
            f"the ridge is {ridge}; the iterative solve needs a finite one > 0, so give one or "
            "factorise the Gram"
        )
    if not width > 0:
        raise KernelError(f"the width is {width}; give a share > 0")
    if max_iterations < 1:
        raise KernelError(f"max_iterations is {max_iterations}; give at least 1")
    if preconditioner is not None and len(preconditioner.basis) != size:
        raise KernelError(
            f"the preconditioner has {len(preconditioner.basis)} rows and the targets have {size}; "
            "make both from the same examples"
        )


def _error_of_product(
    product_error: float, norm: float | None, preconditioner: LowRankKernel | None
) -> float:
    """Return a bound of ‖computed Kx − Kx‖₂/‖x‖₂."""
    if not (np.isfinite(product_error) and product_error >= 0):
        raise KernelError(f"the product error is {product_error}; give a finite number >= 0")
    known = [norm] if norm is not None else []
    if preconditioner is not None and np.isfinite(preconditioner.norm):
        known.append(preconditioner.norm)
    if any(not (np.isfinite(one) and one >= 0) for one in known):
        raise KernelError(f"the norm is {norm}; give a finite upper bound of ‖K‖, as its trace")
    if product_error > 0 and not known:
        raise KernelError(
            f"a product error of {product_error:g} is relative to ‖K‖, of which nothing is known; "
            "give norm, an upper bound such as the kernel's trace"
        )
    return product_error * min(known) if product_error > 0 else 0.0


def _checked_image(image: ArrayLike, shape: tuple[int, ...]) -> Array:
    # A copy, as the product may hand out its own memory and the iteration writes in it.
    image_NM = np.array(image, dtype=np.float64)
    if image_NM.shape != shape:
        raise KernelError(f"the product returned shape {image_NM.shape}; return {shape}")
    require_finite(image_NM, "the product")
    return image_NM
