"""The spectrum of a Gram, and its alignment with targets or with another Gram.

A kernel learns the directions of its large eigenvalues first. Targets whose energy lies there are
simple, since YᵀK⁻¹Y = Σ_k (u_k·Y)²/λ_k.

The alignment is A(K, L) = ⟨HKH, HLH⟩/(‖HKH‖·‖HLH‖) in the Frobenius product, H = I − 11ᵀ/N. It does not
change when a Gram is multiplied by a positive number or a constant is added to all its entries.

Source: effective rank: Roy and Vetterli, EUSIPCO 2007; stable rank: Rudelson and Vershynin, J. ACM
2007. Cristianini et al., NeurIPS 2001 (alignment with targets, not centred); Cortes, Mohri,
Rostamizadeh, JMLR 2012, Def. 4 (centred); Kornblith et al., ICML 2019, eq. 4 (the same number as
CKA, HSIC normalised; with linear Grams XXᵀ it compares features X). Like theirs the alignment is
biased: for few examples and many features even unrelated Grams have one well above 0.
Shapes: N examples (or rows), C classes, K eigenvalues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError, MeasureError
from distillens.files.array_likes import as_array
from distillens.linalg import effective_rank, eigenpairs
from distillens.linalg.dense import checked_gram
from distillens.measures.complexity.complexity import block_columns, fit_targets, gram_blocks
from distillens.results.complexity import KernelForm

Array = NDArray[np.float64]

# A centred Gram this small next to the Gram itself is rounding of the subtraction.
_CONSTANT = 1e-13


@dataclass(frozen=True, eq=False)
class EnergyCurve:
    """Distribution of the energy ‖Y‖² of targets over the eigenvectors, largest eigenvalue first.

    ``energy_K`` is (u_k·Y)², ``share_K`` the share of ‖Y‖² in the first k + 1 eigenvectors; its
    last value is 1 but for rounding. Within one eigenvalue that repeats, only the sum is meaningful.
    """

    energy_K: Array
    share_K: Array


@dataclass(frozen=True, eq=False)
class GramSpectrum:
    """Eigenvalues and eigenvectors of a Gram; made by `decompose_gram`.

    ``eigenvalues_K`` are in descending order. Class-diagonal: those of all blocks together,
    K = CN. Trace: those of the one (N, N) Gram, K = N, each of which stands for C. Ranks and
    condition are of these K numbers. ``negative`` counts eigenvalues that rounding put below 0;
    ranks take them as 0.

    ``condition`` is λ₁/λ_K, infinite where λ_K ≤ 0. ``effective_rank`` is exp(−Σ p ln p) with
    p = λ/Σλ, ``participation_ratio`` (Σλ)²/Σλ², ``stable_rank`` ‖K‖²_F/‖K‖² = Σλ²/λ₁². All
    three are 1 for rank one and K for the identity.
    """

    form: KernelForm
    gram_shape: tuple[int, ...]
    eigenvalues_K: Array
    condition: float
    effective_rank: float
    participation_ratio: float
    stable_rank: float
    negative: int
    _vectors: tuple[Array, ...]
    """Eigenvectors of each block as columns, in ascending order of their eigenvalues."""
    _order: NDArray[np.intp]
    """Positions of ``eigenvalues_K`` in the blocks' ascending ones, laid end to end."""

    def energy(self, targets: ArrayLike) -> EnergyCurve:
        """Return the targets' energy along the eigenvectors.

        Parameters
        ----------
        targets
            Y, (N,) for the binary form, else (N, C). In the trace form an eigenvector's energy is
            summed over classes; in the class-diagonal form each class has its own eigenvectors.

        Raises
        ------
        MeasureError
            The targets do not fit the Gram, are not finite or all zero.
        """
        y = fit_targets(targets, self.form, self.gram_shape)
        total = float(np.sum(y**2))
        if total == 0:
            raise MeasureError("the targets are all zero; their energy has no shares")
        columns = block_columns(y, self.form, self.gram_shape)
        energies = [
            np.sum((vectors.T @ column) ** 2, axis=1)
            for vectors, column in zip(self._vectors, columns, strict=True)
        ]
        energy_K = np.concatenate(energies)[self._order]
        return EnergyCurve(energy_K=energy_K, share_K=np.cumsum(energy_K) / total)


def decompose_gram(gram: ArrayLike, form: KernelForm) -> GramSpectrum:
    """Decompose a Gram once, to look at several targets along its eigenvectors.

    Takes about ten times as long as `factorise_gram`, and keeps the eigenvectors.

    Parameters
    ----------
    gram
        In the shape that the form asks for; see `distillens.measures.complexity.complexity`.
    form
        "binary", "class-diagonal", "trace" or "full".

    Raises
    ------
    KernelError
        The Gram is not finite, not symmetric, zero, or has a negative eigenvalue.
    MeasureError
        The form is unknown, or the Gram has another number of axes.
    """
    blocks = gram_blocks(gram, form)
    pairs = [eigenpairs(block) for block in blocks]
    ascending = np.concatenate([values for values, _ in pairs])
    order = np.argsort(-ascending, kind="stable")
    values_K = ascending[order]
    if values_K[0] <= 0:
        raise KernelError(f"the Gram of shape {np.shape(gram)} is zero; it has no spectrum")
    positive_K = np.maximum(values_K, 0.0)
    # Divided by the largest first: squares of a Gram of extreme scale would leave float64's range.
    relative_K = positive_K / values_K[0]
    total, squares = float(relative_K.sum()), float(np.sum(relative_K**2))
    return GramSpectrum(
        form=form,
        gram_shape=np.shape(gram),
        eigenvalues_K=values_K,
        condition=float(values_K[0] / values_K[-1]) if values_K[-1] > 0 else float("inf"),
        effective_rank=effective_rank(values_K),
        participation_ratio=total**2 / squares,
        stable_rank=squares,
        negative=int(np.count_nonzero(values_K < 0)),
        _vectors=tuple(vectors for _, vectors in pairs),
        _order=order,
    )


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
