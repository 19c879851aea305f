"""Gradient flow: the learnt share along each eigenvector at a stop time, and linear regression.

Source: Nagarajan et al. 2023, arXiv 2301.12923, section on eigenspace (A(t) and Ã), and
β(t) = Xᵀ(XXᵀ)⁻¹A(t)y.
Shapes: K eigenvalues λ of XXᵀ or singular directions, G generations, N examples, P weights, C outputs.
Time is that of gradient flow on ½‖Xβ − y‖²; for a mean over N examples it runs N times slower, and a
gradient descent step of size η is a time of about η.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import TheoryError
from distillens.theory.checks import finite, positive, shares, spectrum, stop_times

Array = NDArray[np.float64]


def learnt_share(eigenvalues: ArrayLike, time: ArrayLike) -> Array:
    """Return α_k(t) = 1 − e^{−λ_k t}, the share of the target that is learnt, in their common shape.

    A direction with λ = 0 is never learnt, not even at an infinite time.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    # 0 · infinity has no value; the direction is not in the data, so it stays at 0.
    product = np.where(values == 0, 0.0, np.where(values == 0, 1.0, values) * stop_times(time))
    return -np.expm1(-product)


def distilled_filter(eigenvalues_K: ArrayLike, times_G: Sequence[float]) -> Array:
    """Return the share learnt after generations that each fit the one before it.

    Π_g (1 − e^{−λ_k t_g}): one time is the teacher (one-hot network), two its student (Ã = A(t̃)A(T)),
    more are self-distillation in generations, each from zero weights.

    Parameters
    ----------
    eigenvalues_K
        λ ≥ 0, (K,).
    times_G
        Stop time of each generation, the teacher first; infinity for the end.

    Returns
    -------
    array
        Shares in [0, 1], (K,).

    Raises
    ------
    TheoryError
        A number is not in its range, or there is no generation.
    """
    values = spectrum(eigenvalues_K)
    times = stop_times(times_G)
    if times.ndim != 1 or not times.size:
        raise TheoryError(f"the times have shape {times.shape}; give one a generation")
    return learnt_share(values, times[:, None]).prod(axis=0)


def time_to_learn(eigenvalue: ArrayLike, share: ArrayLike, generations: int = 1) -> Array:
    """Return the time at which each of equal generations stops so that together they learn a share.

    Solves (1 − e^{−λt})^G = share: t = −ln(1 − share^{1/G})/λ. With G = 2 this is the witness of
    Thm. 4.1, T = t̃ with (1 − e^{−λt̃})² = α*.

    Parameters
    ----------
    eigenvalue
        λ > 0.
    share
        In (0, 1).
    generations
        G ≥ 1.

    Raises
    ------
    TheoryError
        A number is not in its range.
    """
    if generations < 1:
        raise TheoryError(f"{generations} generations; give at least 1")
    log_share = np.log(shares(share, "the share")) / generations
    # 1 − share^{1/G}; for a share near 1 only expm1 keeps its digits, for one near 0 log1p does.
    log_rest = np.where(
        log_share > -np.log(2), np.log(-np.expm1(log_share)), np.log1p(-np.exp(log_share))
    )
    return -log_rest / positive(eigenvalue, "the eigenvalue")


@dataclass(frozen=True, eq=False)
class LinearFlow:
    """dβ/dt = −Xᵀ(Xβ − Y), solved; made by `linear_flow`.

    In the eigenvectors v_k of XᵀX each weight moves alone, from c_k(0) to the least-squares weight z_k:
    c_k(t) = c_k(0) + (1 − e^{−λ_k t})(z_k − c_k(0)).
    """

    eigenvalues_K: Array
    """λ of XXᵀ, largest first; exactly 0 where X has no such direction (to rounding)."""
    eigenvectors_PK: Array
    """v_k, in the space of weights."""
    scores_NK: Array
    """u_k, in the space of examples."""
    goal_KC: Array
    """z_k = u_kᵀY/√λ_k; where λ = 0, the start, which the flow keeps."""
    start_PC: Array

    def coordinates(self, time: float) -> Array:
        """Return the weights on the eigenvectors at a time, (K, C); signed, its norm is ‖Wᵀv_k‖."""
        begun = self.eigenvectors_PK.T @ self.start_PC
        share_K1 = learnt_share(self.eigenvalues_K, stop_times(time))[:, None]
        return begun + share_K1 * (self.goal_KC - begun)

    def weights(self, time: float) -> Array:
        """Return β(t), (P, C). What the start has outside the data's directions never moves."""
        begun = self.eigenvectors_PK.T @ self.start_PC
        return self.start_PC + self.eigenvectors_PK @ (self.coordinates(time) - begun)

    def predictions(self, time: float) -> Array:
        """Return Xβ(t) on the examples, (N, C)."""
        return self.scores_NK @ (np.sqrt(self.eigenvalues_K)[:, None] * self.coordinates(time))

    def student(self, teacher_time: float, start: ArrayLike | None = None) -> LinearFlow:
        """Return the flow of a student that fits this one's predictions at a time, from ``start``.

        From zero weights its filter is Ã = A(t̃)A(T). A student may have other initial weights than
        its teacher; by default they are zero.
        """
        begun = _start(start, *self.start_PC.shape)
        inside = self.eigenvalues_K[:, None] > 0
        goal = np.where(inside, self.coordinates(teacher_time), self.eigenvectors_PK.T @ begun)
        return LinearFlow(self.eigenvalues_K, self.eigenvectors_PK, self.scores_NK, goal, begun)


def linear_flow(
    inputs_NP: ArrayLike, targets: ArrayLike, start: ArrayLike | None = None
) -> LinearFlow:
    """Solve gradient flow on ½‖Xβ − Y‖².

    Parameters
    ----------
    inputs_NP
        X. It may be wide, tall or of any rank; singular values below max(N, P)·2.2e-16 times the
        largest count as zero.
    targets
        Y, (N,) or (N, C).
    start
        β(0), (P,) or (P, C); zero by default.

    Raises
    ------
    TheoryError
        Shapes do not fit, or a value is not finite.
    """
    inputs = finite(inputs_NP, "the inputs")
    if inputs.ndim != 2 or not inputs.size:
        raise TheoryError(f"the inputs have shape {inputs.shape}; give (N, P)")
    given = finite(targets, "the targets")
    targets_NC = given[:, None] if given.ndim == 1 else given
    if targets_NC.ndim != 2 or len(targets_NC) != len(inputs):
        raise TheoryError(f"targets of shape {given.shape} do not fit {len(inputs)} inputs")
    begun = _start(start, inputs.shape[1], targets_NC.shape[1])
    scores, singular, vectors = np.linalg.svd(inputs, full_matrices=False)
    limit = max(inputs.shape) * np.finfo(np.float64).eps * singular[0]
    inside = singular > limit
    singular = np.where(inside, singular, 0.0)
    # Divided by the singular value only where there is one.
    solved = (scores.T @ targets_NC) / np.where(inside, singular, 1.0)[:, None]
    goal = np.where(inside[:, None], solved, vectors @ begun)
    return LinearFlow(singular**2, vectors.T, scores, goal, begun)


def _start(start: ArrayLike | None, weights: int, outputs: int) -> Array:
    if start is None:
        return np.zeros((weights, outputs))
    given = finite(start, "the initial weights")
    shaped = given[:, None] if given.ndim == 1 else given
    if shaped.shape != (weights, outputs):
        raise TheoryError(
            f"initial weights of shape {given.shape} do not fit; give ({weights}, {outputs})"
        )
    return shaped
