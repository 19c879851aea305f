"""Confidence of teacher and student, example by example.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923: φ(u) = ln(u/(1−u)) of the probability that
each gives to the teacher's top class. Shapes: N examples, C classes, B examples of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import MeasureError
from distillens.files.array_likes import as_array
from distillens.measures.complexity.targets import check_labels
from distillens.results.confidence import Agreement

Array = NDArray[np.float64]
OutputKind = Literal["logits", "probabilities"]

CLIP = 1e-7
"""Where `compare` clips probabilities that it plots; φ stays within ±16.1."""

_EDGE = float(np.log(1 / CLIP - 1))
_NEAR = 1e-6
"""Divergences below this are summed from terms that are not negative, which cannot cancel."""

_SUM_TOLERANCE = 1e-3
_LOOKED_AT = 4096
_CHUNK_NUMBERS = 2**21


@dataclass(frozen=True, eq=False)
class Points:
    """One point an example: x = φ(p_teacher[k]), y = φ(p_student[k]), k the teacher's top class.

    ``who_N`` says who is right about the label: 0 both, 1 only the student, 2 only the teacher,
    3 neither.
    """

    x_N: Array
    y_N: Array
    who_N: NDArray[np.uint8]
    mislabelled_N: NDArray[np.bool_] | None = None
    """Where the label is wrong; None where that is not known."""

    def arrays(self) -> dict[str, NDArray]:
        """Return the arrays x, y, who, and mislabelled where it is known, as files hold them."""
        found: dict[str, NDArray] = {"x": self.x_N, "y": self.y_N, "who": self.who_N}
        if self.mislabelled_N is not None:
            found["mislabelled"] = self.mislabelled_N
        return found


@dataclass(frozen=True, eq=False)
class Comparison:
    """What one pass over teacher and student outputs finds."""

    points: Points
    top_agreement: float
    kl: float
    """Mean KL(teacher ‖ student) at τ = 1, in nats; infinite where one of them is."""
    right: Agreement
    clipped: int
    """Examples at which a plotted probability had to be clipped."""
    infinite: int = 0
    """Examples with an infinite divergence: the student gives 0 to a class that the teacher does not."""
    finite_kl: float = float("nan")
    """Mean divergence of the other examples."""


def phi_from_logits(logits_NC: ArrayLike, classes_N: ArrayLike) -> Array:
    """Return φ(p[k]) = z_k − logsumexp_{j≠k} z_j, which does not saturate as p[k] does.

    Parameters
    ----------
    logits_NC
        (N, C) with C ≥ 2, or (N, 1) for one output whose σ is the probability of class 1.
    classes_N
        The class k of each example, in 0 … C−1 (0 or 1 for one output).
    """
    logits = two_or_more(as_array(logits_NC).astype(np.float64), "logits")
    rows = np.arange(len(logits))
    k = as_array(classes_N)
    rest = logits.copy()
    rest[rows, k] = -np.inf
    return logits[rows, k] - _logsumexp(rest)


def phi_from_probabilities(
    probabilities_N: ArrayLike, clip: float = CLIP
) -> tuple[Array, NDArray[np.bool_]]:
    """Return φ(p) = ln(p/(1−p)) with p clipped to [clip, 1−clip], and where that was needed."""
    p = as_array(probabilities_N).astype(np.float64)
    clipped = (p < clip) | (p > 1 - clip)
    p = np.clip(p, clip, 1 - clip)
    return np.log(p) - np.log1p(-p), clipped


def compare(
    teacher: ArrayLike,
    student: ArrayLike,
    labels_N: ArrayLike,
    *,
    teacher_kind: OutputKind = "logits",
    student_kind: OutputKind = "logits",
    clip: float = CLIP,
) -> Comparison:
    """Compare teacher and student on every example, in chunks, so that memory maps may be given.

    Parameters
    ----------
    teacher, student
        (N, C), or (N, 1) for one output that speaks of class 1.
    labels_N
        True classes, integers in 0 … C−1 (0 or 1 for one output).
    teacher_kind, student_kind
        "logits", or "probabilities" for softmax outputs and for networks trained with squared
        error, whose outputs stand in for probabilities and may leave [0, 1] (map one trained on ±1
        by (f + 1)/2 first). The one that φ is taken of is clipped to [clip, 1−clip]. For KL, rows
        are divided by their sum; only rows that are no probabilities, because they leave [0, 1] or
        do not sum to one, are clipped before.
    clip
        See above.

    Raises
    ------
    MeasureError
        Shapes differ, a value is NaN or infinite, a label is out of range, there are no examples.
    """
    teacher_NC, student_NC = as_array(teacher), as_array(student)
    labels = _check(teacher_NC, student_NC, labels_N, clip)
    examples = len(labels)
    x_N, y_N = np.empty(examples), np.empty(examples)
    who_N = np.empty(examples, dtype=np.uint8)
    same = clipped = 0
    kl_N = np.empty(examples)
    for chunk in _chunks(examples, max(teacher_NC.shape[1], student_NC.shape[1])):
        teacher_BC = _read(teacher_NC, chunk, teacher_kind, "teacher")
        student_BC = _read(student_NC, chunk, student_kind, "student")
        top, student_top = teacher_BC.argmax(axis=1), student_BC.argmax(axis=1)
        x_N[chunk], x_clipped = _phi(teacher_BC, top, teacher_kind, clip)
        y_N[chunk], y_clipped = _phi(student_BC, top, student_kind, clip)
        teacher_right, student_right = top == labels[chunk], student_top == labels[chunk]
        # As in Points: 0 both, 1 only the student, 2 only the teacher, 3 neither.
        who_N[chunk] = np.where(student_right, 0, 2) + np.where(teacher_right, 0, 1)
        same += int(np.count_nonzero(top == student_top))
        clipped += int(np.count_nonzero(x_clipped | y_clipped))
        log_p = _log_probabilities(teacher_BC, teacher_kind, clip)
        log_q = _log_probabilities(student_BC, student_kind, clip)
        kl_N[chunk] = differences(np.exp(log_p), np.exp(log_q), log_p, log_q)[0]
    counts = np.bincount(who_N, minlength=4)
    clipped += place_infinite(x_N, y_N)[0]
    finite_N = np.isfinite(kl_N)
    return Comparison(
        points=Points(x_N, y_N, who_N),
        top_agreement=same / examples,
        kl=float(kl_N.mean()),
        right=Agreement(*(int(count) for count in counts)),
        clipped=clipped,
        infinite=int(np.count_nonzero(~finite_N)),
        finite_kl=float(kl_N[finite_N].mean()) if finite_N.any() else float("nan"),
    )


def look_like_probabilities(outputs_NC: NDArray) -> bool:
    """Say whether the first rows of outputs (N, C), C ≥ 2, lie within [0, 1] and sum to one."""
    head_BC = np.asarray(outputs_NC[:_LOOKED_AT], dtype=np.float64)
    if head_BC.shape[1] < 2 or not len(head_BC) or not np.isfinite(head_BC).all():
        return False
    inside = bool((head_BC >= 0).all() and (head_BC <= 1).all())
    return inside and bool((np.abs(head_BC.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())


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


def place_infinite(*phi: Array) -> tuple[int, float]:
    """Replace infinite φ, of probabilities of exactly 0 or 1, by the largest finite |φ|, in place.

    Returns
    -------
    tuple
        How many examples have an infinite φ, and the number that stands for infinity, at least 16.1.
    """
    infinite_N = np.zeros(len(phi[0]), dtype=bool)
    edge = _EDGE
    for values_N in phi:
        finite_N = np.isfinite(values_N)
        infinite_N |= ~finite_N
        edge = max(edge, float(np.abs(values_N[finite_N]).max(initial=0)))
    for values_N in phi:
        np.clip(values_N, -edge, edge, out=values_N)
    return int(np.count_nonzero(infinite_N)), edge


def _check(
    teacher_NC: NDArray, student_NC: NDArray, labels_N: ArrayLike, clip: float
) -> NDArray[np.integer]:
    """Check what can be seen without reading the outputs; return the labels."""
    for name, array in (("teacher", teacher_NC), ("student", student_NC)):
        if array.ndim != 2 or array.size == 0:
            raise MeasureError(
                f"the {name}'s outputs have shape {array.shape}; give (N, C) with N, C >= 1"
            )
    classes = max(2, teacher_NC.shape[1])
    labels = check_labels(labels_N, classes)
    if max(2, student_NC.shape[1]) != classes or not (
        len(teacher_NC) == len(student_NC) == len(labels)
    ):
        raise MeasureError(
            f"teacher {teacher_NC.shape}, student {student_NC.shape} and labels {labels.shape} "
            "do not fit; give the same examples and classes"
        )
    if not 0 < clip < 0.5:
        raise MeasureError(f"clip is {clip}; give a probability within (0, 0.5)")
    return labels


def _chunks(examples: int, classes: int) -> Iterator[slice]:
    step = max(1, _CHUNK_NUMBERS // classes)
    for start in range(0, examples, step):
        yield slice(start, min(start + step, examples))


def _read(outputs_NC: NDArray, chunk: slice, kind: OutputKind, name: str) -> Array:
    """Read a chunk in float64 with at least two classes, or raise if it is not finite."""
    outputs_BC = np.asarray(outputs_NC[chunk], dtype=np.float64)
    finite_B = np.isfinite(outputs_BC).all(axis=1)
    if kind == "logits":
        # A logit of −∞ masks a class, which then has the probability 0.
        finite_B = (np.isfinite(outputs_BC) | np.isneginf(outputs_BC)).all(axis=1)
        finite_B &= ~np.isneginf(outputs_BC).all(axis=1)
    if not finite_B.all():
        raise MeasureError(
            f"the {name}'s outputs are NaN or infinite at example "
            f"{chunk.start + int(np.argmin(finite_B))}; look at what made them"
        )
    return two_or_more(outputs_BC, kind)


def two_or_more(outputs_BC: Array, kind: OutputKind) -> Array:
    """Write a single output as two classes: logits (0, z), probabilities (1 − p, p)."""
    if outputs_BC.shape[1] > 1:
        return outputs_BC
    first = np.zeros_like(outputs_BC) if kind == "logits" else 1.0 - outputs_BC
    return np.concatenate([first, outputs_BC], axis=1)


def _phi(
    outputs_BC: Array, k_B: NDArray, kind: OutputKind, clip: float
) -> tuple[Array, NDArray[np.bool_]]:
    if kind == "logits":
        return phi_from_logits(outputs_BC, k_B), np.zeros(len(k_B), dtype=bool)
    return phi_from_probabilities(outputs_BC[np.arange(len(k_B)), k_B], clip)


def _log_probabilities(outputs_BC: Array, kind: OutputKind, clip: float) -> Array:
    if kind == "logits":
        return outputs_BC - _logsumexp(outputs_BC)[:, None]
    p_BC = np.clip(outputs_BC, 0, 1)
    odd_B = (p_BC != outputs_BC).any(axis=1) | (np.abs(p_BC.sum(axis=1) - 1) > _SUM_TOLERANCE)
    p_BC[odd_B] = np.clip(p_BC[odd_B], clip, 1 - clip)
    with np.errstate(divide="ignore"):
        return np.log(p_BC / p_BC.sum(axis=1, keepdims=True))


def _logsumexp(logits_BC: Array) -> Array:
    peak = logits_BC.max(axis=1, keepdims=True)
    peak[np.isneginf(peak)] = 0
    with np.errstate(divide="ignore"):
        return peak[:, 0] + np.log(np.exp(logits_BC - peak).sum(axis=1))
