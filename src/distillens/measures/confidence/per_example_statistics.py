"""One pass over all outputs, which computes a few statistics of each example.

Shapes: N examples, C classes, B examples of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillens.measures.confidence.log_odds import place_infinite
from distillens.measures.confidence.outputs import Distribution, Outputs

Array = NDArray[np.float64]

CHUNK_VALUES = 2**16
"""Values per chunk: a few float64 arrays of this size fit the cache of a processor."""

_NEAR = 1e-6
"""Divergences below this are summed from terms that are not negative, which cannot cancel."""


class Predictions(NamedTuple):
    """Predictions of one network for each example."""

    top_N: NDArray[np.int32]
    confidence_N: Array
    """Probability of its own top class."""
    on_other_N: Array
    """Probability that it gives to the other's top class."""
    nll_N: Array
    brier_N: Array


@dataclass(frozen=True, eq=False)
class PerExampleStatistics:
    """Statistics of each example; ``x_N`` and ``y_N`` are the coordinates of the confidence plot."""

    labels_N: NDArray[np.integer]
    x_N: Array
    y_N: Array
    references: dict[str, Array]
    """y of each reference, at the same x."""
    teacher: Predictions
    student: Predictions
    kl_teacher_student_N: Array
    kl_student_teacher_N: Array
    total_variation_N: Array
    placed: int
    """Points with a probability of exactly 0 or 1, which were placed at ±``edge``."""
    edge: float
    differing: int
    """Examples with a difference in any probability."""

    def who_is_right(self) -> NDArray[np.uint8]:
        """Which network predicts the label, as in `Points`."""
        teacher_wrong = self.teacher.top_N != self.labels_N
        student_wrong = self.student.top_N != self.labels_N
        return (2 * student_wrong + teacher_wrong).astype(np.uint8)


def per_example_statistics(
    teacher: Outputs,
    student: Outputs,
    labels_N: NDArray,
    references: Mapping[str, Outputs],
    *,
    chunk_values: int = CHUNK_VALUES,
    release_every: int = 256,
) -> PerExampleStatistics:
    """Read every array once, in chunks; all must have the same examples and classes.

    Parameters
    ----------
    teacher, student, references
        Outputs of the networks, (N, C).
    labels_N
        Classes in 0 … C−1 by which predictions are judged.
    chunk_values
        Values per chunk and network.
    release_every
        Number of chunks after which the pages of memory-mapped files are released.

    Raises
    ------
    MeasureError
        A value is NaN or infinite, or a row is no probability though it should be.
    """
    examples = len(labels_N)
    everyone = {"teacher": teacher, "student": student, **references}
    phi: dict[str, list[Array]] = {name: [] for name in everyone}
    of_teacher, of_student, apart = [], [], []
    step = max(1, chunk_values // teacher.classes)
    for turn, start in enumerate(range(0, examples, step)):
        chunk = slice(start, min(start + step, examples))
        read = {name: outputs.read(chunk) for name, outputs in everyone.items()}
        te, st = read["teacher"], read["student"]
        k_B, k_student_B = te.p_BC.argmax(axis=1), st.p_BC.argmax(axis=1)
        for name, found in read.items():
            phi[name].append(found.phi(k_B))
        of_teacher.append(_predictions(te, k_B, k_student_B, labels_N[chunk]))
        of_student.append(_predictions(st, k_student_B, k_B, labels_N[chunk]))
        apart.append(differences(te.p_BC, st.p_BC, te.log_p_BC, st.log_p_BC))
        if turn % release_every == release_every - 1:
            for outputs in everyone.values():
                outputs.release()
    coordinates = {name: np.concatenate(parts) for name, parts in phi.items()}
    placed, edge = place_infinite(*coordinates.values())
    x_N, y_N = coordinates.pop("teacher"), coordinates.pop("student")
    forward_N, backward_N, variation_N = map(np.concatenate, zip(*apart, strict=True))
    return PerExampleStatistics(
        labels_N,
        x_N,
        y_N,
        coordinates,
        Predictions(*map(np.concatenate, zip(*of_teacher, strict=True))),
        Predictions(*map(np.concatenate, zip(*of_student, strict=True))),
        forward_N,
        backward_N,
        variation_N,
        placed,
        edge,
        int(np.count_nonzero(variation_N)),
    )


def _predictions(
    found: Distribution, top_B: NDArray, other_B: NDArray, labels_B: NDArray
) -> Predictions:
    """Return the predictions for the examples of a chunk."""
    rows = np.arange(len(top_B))
    squares_B = np.einsum("bc,bc->b", found.p_BC, found.p_BC)
    return Predictions(
        top_B.astype(np.int32),
        found.p_BC[rows, top_B],
        found.p_BC[rows, other_B],
        -found.log_p_BC[rows, labels_B],
        squares_B - 2 * found.p_BC[rows, labels_B] + 1,
    )


def differences(
    p_BC: Array, q_BC: Array, log_p_BC: Array, log_q_BC: Array
) -> tuple[Array, Array, Array]:
    """Return KL(p ‖ q), KL(q ‖ p) and the total variation ½ Σ|p − q| of each row.

    Small divergences are sums of p·(e^δ − 1 − δ) with δ = log q − log p, whose terms are not
    negative, so that nothing cancels. A divergence is infinite where one gives 0 to a class that
    the other does not.

    Parameters
    ----------
    p_BC, q_BC, log_p_BC, log_q_BC
        Probabilities (B, C), whose rows sum to one, and their logarithms.
    """
    with np.errstate(invalid="ignore"):
        delta_BC = log_q_BC - log_p_BC
        forward_B = -np.einsum("bc,bc->b", p_BC, delta_BC)
        backward_B = np.einsum("bc,bc->b", q_BC, delta_BC)
    apart_BC = np.abs(np.subtract(p_BC, q_BC, out=delta_BC), out=delta_BC)
    variation_B = 0.5 * apart_BC.sum(axis=1)
    # Written so that NaN, of 0·∞, is summed again too.
    again_B = ~((forward_B > _NEAR) & (backward_B > _NEAR))
    again_B |= ~(np.isfinite(forward_B) & np.isfinite(backward_B))
    if again_B.any():
        p, q, log_p, log_q = (one[again_B] for one in (p_BC, q_BC, log_p_BC, log_q_BC))
        forward_B[again_B] = _divergence(p, q, log_p, log_q)
        backward_B[again_B] = _divergence(q, p, log_q, log_p)
        with np.errstate(invalid="ignore", over="ignore"):
            delta_BC = log_q - log_p
            near_BC = np.abs(delta_BC) < 1
            apart_BC = np.where(near_BC, p * np.expm1(delta_BC), q - p)
        variation_B[again_B] = 0.5 * np.abs(apart_BC).sum(axis=1)
    return forward_B, backward_B, variation_B


def _divergence(p_BC: Array, q_BC: Array, log_p_BC: Array, log_q_BC: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        delta_BC = np.where(p_BC > 0, log_q_BC - log_p_BC, 0)
        near_BC = np.abs(delta_BC) < 1
        close_BC = p_BC * (np.expm1(delta_BC) - delta_BC)
        far_BC = q_BC - p_BC - np.where(p_BC > 0, p_BC * delta_BC, 0)
        # Where p is 0, the term is q.
        terms_BC = np.where(p_BC > 0, np.where(near_BC, close_BC, far_BC), q_BC)
    return terms_BC.sum(axis=1)
