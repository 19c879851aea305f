"""Centred alignment of two kernels, and of a kernel with targets.

A(K, L) = ⟨HKH, HLH⟩/(‖HKH‖·‖HLH‖) in the Frobenius product, H = I − 11ᵀ/N. It does not change
when a Gram is multiplied by a positive number or a constant is added to all its entries.

Source: Cristianini et al., NeurIPS 2001 (alignment with targets, not centred); Cortes, Mohri,
Rostamizadeh, JMLR 2012, Def. 4 (centred); Kornblith et al., ICML 2019, eq. 4 (the same number as
CKA, HSIC normalised; with linear Grams XXᵀ it compares features X). Like theirs it is biased: for
few examples and many features even unrelated Grams have an alignment well above 0.
Shapes: N examples (or rows), C classes, B rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError, MeasureError
from distillens.files.array_likes import as_array
from distillens.linalg import ASYMMETRY

Array = NDArray[np.float64]

_CHUNK_NUMBERS = 2**21
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

    Reads each Gram twice, in chunks of rows, and sums in float64, so memory maps may be given.

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
    first, second = _Centred(gram_NN, "first"), _Centred(other_NN, "second")
    if first.size != second.size:
        raise MeasureError(
            f"Grams of {first.size} and {second.size} rows do not fit; give the same examples"
        )
    product = squares = other_squares = 0.0
    for rows in _chunks(first.size):
        a_BN, b_BN = first.read(rows), second.read(rows)
        product += float(np.vdot(a_BN, b_BN))
        squares += float(np.vdot(a_BN, a_BN))
        other_squares += float(np.vdot(b_BN, b_BN))
    value = product / first.norm(squares) / second.norm(other_squares)
    return Alignment(value=value, centred=True, examples=first.size)


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
    gram = _Centred(gram_NN, "only", centred=centred)
    y = np.asarray(as_array(targets), dtype=np.float64)
    if y.ndim not in (1, 2) or len(y) != gram.size or y.size == 0:
        raise MeasureError(
            f"targets of shape {y.shape} do not fit a Gram of {gram.size} rows; "
            f"give ({gram.size},) or ({gram.size}, C)"
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
    product = squares = 0.0
    for rows in _chunks(gram.size):
        k_BN = gram.read(rows)
        product += float(np.vdot(y_NC[rows], k_BN @ y_NC))
        squares += float(np.vdot(k_BN, k_BN))
    # ‖YYᵀ‖ = ‖YᵀY‖, and the latter is only (C, C).
    value = product / gram.norm(squares) / float(np.linalg.norm(y_NC.T @ y_NC))
    return Alignment(value=value, centred=centred, examples=gram.size)


class _Centred:
    """Reads a Gram by rows: in float64, divided by its largest entry and, as asked, centred."""

    def __init__(self, gram: ArrayLike, name: str, *, centred: bool = True) -> None:
        self._gram = as_array(gram)
        self._name, self._centred = name, centred
        shape = self._gram.shape
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
            raise KernelError(
                f"the {name} Gram must be a square matrix with at least one row, "
                f"it has shape {shape}"
            )
        self.size = shape[0]
        self._largest, self._means_N = self._scan()

    def read(self, rows: slice) -> Array:
        """Return some rows of the Gram or of HKH, divided by the Gram's largest entry."""
        # A zero Gram stays zero, which `norm` refuses.
        k_BN = np.asarray(self._gram[rows], dtype=np.float64) / (self._largest or 1.0)
        if not self._centred:
            return k_BN
        # Entry by entry rather than by expanding the product: a large constant would cancel badly.
        return k_BN - self._means_N[rows, None] - self._means_N + self._means_N.mean()

    def norm(self, squares: float) -> float:
        """Return the norm from the sum of squares of what was read, or raise if it is rounding."""
        norm = float(np.sqrt(squares))
        if norm <= _CONSTANT * self.size:
            state = "constant" if self._centred else "zero"
            raise MeasureError(
                f"the {self._name} Gram is {state} to rounding; its alignment is not defined"
            )
        return norm

    def _scan(self) -> tuple[float, Array]:
        """Check the entries; return the largest and the row means divided by it."""
        largest = difference = 0.0
        means_N = np.empty(self.size)
        for rows in _chunks(self.size):
            k_BN = np.asarray(self._gram[rows], dtype=np.float64)
            mirrored_BN = np.asarray(self._gram[:, rows], dtype=np.float64).T
            if not (np.isfinite(k_BN).all() and np.isfinite(mirrored_BN).all()):
                raise KernelError(
                    f"the {self._name} Gram holds NaN or infinity in rows or columns "
                    f"{rows.start} to {rows.stop - 1}; look for non-finite weights or inputs behind it"
                )
            difference = max(difference, float(np.abs(k_BN - mirrored_BN).max()))
            largest = max(largest, float(np.abs(k_BN).max()))
            means_N[rows] = k_BN.mean(axis=1)
        if difference > ASYMMETRY * largest:
            raise KernelError(
                f"the {self._name} Gram is not symmetric: mirrored entries differ by up to "
                f"{difference:.3g} where the largest is {largest:.3g}; "
                "check the order of the examples along both axes"
            )
        return largest, means_N / (largest or 1.0)


def _chunks(size: int) -> Iterator[slice]:
    step = max(1, _CHUNK_NUMBERS // size)
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
