"""A kernel matrix from below by a few of its columns, to precondition and to bound solves with it.

Sources: randomly pivoted Cholesky, Chen, Epperly, Tropp, Webber 2023, arXiv 2207.06503, its block
form. The bound on what rounding does to LLᵀ ⪯ K is ours and derived at `_excess`.
Shapes: N rows of the kernel, R columns of the factor, B columns of a block, M right-hand sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError
from distillens.linalg.dense import require_finite
from distillens.linalg.iteration import UNIT, sum_error

Array = NDArray[np.float64]
Columns = Callable[[NDArray[np.intp]], ArrayLike]

# A pivot below this share of the largest diagonal entry is rounding: dividing by it spoils L.
_SMALLEST_PIVOT = 1e-12
# The diagonal and the columns may come in float32, each with its own rounding; more is a mistake.
_DIFFERENT_KERNELS = 1e-4


@dataclass(frozen=True, eq=False)
class LowRankKernel:
    """LLᵀ = U·diag(eigenvalues)·Uᵀ, made by `rp_cholesky`.

    ``basis`` is U, (N, R) with orthonormal columns, ``eigenvalues`` are (R,), descending.
    ``excess`` is the ε of LLᵀ ⪯ K + εI, which is about rounding; with an infinite one LLᵀ bounds
    nothing. ``norm`` is an upper bound of ‖K‖₂. ``pivots`` are the rows whose columns were used, (R,).
    """

    basis: Array
    eigenvalues: Array
    excess: float
    norm: float
    pivots: NDArray[np.intp]

    def solve(self, rhs_NM: Array, ridge: float) -> Array:
        """Return (LLᵀ + ridge·I)⁻¹R, (N, M).

        The part of R in the span of U and the rest are divided apart: Woodbury's formula subtracts
        the two after division by the ridge, which costs digits where ‖L‖² is far above it. For the
        same reason the span is taken out twice: what rounding leaves of it would be divided by the
        ridge.
        """
        inside_RM = self.basis.T @ rhs_NM
        result_NM = rhs_NM - self.basis @ inside_RM
        again_RM = self.basis.T @ result_NM
        result_NM -= self.basis @ again_RM
        inside_RM += again_RM
        result_NM /= ridge
        result_NM += self.basis @ (inside_RM / (self.eigenvalues + ridge)[:, None])
        return result_NM

    def bound(self, residual_NM: Array, ridge: float) -> Array:
        """Return an upper bound of rᵀ(K + ridge·I)⁻¹r for each column r, (M,).

        For B = U·diag(σ) and any c, rᵀ(BBᵀ + λI)⁻¹r ≤ ‖r − Bc‖²/λ + ‖c‖², with equality at the
        ridge solution c. So the bound holds whatever rounding did to c. As
        K + λI ⪰ BBᵀ + (λ − ε)I ⪰ (1 − ε/λ)(BBᵀ + λI), it is divided by 1 − ε/λ; it is infinite
        where ε ≥ λ.
        """
        roots_R = np.sqrt(self.eigenvalues)
        inside_RM = self.basis.T @ residual_NM
        c_RM = inside_RM * (roots_R / (self.eigenvalues + ridge))[:, None]
        rest_NM = residual_NM - self.basis @ (roots_R[:, None] * c_RM)
        rank = len(roots_R)
        # Forming r − Bc in floating point: |B||c| is at most √R·‖r‖ long.
        rounding = sum_error(rank + 3) * (1 + np.sqrt(rank))
        outside = np.linalg.norm(rest_NM, axis=0) + rounding * np.linalg.norm(residual_NM, axis=0)
        return self.above(outside**2 / ridge + np.sum(c_RM**2, axis=0), ridge)

    def above(self, forms_M: Array, ridge: float) -> Array:
        """Turn rᵀ(LLᵀ + ridge·I)⁻¹r into an upper bound of rᵀ(K + ridge·I)⁻¹r, (M,)."""
        share = 1 - self.excess / ridge
        return forms_M / share if share > 0 else np.where(forms_M == 0, 0.0, np.inf)


def rp_cholesky(
    columns: Columns,
    diagonal: ArrayLike,
    rank: int,
    *,
    block: int = 64,
    seed: int = 0,
    column_error: float = 0.0,
) -> LowRankKernel:
    """Approximate a positive semidefinite K from below by randomly pivoted Cholesky.

    Rows are sampled by the residual diagonal, a block at a time, and their columns are taken
    out of the kernel. Columns that depend on others to rounding are dropped, so the result may have
    a smaller rank than asked for.

    Parameters
    ----------
    columns
        Takes row numbers (B,) and returns those columns of K, (N, B).
    diagonal
        Diagonal of K, (N,).
    rank
        Number of columns to use, 1 to N.
    block
        Number of columns requested at once.
    seed
        Seed of the sampling.
    column_error
        e with ‖computed columns − exact columns‖_F ≤ e·‖columns‖_F, for example 1e-6 where they
        come from float32. It goes into ``excess``.

    Returns
    -------
    LowRankKernel
        With LLᵀ ⪯ K + ``excess``·I and ‖K‖₂ ≤ ``norm``.

    Raises
    ------
    KernelError
        The diagonal is negative, zero, not finite or that of another kernel; the columns have
        another shape or are not finite; or the rank, block or error is out of range.
    """
    diagonal_N = _checked_diagonal(diagonal)
    size = len(diagonal_N)
    if not 1 <= rank <= size:
        raise KernelError(f"the rank is {rank}; give 1 to {size}, the rows of the kernel")
    if block < 1:
        raise KernelError(f"the block is {block}; give at least 1 column")
    if not 0 <= column_error < 1:
        raise KernelError(f"the column error is {column_error}; give a share in [0, 1)")
    rng = np.random.default_rng(seed)
    largest = float(diagonal_N.max())
    smallest_pivot = max(_SMALLEST_PIVOT, 10 * column_error) * largest
    factor = np.zeros((size, rank))
    pivots = np.empty(rank, dtype=np.intp)
    left_N = diagonal_N.copy()
    done, error = 0, 0.0
    while done < rank:
        left_N[left_N <= smallest_pivot] = 0.0
        open_rows = np.count_nonzero(left_N)
        if open_rows == 0:
            break
        count = min(block, rank - done, open_rows)
        sampled = rng.choice(size, size=count, replace=False, p=left_N / left_N.sum())
        given_NB = _checked_columns(columns, sampled, diagonal_N)
        rest_NB = given_NB - factor[:, :done] @ factor[sampled, :done].T
        new_NB, order = _eliminate(rest_NB, sampled, smallest_pivot)
        # Both are zero but for rounding, and `_excess` counts on a triangle.
        new_NB[pivots[:done]] = 0.0
        left_N[sampled] = 0.0
        if len(order) == 0:
            continue
        end = done + len(order)
        factor[:, done:end] = new_NB
        pivots[done:end] = sampled[order]
        wrong_NB = factor[:, :end] @ factor[sampled[order], :end].T - given_NB[:, order]
        length = float(np.linalg.norm(given_NB[:, order]))
        # Twice what was seen, as looking has rounding too.
        error = float(
            np.hypot(error, 2 * np.linalg.norm(wrong_NB) + (column_error + 2 * UNIT) * length)
        )
        np.maximum(left_N - np.sum(new_NB**2, axis=1), 0.0, out=left_N)
        left_N[sampled] = 0.0
        done = end
    if done == 0:
        raise KernelError(
            f"no column is above the stated column error {column_error:g}: the largest diagonal "
            f"entry is {largest:.3g}; compute the columns more precisely"
        )
    factor, pivots = factor[:, :done], pivots[:done]
    basis, eigenvalues, wrong, turned_RR = _decompose(factor)
    excess = wrong + _excess(factor[pivots], turned_RR, error)
    trace = float(diagonal_N.sum()) * (1 + sum_error(size))
    left = trace - float(np.sum(eigenvalues))
    # No eigenvalue of K − LLᵀ is below −ε, so the largest is at most its trace plus the others' ε.
    above = max(left, 0.0) + sum_error(size) * trace + (size - 1) * excess
    norm = min(trace, float(eigenvalues[0]) + above)
    return LowRankKernel(basis, eigenvalues, excess, norm, pivots)


def _eliminate(
    rest_NB: Array, sampled: NDArray[np.intp], smallest_pivot: float
) -> tuple[Array, NDArray[np.intp]]:
    """Return new columns of L from the residual of the sampled ones, and the kept ones in order."""
    core_BB = rest_NB[sampled]
    core_BB = 0.5 * (core_BB + core_BB.T)
    (pstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (core_BB,))
    triangle, order, rank, _ = pstrf(core_BB, tol=smallest_pivot, lower=1)
    # With its own tolerance LAPACK stops before the first pivot too only if that is <= 0.
    if rank == 0 or triangle[0, 0] ** 2 <= smallest_pivot:
        return np.empty((len(rest_NB), 0)), np.empty(0, dtype=np.intp)
    order = (order[:rank] - 1).astype(np.intp)
    triangle = np.tril(triangle[:rank, :rank])
    new_NB = scipy.linalg.solve_triangular(
        triangle, rest_NB[:, order].T, lower=True, check_finite=False
    ).T
    new_NB[sampled[order]] = triangle
    return new_NB, order


def _decompose(factor_NR: Array) -> tuple[Array, Array, float, Array]:
    """Return U and Σ² of the singular value decomposition of L, the ε of its rounding, and ΣVᵀ."""
    basis, roots, right_RR = scipy.linalg.svd(factor_NR, full_matrices=False, check_finite=False)
    turned_RR = roots[:, None] * right_RR
    wrong = 0.0
    # By rows, as N by R is the largest array here.
    for start in range(0, len(factor_NR), 4096):
        rows = slice(start, start + 4096)
        wrong = float(np.hypot(wrong, np.linalg.norm(factor_NR[rows] - basis[rows] @ turned_RR)))
    skew = float(np.linalg.norm(right_RR @ right_RR.T - np.eye(len(roots))))
    # BBᵀ = LLᵀ up to this for L = BVᵀ + D with ‖D‖ = wrong and VᵀV = I up to skew. Twice what was
    # seen, as looking has rounding too.
    largest = float(roots[0])
    excess = 2 * (2 * largest * wrong + wrong**2 + skew * largest**2)
    return basis, roots**2, excess, turned_RR


def _excess(triangle_RR: Array, turned_RR: Array, error: float) -> float:
    """ε of LLᵀ ⪯ K + εI for an L with T = L[pivots] lower triangular and ‖LTᵀ − K_S‖ ≤ error.

    With G = LTᵀ, C = TTᵀ and any v, vᵀLLᵀv = max_w 2wᵀGᵀv − wᵀCw, taken at w = C⁻¹Gᵀv. Replacing G
    and C by the exact columns K_S and K_SS changes this by at most (2‖W‖ + ‖W‖²)·error·‖v‖²,
    W = C⁻¹Gᵀ = T⁻ᵀLᵀ; and 2wᵀK_Sᵀv − wᵀK_SSw ≤ vᵀKv for every w, as K is positive semidefinite.
    """
    weights = scipy.linalg.solve_triangular(
        triangle_RR.T, turned_RR.T, lower=False, check_finite=False
    )
    length = float(np.linalg.norm(weights, 2))
    return (2 * length + length**2) * error


def _checked_diagonal(diagonal: ArrayLike) -> Array:
    diagonal_N = np.asarray(diagonal, dtype=np.float64)
    if diagonal_N.ndim != 1 or len(diagonal_N) == 0:
        raise KernelError(f"the diagonal of a kernel has shape (N,), this has {diagonal_N.shape}")
    require_finite(diagonal_N, "the kernel's diagonal")
    if diagonal_N.min() < 0:
        raise KernelError(
            f"the kernel's diagonal goes down to {diagonal_N.min():.3g}; no Gram has a negative "
            "entry there, so check how it was computed"
        )
    if diagonal_N.max() == 0:
        raise KernelError("the kernel's diagonal is all zero; there is nothing to approximate")
    return diagonal_N


def _checked_columns(columns: Columns, sampled: NDArray[np.intp], diagonal_N: Array) -> Array:
    given_NB = np.asarray(columns(sampled), dtype=np.float64)
    wanted = (len(diagonal_N), len(sampled))
    if given_NB.shape != wanted:
        raise KernelError(f"the kernel's columns came in shape {given_NB.shape}; return {wanted}")
    require_finite(given_NB, "the kernel's columns")
    difference = np.abs(given_NB[sampled, np.arange(len(sampled))] - diagonal_N[sampled])
    worst = float(difference.max())
    if worst > _DIFFERENT_KERNELS * diagonal_N.max():
        raise KernelError(
            f"the kernel's columns and its diagonal differ by {worst:.3g} where they meet; "
            "compute both from the same examples in the same order"
        )
    return given_NB
