"""Centred alignment of two kernels, and of a kernel with targets.

A(K, L) = ⟨HKH, HLH⟩/(‖HKH‖·‖HLH‖) in the Frobenius product, H = I − 11ᵀ/N. It does not change
when a Gram is multiplied by a positive number or a constant is added to all its entries.

Source: Cristianini et al., NeurIPS 2001 (alignment with targets, not centred); Cortes, Mohri,
Rostamizadeh, JMLR 2012, Def. 4 (centred); Kornblith et al., ICML 2019, eq. 4 (the same number as
CKA, HSIC normalised; with linear Grams XXᵀ it compares features X). Like theirs it is biased: for
few examples and many features even unrelated Grams have an alignment well above 0.
Shapes: N examples (or rows), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError, MeasureError
from distillens.files.array_likes import as_array
from distillens.linalg.dense import checked_gram

Array = NDArray[np.float64]

# A centred Gram this small next to the Gram itself is rounding of the subtraction.
_CONSTANT = 1e-13


@dataclass(frozen=True)
class Alignment:
    """A cosine between matrices: in [0, 1] for Grams, 1 where they are proportional.

    ``centred`` is true if constants were subtracted from both first.
    """

    value: float
    centred: bool
    examples: int


def centred_alignment(gram_NN: ArrayLike, other_NN: ArrayLike) -> Alignment:
    """Compare two Grams on the same examples in the same order (CKA).

    Sums are in float64, whatever the type of the Grams.

    Parameters
    ----------
    gram_NN, other_NN
        (N, N), symmetric. Grams of more outputs may be given as (NC, NC); then rows are centred
        over examples and outputs together.

    Raises
    ------
    KernelError
        A Gram is not square, not finite or not symmetric.
    MeasureError
        Their sizes differ, or one is constant, so that nothing is left after centring.
    """
    first_NN, second_NN = _centred(gram_NN, "first"), _centred(other_NN, "second")
    if len(first_NN) != len(second_NN):
        raise MeasureError(
            f"Grams of {len(first_NN)} and {len(second_NN)} rows do not fit; give the same examples"
        )
    value = (
        float(np.vdot(first_NN, second_NN)) / _norm(first_NN, "first") / _norm(second_NN, "second")
    )
    return Alignment(value=value, centred=True, examples=len(first_NN))


def kernel_target_alignment(
    gram_NN: ArrayLike, targets: ArrayLike, *, centred: bool = True
) -> Alignment:
    """Compare a Gram with the ideal one of the targets, YYᵀ, without forming it.

    Parameters
    ----------
    gram_NN
        (N, N), symmetric: the kernel of one output, or the trace form's.
    targets
        Y, (N,) or (N, C).
    centred
        Centre both over examples (Cortes et al.). Without, as Cristianini et al.: a kernel with a
        large constant then looks aligned with unbalanced labels.

    Raises
    ------
    KernelError
        The Gram is not square, not finite or not symmetric.
    MeasureError
        The targets do not fit or are not finite; or Gram or targets are constant (zero, where not
        centred).
    """
    k_NN = _centred(gram_NN, "only", centred=centred)
    rows = len(k_NN)
    y = np.asarray(as_array(targets), dtype=np.float64)
    if y.ndim not in (1, 2) or len(y) != rows or y.size == 0:
        raise MeasureError(
            f"targets of shape {y.shape} do not fit a Gram of {rows} rows; "
            f"give ({rows},) or ({rows}, C)"
        )
    if not np.isfinite(y).all():
        raise MeasureError("the targets hold NaN or infinity; look where they were computed")
    y_NC = y.reshape(len(y), -1)
    largest = float(np.abs(y_NC).max())
    if centred:
        y_NC = y_NC - y_NC.mean(axis=0)
    if float(np.abs(y_NC).max()) <= _CONSTANT * largest:
        state = "the same for all examples" if centred else "all zero"
        raise MeasureError(f"the targets are {state}; no kernel is aligned with them")
    # The scale cancels; without it squares of squares could leave float64's range.
    y_NC = y_NC / np.abs(y_NC).max()
    # ‖YYᵀ‖ = ‖YᵀY‖, and the latter is only (C, C).
    product, ideal = float(np.vdot(y_NC, k_NN @ y_NC)), float(np.linalg.norm(y_NC.T @ y_NC))
    value = product / _norm(k_NN, "only", centred=centred) / ideal
    return Alignment(value=value, centred=centred, examples=rows)


def _centred(gram: ArrayLike, name: str, *, centred: bool = True) -> Array:
    """Return a Gram in float64, divided by its largest entry and, as asked, centred (HKH)."""
    try:
        k_NN = checked_gram(as_array(gram))
    except KernelError as error:
        raise KernelError(f"the {name} Gram cannot be compared: {error}") from None
    # A zero Gram stays zero, which `_norm` refuses.
    k_NN = k_NN / (float(np.abs(k_NN).max()) or 1.0)
    if not centred:
        return k_NN
    means_N = k_NN.mean(axis=1)
    # Entry by entry rather than by expanding the product: a large constant would cancel badly.
    return k_NN - means_N[:, None] - means_N + means_N.mean()


def _norm(k_NN: Array, name: str, *, centred: bool = True) -> float:
    """Return the norm of a Gram of `_centred`, or raise if it is rounding."""
    norm = float(np.linalg.norm(k_NN))
    if norm <= _CONSTANT * len(k_NN):
        state = "constant" if centred else "zero"
        raise MeasureError(f"the {name} Gram is {state} to rounding; its alignment is not defined")
    return norm
