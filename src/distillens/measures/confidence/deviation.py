"""Where and how a student deviates from its teacher.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923, the deviation plot. The intervals
are ours. Shapes: N examples, R resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import MeasureError
from distillens.measures.confidence.given import in_one_order
from distillens.measures.confidence.points import (
    CLIP,
    OutputKind,
    Points,
    compare,
    look_like_probabilities,
)
from distillens.measures.statistics.intervals import LEVEL, wilson_interval
from distillens.measures.statistics.slopes import least_squares_slope, least_squares_slopes
from distillens.results.base import Estimate, Interval
from distillens.results.confidence import Deviation

Array = NDArray[np.float64]

FEWEST = 10
"""Fewer points give no slope."""

_CHUNK_NUMBERS = 2**21
_PARTS = ("all", "low-confidence", "high-confidence")


def deviation(
    teacher_outputs: ArrayLike,
    student_outputs: ArrayLike,
    labels_N: ArrayLike,
    *,
    student: str,
    seed: int,
    split: str,
    teacher_kind: OutputKind = "logits",
    student_kind: OutputKind = "logits",
    clip: float = CLIP,
    resamples: int = 1000,
    bootstrap_seed: int = 0,
) -> tuple[Deviation, Points]:
    """Compare a student's confidence with its teacher's.

    Slopes come with bootstrap percentile intervals over examples (the threshold, which is the
    median of x, stays where it is). Points at the threshold count as high confidence.

    Parameters
    ----------
    teacher_outputs, student_outputs
        (N, C), or (N, 1) for one output that speaks of class 1. Logits at τ = 1 unless said
        otherwise. Memory maps are read in chunks. Tables of pandas, polars and PyArrow are matched
        as by `audit`, rows by index and columns by name.
    labels_N
        True classes, integers in 0 … C−1 (0 or 1 for one output), names of the columns of the
        outputs, or one-hot rows (N, C).
    student, seed, split
        What the result is about: the supervision's name, the student's seed, "train" or "test".
    teacher_kind, student_kind
        "logits", or "probabilities" for softmax outputs and for networks trained with squared
        error on 0/1 targets (map one trained on ±1 by (f + 1)/2 first).
    clip
        Probabilities are clipped to [clip, 1−clip]; the result counts how often.
    resamples, bootstrap_seed
        Of the bootstrap.

    Returns
    -------
    tuple
        The result, and the points it was made from. A slope that the points do not define is NaN
        without an interval, with a note.

    Raises
    ------
    MeasureError
        Shapes differ, a value is NaN or infinite, a label is out of range, there are no examples.
    """
    if resamples < 100:
        raise MeasureError(
            f"{resamples} resamples are too few for 95 % intervals; give 100 or more"
        )
    teacher_NC, student_NC, labels = in_one_order(teacher_outputs, student_outputs, labels_N)
    found = compare(
        teacher_NC,
        student_NC,
        labels,
        teacher_kind=teacher_kind,
        student_kind=student_kind,
        clip=clip,
    )
    x_N, y_N = found.points.x_N, found.points.y_N
    threshold = float(np.median(x_N))
    low_N = x_N < threshold
    rng = np.random.default_rng(bootstrap_seed)
    slopes, notes = _slopes(x_N, y_N, low_N, resamples, rng)
    for name, kind, outputs_NC in (
        ("teacher", teacher_kind, teacher_NC),
        ("student", student_kind, student_NC),
    ):
        if kind == "logits" and look_like_probabilities(outputs_NC):
            notes.append(
                f"the {name}'s outputs were read as logits, but lie within [0, 1] and sum to one, as "
                f'probabilities do; if they are, give {name}_kind="probabilities"'
            )
        if kind == "probabilities":
            notes.append(
                f"the {name}'s outputs were read as probabilities: clipped to [{clip:g}, "
                f"1 - {clip:g}] for the plot, and divided by their sum for KL"
            )
    if found.infinite:
        notes.append(
            f"KL is infinite at {found.infinite:,} of {len(x_N):,} examples, where the student gives "
            f"a probability of 0; its mean over the others is {found.finite_kl:.4g}"
        )
    result = Deviation(
        student=student,
        seed=seed,
        split=split,
        examples=len(x_N),
        slope=slopes[0],
        slope_low=slopes[1],
        slope_high=slopes[2],
        threshold=threshold,
        underfit_share=_underfit_share(x_N[low_N], y_N[low_N]),
        top_agreement=found.top_agreement,
        kl=found.kl,
        right=found.right,
        clipped=found.clipped,
        notes=tuple(notes),
    )
    return result, found.points


def _underfit_share(x_low: Array, y_low: Array) -> Estimate:
    """Share of low-confidence points with y < x; NaN where there is none."""
    if len(x_low) == 0:
        return Estimate(float("nan"))
    share = float(np.mean(y_low < x_low))
    return Estimate(share, wilson_interval(share, len(x_low)))


def _slopes(
    x_N: Array, y_N: Array, low_N: NDArray[np.bool_], resamples: int, rng: np.random.Generator
) -> tuple[list[Estimate], list[str]]:
    """Fit y on x on all, low and high points; slopes that are not defined become notes."""
    resampled_R3 = None
    estimates: list[Estimate] = []
    notes: list[str] = []
    parts = (np.ones_like(low_N), low_N, ~low_N)
    for column, (name, part_N) in enumerate(zip(_PARTS, parts, strict=True)):
        x, y = x_N[part_N], y_N[part_N]
        if len(x) < FEWEST:
            notes.append(f"{len(x)} {name} points are too few for a slope (fewer than {FEWEST})")
            estimates.append(Estimate(float("nan")))
            continue
        if x.min() == x.max():
            notes.append(
                f"the teacher is equally sure ({x[0]:.3g}) at all {len(x)} {name} points: no slope"
            )
            estimates.append(Estimate(float("nan")))
            continue
        if resampled_R3 is None:
            resampled_R3 = _resampled_slopes(x_N, y_N, low_N, resamples, rng)
        drawn = resampled_R3[:, column]
        drawn = drawn[np.isfinite(drawn)]
        interval = None
        if len(drawn) >= LEVEL * resamples:
            low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            method = f"bootstrap percentiles over examples, {resamples} resamples"
            interval = Interval(float(low), float(high), LEVEL, method)
        else:
            notes.append(f"too few {name} points differ in x: their slope has no interval")
        estimates.append(Estimate(least_squares_slope(x, y), interval))
    return estimates, notes


def _resampled_slopes(
    x_N: Array, y_N: Array, low_N: NDArray[np.bool_], resamples: int, rng: np.random.Generator
) -> Array:
    """Slopes of all, low and high points in R resamples of the examples, (R, 3).

    A resample counts each example w times; a slope needs only Σw, Σwx, Σwy, Σwx², Σwxy, so a chunk
    of resamples is one matrix product.
    """
    examples = len(x_N)
    # Slopes don't change with the origin, but the sums of squares cancel less near it.
    x, y = x_N - x_N.mean(), y_N - y_N.mean()
    moments_N5 = np.stack([np.ones(examples), x, y, x * x, x * y], axis=1)
    moments_N10 = np.concatenate(
        [moments_N5 * low_N[:, None], moments_N5 * ~low_N[:, None]], axis=1
    )
    step = max(1, _CHUNK_NUMBERS // examples)
    sums: list[Array] = []
    for start in range(0, resamples, step):
        weights = np.empty((min(step, resamples - start), examples))
        for row in weights:
            row[:] = np.bincount(rng.integers(examples, size=examples), minlength=examples)
        sums.append(weights @ moments_N10)
    sums_R10 = np.concatenate(sums)
    low_R5, high_R5 = sums_R10[:, :5], sums_R10[:, 5:]
    return np.stack([least_squares_slopes(s) for s in (low_R5 + high_R5, low_R5, high_R5)], axis=1)
