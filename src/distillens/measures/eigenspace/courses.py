"""The course of a training along eigenvectors: of a layer's weights, and of predictions.

Source: Nagarajan et al. 2023, arXiv 2301.12923, eigenspace experiments.
Shapes: E checkpoints, D inputs of the layer, H units, N examples, C classes, K directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import MeasureError
from distillens.measures.eigenspace.directions import Directions

Array = NDArray[np.float64]


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
    share_EK: Array
    """‖u_kᵀF(t)‖²/‖F(t)‖²; NaN where the predictions are all zero."""
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
    energy_E1 = np.sum(f**2, axis=(1, 2))[:, None]
    share_EK = np.full_like(size_EK, np.nan)
    np.divide(size_EK**2, energy_E1, out=share_EK, where=energy_E1 > 0)
    # What rounding leaves of a target without a part along u_k is no part.
    there_K = target_K > 1e-12 * np.linalg.norm(y)
    learnt_EK = np.full_like(size_EK, np.nan)
    np.divide(
        np.einsum("ekc,kc->ek", f_EKC, y_KC), target_K**2, out=learnt_EK, where=there_K[None, :]
    )
    return PredictionCourse(size_EK, share_EK, learnt_EK, target_K)
