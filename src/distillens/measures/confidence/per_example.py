"""The one pass over all outputs, which leaves a few numbers for each example.

Shapes: N examples, C classes, B examples of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distillens.measures.confidence.outputs import Distribution, Outputs
from distillens.measures.confidence.points import differences, place_infinite

Array = NDArray[np.float64]

_CHUNK_NUMBERS = 2**16
"""Numbers of a chunk: a handful of float64 arrays of this size fit a processor's cache."""

_RELEASE_EVERY = 256


@dataclass(frozen=True, eq=False)
class Judged:
    """What one network says about each example."""

    top_N: NDArray[np.int32]
    confidence_N: Array
    """Probability of its own top class."""
    on_other_N: Array
    """Probability that it gives to the other's top class."""
    nll_N: Array
    brier_N: Array


@dataclass(frozen=True, eq=False)
class PerExample:
    """What the pass finds; ``x_N`` and ``y_N`` are the coordinates of the confidence plot."""

    labels_N: NDArray[np.integer]
    x_N: Array
    y_N: Array
    references: dict[str, Array]
    """y of each reference, at the same x."""
    teacher: Judged
    student: Judged
    kl_teacher_student_N: Array
    kl_student_teacher_N: Array
    total_variation_N: Array
    placed: int
    """Points with a probability of exactly 0 or 1, which were placed at ±``edge``."""
    edge: float
    differing: int = field(default=0)
    """Examples with a difference in any probability."""


def look_once(
    teacher: Outputs, student: Outputs, labels_N: NDArray, references: dict[str, Outputs]
) -> PerExample:
    """Read every array once, in chunks. All have the same examples and classes.

    Raises
    ------
    MeasureError
        A value is NaN or infinite, or a row is no probability though it should be.
    """
    examples = len(labels_N)
    judged = {role: _empty_judged(examples) for role in ("teacher", "student")}
    x_N, y_N = np.empty(examples), np.empty(examples)
    reference_y = {name: np.empty(examples) for name in references}
    forward_N, backward_N, variation_N = (np.empty(examples) for _ in range(3))
    step = max(1, _CHUNK_NUMBERS // teacher.classes)
    everyone = [teacher, student, *references.values()]
    for turn, start in enumerate(range(0, examples, step)):
        chunk = slice(start, min(start + step, examples))
        te, st = teacher.read(chunk), student.read(chunk)
        k_B, k_student_B = te.p_BC.argmax(axis=1), st.p_BC.argmax(axis=1)
        x_N[chunk], y_N[chunk] = te.phi(k_B), st.phi(k_B)
        for name, outputs in references.items():
            reference_y[name][chunk] = outputs.read(chunk).phi(k_B)
        _judge(judged["teacher"], chunk, te, k_B, k_student_B, labels_N[chunk])
        _judge(judged["student"], chunk, st, k_student_B, k_B, labels_N[chunk])
        forward_N[chunk], backward_N[chunk], variation_N[chunk] = differences(
            te.p_BC, st.p_BC, te.log_p_BC, st.log_p_BC
        )
        if turn % _RELEASE_EVERY == _RELEASE_EVERY - 1:
            for outputs in everyone:
                outputs.release()
    placed, edge = place_infinite(x_N, y_N, *reference_y.values())
    return PerExample(
        labels_N, x_N, y_N, reference_y, judged["teacher"], judged["student"], forward_N,
        backward_N, variation_N, placed, edge, int(np.count_nonzero(variation_N)),
    )  # fmt: skip


def _empty_judged(examples: int) -> Judged:
    return Judged(np.empty(examples, dtype=np.int32), *(np.empty(examples) for _ in range(4)))


def _judge(
    into: Judged,
    chunk: slice,
    found: Distribution,
    top_B: NDArray,
    other_B: NDArray,
    labels_B: NDArray,
) -> None:
    rows = np.arange(len(top_B))
    p_label_B = found.p_BC[rows, labels_B]
    into.top_N[chunk] = top_B
    into.confidence_N[chunk] = found.p_BC[rows, top_B]
    into.on_other_N[chunk] = found.p_BC[rows, other_B]
    into.nll_N[chunk] = -found.log_p_BC[rows, labels_B]
    squares_B = np.einsum("bc,bc->b", found.p_BC, found.p_BC)
    into.brier_N[chunk] = squares_B - 2 * p_label_B + 1
