"""Eigenvectors, and the course of a layer's weights and of predictions along them over a training.

Source: Nagarajan et al. 2023, arXiv 2301.12923; randomised SVD: Halko, Martinsson and Tropp, SIAM
Review 2011. Shapes: E checkpoints, N examples (or rows), D values an input, H units, C classes, K
directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.extmath import randomized_svd

from distillens.errors import MeasureError
from distillens.linalg import eigenpairs
from distillens.results.eigenspace import Decomposition

Array = NDArray[np.float64]

EXACT_OPERATIONS = 2e11
"""N·D·min(N, D) up to which the SVD is exact: some minutes on two cores."""

_ITERATIONS, _OVERSAMPLES = 12, 30


@dataclass(frozen=True, eq=False)
class Directions:
    """Top eigenvectors; made by `input_directions` or `gram_directions`. Their signs mean nothing."""

    eigenvalues_K: Array
    """Largest first."""
    vectors: Array
    """As columns: in the space of inputs, (D, K), or, of a Gram, in that of examples, (N, K)."""
    decomposition: Decomposition
    residual: float
    """max_k ‖Av_k − λ_k v_k‖/λ_k, with A the matrix whose eigenvectors these are."""


def input_directions(
    inputs_ND: ArrayLike, count: int, *, exact: bool | None = None, seed: int = 0
) -> Directions:
    """Return the top eigenvectors of XᵀX.

    Parameters
    ----------
    inputs_ND
        X, not centred, as the paper has it.
    count
        K.
    exact
        By default exact up to `EXACT_OPERATIONS`, randomised above; the result names the method and its
        residual.
    seed
        Seed of the randomised SVD.

    Raises
    ------
    MeasureError
        X is not finite, not (N, D), or has fewer than K directions to rounding.
    """
    given = np.asarray(inputs_ND)
    if given.ndim != 2 or not given.size:
        raise MeasureError(f"the inputs have shape {given.shape}; give (N, D)")
    if not np.isfinite(given).all():
        raise MeasureError("the inputs hold NaN or infinity")
    _check_count(count, min(given.shape), f"inputs of shape {given.shape}")
    x = given.astype(np.float64, copy=False)
    if exact is None:
        exact = x.size * float(min(x.shape)) <= EXACT_OPERATIONS
    if exact:
        _, singular, rows = np.linalg.svd(x, full_matrices=False)
        decomposition: Decomposition = "exact SVD"
    else:
        # Its signature declares str for the number of iterations, which it documents as either.
        iterations: Any = _ITERATIONS
        _, singular, rows = randomized_svd(
            x, count, n_oversamples=_OVERSAMPLES, n_iter=iterations, random_state=seed
        )
        decomposition = "randomised SVD"
    _check_rank(singular[:count] ** 2, max(x.shape), "inputs")
    values_K, vectors_DK = singular[:count] ** 2, np.ascontiguousarray(rows[:count].T)
    residual = _residual(x.T @ (x @ vectors_DK), vectors_DK, values_K)
    return Directions(values_K, vectors_DK, decomposition, residual)


def example_directions(inputs_ND: ArrayLike, directions: Directions) -> Directions:
    """Return the eigenvectors of the data kernel XXᵀ, Xv_k/√λ_k, from those of XᵀX.

    Raises
    ------
    MeasureError
        The eigenvectors are of other inputs, by their shape.
    """
    x, vectors_DK = np.asarray(inputs_ND, dtype=np.float64), directions.vectors
    if x.ndim != 2 or x.shape[1] != len(vectors_DK):
        raise MeasureError(f"inputs of shape {x.shape} do not fit vectors {vectors_DK.shape}")
    values_K = directions.eigenvalues_K
    vectors_NK = (x @ vectors_DK) / np.sqrt(values_K)
    residual = _residual(x @ (x.T @ vectors_NK), vectors_NK, values_K)
    return Directions(values_K, vectors_NK, directions.decomposition, residual)


def gram_directions(gram_NN: ArrayLike, count: int) -> Directions:
    """Return the top eigenvectors of a Gram: the data kernel XXᵀ, or a tangent kernel.

    Raises
    ------
    KernelError
        The Gram is not finite, not symmetric, or has a negative eigenvalue.
    MeasureError
        It has fewer than K directions to rounding.
    """
    gram = np.asarray(gram_NN, dtype=np.float64)
    _check_count(count, len(gram), f"a Gram of shape {gram.shape}")
    ascending, vectors = eigenpairs(gram)
    values_K, vectors_NK = (
        ascending[::-1][:count],
        np.ascontiguousarray(vectors[:, ::-1][:, :count]),
    )
    _check_rank(values_K, len(gram), "Gram")
    residual = _residual(gram @ vectors_NK, vectors_NK, values_K)
    return Directions(values_K, vectors_NK, "exact eigenvectors", residual)


def _residual(product: Array, vectors: Array, values_K: Array) -> float:
    return float((np.linalg.norm(product - vectors * values_K, axis=0) / values_K).max())


def _check_count(count: int, most: int, what: str) -> None:
    if not 1 <= count <= most:
        raise MeasureError(
            f"{count} eigenvectors were asked for, {what} have at most {most}; "
            "give more examples, another layer or pairs of lower indices (bottom=, --bottom)"
        )


def _check_rank(values_K: Array, size: int, what: str) -> None:
    # Squared singular values: what rounding leaves of a missing direction is far below this.
    limit = size * np.finfo(np.float64).eps * values_K[0]
    if values_K[-1] <= limit:
        rank = int(np.count_nonzero(values_K > limit))
        raise MeasureError(
            f"the {what} have {rank} directions to rounding, {len(values_K)} were asked for; "
            "give more examples, another layer or pairs of lower indices (bottom=, --bottom)"
        )


def project_weights(trajectory: Iterable[ArrayLike], vectors_DK: ArrayLike) -> tuple[Array, Array]:
    """Return ‖Wᵀv_k‖₂ and ‖(W − W₀)ᵀv_k‖₂ at every checkpoint, (E, K) each.

    Parameters
    ----------
    trajectory
        Weight matrices W, (D, H) with a row for each input of the layer, W₀ first; an iterator needs
        room for two of them only.
    vectors_DK
        Eigenvectors of the layer's inputs, as columns.

    Raises
    ------
    MeasureError
        There is no checkpoint, a shape does not fit, or a weight is not finite.
    """
    vectors = np.asarray(vectors_DK, dtype=np.float64)
    whole: list[Array] = []
    change: list[Array] = []
    start: Array | None = None
    for number, weights in enumerate(trajectory):
        w = np.asarray(weights, dtype=np.float64)
        if w.ndim != 2 or len(w) != len(vectors):
            raise MeasureError(
                f"the weights of checkpoint {number} have shape {w.shape}, the eigenvectors "
                f"{vectors.shape}; give (D, H) and (D, K)"
            )
        if not np.isfinite(w).all():
            raise MeasureError(f"the weights of checkpoint {number} hold NaN or infinity")
        # Projected first: that is linear, and small.
        components_HK = w.T @ vectors
        if start is None:
            start = components_HK
        if components_HK.shape != start.shape:
            raise MeasureError(
                f"checkpoint {number} has {w.shape[1]} units, the first {len(start)}"
            )
        whole.append(np.linalg.norm(components_HK, axis=0))
        change.append(np.linalg.norm(components_HK - start, axis=0))
    if not whole:
        raise MeasureError("the trajectory has no checkpoint; give at least one")
    return np.stack(whole), np.stack(change)


@dataclass(frozen=True, eq=False)
class PredictionCourse:
    """Predictions on the eigenvectors u_k of a kernel; made by `project_predictions`."""

    size_EK: Array
    """‖u_kᵀF(t)‖."""
    learnt_EK: Array
    """u_kᵀF(t)·u_kᵀY/‖u_kᵀY‖²: 0 for nothing, 1 for all of the target's part; NaN where the target
    has no part along u_k."""
    target_K: Array
    """‖u_kᵀY‖."""


def project_predictions(
    predictions: ArrayLike, directions: Directions, targets: ArrayLike
) -> PredictionCourse:
    """Project predictions over a training, and the target, onto a kernel's eigenvectors.

    Parameters
    ----------
    predictions
        F at every checkpoint, (E, N, C) or (E, N).
    directions
        Eigenvectors of the kernel's Gram; see `gram_directions`.
    targets
        Y, (N, C) or (N,), in the units of F.

    Raises
    ------
    MeasureError
        Shapes do not fit, or a value is not finite.
    """
    f, y = np.asarray(predictions, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if y.ndim == 1 and f.ndim == 2:
        f, y = f[..., None], y[:, None]
    examples = len(directions.vectors)
    if f.ndim != 3 or y.shape != f.shape[1:] or len(y) != examples:
        raise MeasureError(
            f"predictions {np.shape(predictions)} and targets {np.shape(targets)} do not fit a "
            f"kernel of {examples} examples; give (E, N, C) and (N, C)"
        )
    if not (np.isfinite(f).all() and np.isfinite(y).all()):
        raise MeasureError("predictions or targets hold NaN or infinity")
    vectors_NK = directions.vectors
    f_EKC = np.einsum("enc,nk->ekc", f, vectors_NK)
    y_KC = vectors_NK.T @ y
    size_EK, target_K = np.linalg.norm(f_EKC, axis=2), np.linalg.norm(y_KC, axis=1)
    # What rounding leaves of a target without a part along u_k is no part.
    there_K = target_K > 1e-12 * np.linalg.norm(y)
    learnt_EK = np.full_like(size_EK, np.nan)
    np.divide(
        np.einsum("ekc,kc->ek", f_EKC, y_KC), target_K**2, out=learnt_EK, where=there_K[None, :]
    )
    return PredictionCourse(size_EK, learnt_EK, target_K)
