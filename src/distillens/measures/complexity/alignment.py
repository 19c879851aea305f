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

from collections.abc import Mapping
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
    return _alignment({"first": gram_NN, "second": other_NN}, centred=True)


def kernel_target_alignment(
    gram_NN: ArrayLike, targets: ArrayLike, *, centred: bool = True
) -> Alignment:
    """Compare a Gram with the ideal one of the targets, YYᵀ.

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
    y = np.asarray(as_array(targets), dtype=np.float64)
    if y.ndim not in (1, 2) or y.size == 0 or not np.isfinite(y).all():
        raise MeasureError(
            f"targets of shape {y.shape} are not (N,) or (N, C), or hold NaN or infinity"
        )
    # The scale cancels; without it squares of squares could leave float64's range.
    y_NC = y.reshape(len(y), -1) / (np.abs(y).max() or 1.0)
    return _alignment({"given": gram_NN, "targets'": y_NC @ y_NC.T}, centred=centred)


def _alignment(grams: Mapping[str, ArrayLike], *, centred: bool) -> Alignment:
    """Compare two Grams, named for messages."""
    first_NN, second_NN = (_centred(gram, name, centred) for name, gram in grams.items())
    if len(first_NN) != len(second_NN):
        raise MeasureError(
            f"Grams of {len(first_NN)} and {len(second_NN)} rows do not fit; give the same examples"
        )
    norms = [float(np.linalg.norm(each)) for each in (first_NN, second_NN)]
    for name, norm in zip(grams, norms, strict=True):
        if norm <= _CONSTANT * len(first_NN):
            state = "constant" if centred else "zero"
            raise MeasureError(
                f"the {name} Gram is {state} to rounding; its alignment is not defined"
            )
    value = float(np.vdot(first_NN, second_NN)) / norms[0] / norms[1]
    return Alignment(value=value, centred=centred, examples=len(first_NN))


def _centred(gram: ArrayLike, name: str, centred: bool) -> Array:
    """Return a Gram in float64, divided by its largest entry and, as asked, centred (HKH)."""
    try:
        k_NN = checked_gram(as_array(gram))
    except KernelError as error:
        raise KernelError(f"the {name} Gram cannot be compared: {error}") from None
    # A zero Gram stays zero, which is refused later.
    k_NN = k_NN / (float(np.abs(k_NN).max()) or 1.0)
    if not centred:
        return k_NN
    means_N = k_NN.mean(axis=1)
    # Entry by entry rather than by expanding the product: a large constant would cancel badly.
    return k_NN - means_N[:, None] - means_N + means_N.mean()
