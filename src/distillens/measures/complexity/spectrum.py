"""The eigenvalues of a Gram, and where the targets lie among its eigenvectors.

A kernel learns the directions of its large eigenvalues first. Targets whose energy lies there are
simple, since YᵀK⁻¹Y = Σ_k (u_k·Y)²/λ_k.

Source: effective rank: Roy and Vetterli, EUSIPCO 2007; stable rank: Rudelson and Vershynin, J. ACM
2007. Shapes: N examples, C classes, K eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError, MeasureError
from distillens.linalg import effective_rank, eigenpairs
from distillens.measures.complexity.complexity import block_columns, fit_targets, gram_blocks
from distillens.results.complexity import KernelForm

Array = NDArray[np.float64]


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
