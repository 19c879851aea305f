"""Teacher against student on pairs of eigenvectors, compared at equal progress along the top one.

Source: Nagarajan et al. 2023, arXiv 2301.12923: pairs of a top and a bottom eigenvector, and Thm. 4.1.
The paper judges its pairs from plots; the rule below is ours.

A trajectory is a path (x, y): its components along the top and the bottom eigenvector. Gradient flow
never turns back along x; trained networks do, and a student may overshoot its teacher. So progress is
measured by **first passage**: y at x is the bottom component when the top one first reaches x, between
checkpoints on a straight line. Both paths are compared over the x that both reach, from the higher of
the two starts to the lower of the two maxima. The student's bias is stronger where its y is smaller on
average over that range. Nothing is decided where

- a path never rises along x, or the common range is less than a tenth of the shorter rise;
- the two y are equal to rounding.

Shapes: E checkpoints, K directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import MeasureError
from distillens.measures.statistics.intervals import mean_over_seeds, wilson_interval
from distillens.results.base import Estimate, Interval
from distillens.results.eigenspace import BiasSummary, PairBias, Projected

Array = NDArray[np.float64]
Pair = tuple[int, int]

TOP = 15
"""The paper samples top indices from this number of leading ranks."""
BOTTOM = (20, 60)
"""And bottom indices from here, ends included."""
LEAST_OVERLAP = 0.1

_POINTS = 256
_ROUNDING = 1e-10


def draw_pairs(
    count: int, seed: int, *, top: int = TOP, bottom: tuple[int, int] = BOTTOM
) -> tuple[Pair, ...]:
    """Draw different pairs of eigenvectors, counted from 1: the top one in 1 to ``top``.

    Raises
    ------
    MeasureError
        The ranges are empty or overlap, there are fewer pairs, or the seed is negative.
    """
    low, high = bottom
    if not 1 <= top < low <= high:
        raise MeasureError(
            f"tops in 1 to {top} and bottoms in {low} to {high} make no pairs; "
            "give 1 ≤ top < lowest bottom ≤ highest bottom"
        )
    bottoms = high - low + 1
    if not 1 <= count <= top * bottoms:
        raise MeasureError(f"{count} pairs were asked for; give 1 to {top * bottoms}")
    if seed < 0:
        raise MeasureError(f"the seed of the pairs is {seed}; give 0 or more")
    sampled = np.random.default_rng(seed).choice(top * bottoms, count, replace=False)
    return tuple((int(n) // bottoms + 1, int(n) % bottoms + low) for n in sampled)


def compare_pairs(
    teacher_EK: ArrayLike,
    student_EK: ArrayLike,
    pairs: Sequence[Pair],
    projected: Projected = "weights",
) -> tuple[PairBias, ...]:
    """Compare a student's trajectory with its teacher's on every pair.

    Parameters
    ----------
    teacher_EK, student_EK
        Components at every checkpoint, at least 0; as `project_weights` gives them. The two may have
        different numbers of checkpoints, at any times: time is not compared.
    pairs
        (top, bottom), counted from 1.
    projected
        Description of the components, stored in the result.

    Raises
    ------
    MeasureError
        A shape does not fit, a value is not finite or negative, or a pair names a direction that is
        not there or names its top below its bottom.
    """
    teacher, student = _checked(teacher_EK, "teacher"), _checked(student_EK, "student")
    most = min(teacher.shape[1], student.shape[1])
    for top, bottom in pairs:
        if not 1 <= top < bottom <= most:
            raise MeasureError(
                f"the pair ({top}, {bottom}) is none of {most} directions; "
                "give 1 ≤ top < bottom ≤ directions"
            )
    return tuple(
        _compare(teacher[:, [t - 1, b - 1]], student[:, [t - 1, b - 1]], (t, b), projected)
        for t, b in pairs
    )


def _compare(teacher_E2: Array, student_E2: Array, pair: Pair, projected: Projected) -> PairBias:
    paths = (_first_passage(teacher_E2), _first_passage(student_E2))
    rises = [float(x[-1] - x[0]) for x, _ in paths]
    low = max(float(x[0]) for x, _ in paths)
    high = min(float(x[-1]) for x, _ in paths)
    flat = [
        who
        for who, rise, (x, _) in zip(("teacher", "student"), rises, paths, strict=True)
        if rise <= _ROUNDING * float(x[-1])
    ]
    why = f"the {flat[0]} never rises along the top" if flat else ""
    if not flat and high - low < LEAST_OVERLAP * min(rises):
        why = f"the common range is {max(high - low, 0):.3g}, the shorter rise {min(rises):.3g}"
    if why:
        nan = float("nan")
        return PairBias(*pair, projected, None, None, nan, nan, nan, low, high, why)
    # Middles of equal parts, at which a jump of a first passage hardly ever lies.
    at_M = low + (high - low) * (np.arange(_POINTS) + 0.5) / _POINTS
    (of_teacher, teacher_end), (of_student, student_end) = (
        (np.interp(at_M, x, y), float(np.interp(high, x, y))) for x, y in paths
    )
    gap_M = of_teacher - of_student
    scale = float(max(of_teacher.max(), of_student.max()))
    gap, end_gap = float(gap_M.mean()), teacher_end - student_end
    tie = abs(gap) <= _ROUNDING * scale
    return PairBias(
        top=pair[0],
        bottom=pair[1],
        projected=projected,
        stronger=None if tie else gap > 0,
        stronger_at_end=None if abs(end_gap) <= _ROUNDING * scale else end_gap > 0,
        teacher_bottom=float(of_teacher.mean()),
        student_bottom=float(of_student.mean()),
        below=float(np.mean(gap_M > 0)),
        low=low,
        high=high,
        undecided="both have the same of the bottom, to rounding" if tie else None,
    )


def _first_passage(path_E2: Array) -> tuple[Array, Array]:
    """Return y when x first reaches each value, as a line through points (x, y) with x rising."""
    xs, ys = [float(path_E2[0, 0])], [float(path_E2[0, 1])]
    for (x0, y0), (x1, y1) in pairwise(path_E2):
        reached = xs[-1]
        if x1 <= reached:
            continue
        if x0 < reached:
            # Back at the value reached before: y may have moved on meanwhile.
            xs.append(reached)
            ys.append(float(y0 + (y1 - y0) * (reached - x0) / (x1 - x0)))
        xs.append(float(x1))
        ys.append(float(y1))
    return np.array(xs), np.array(ys)


def _checked(components: ArrayLike, who: str) -> Array:
    found = np.asarray(components, dtype=np.float64)
    if found.ndim != 2 or len(found) < 2:
        raise MeasureError(
            f"the {who}'s components have shape {found.shape}; give (E, K) of at least 2 checkpoints"
        )
    if not np.isfinite(found).all() or found.min() < 0:
        raise MeasureError(f"the {who}'s components hold NaN, infinity or a number below 0")
    return found


def summarise_bias(
    student: str, projected: Projected, compared: Sequence[tuple[str, Sequence[PairBias]]]
) -> BiasSummary:
    """Summarise the students of one kind.

    Pairs of one student share eigenvectors and trajectories, and students of one teacher share the
    teacher: neither are independent trials. So every teacher gives one number, and intervals are over
    teachers.

    Parameters
    ----------
    student
        Title of the students.
    projected
        Kind of pairs.
    compared
        A name of the teacher and the pairs of each student. Names tell teachers apart.

    Raises
    ------
    MeasureError
        There is no student, or students have different numbers of pairs.
    """
    taken = [(name, [p for p in pairs if p.projected == projected]) for name, pairs in compared]
    counts = {len(pairs) for _, pairs in taken}
    if len(counts) != 1 or 0 in counts:
        raise MeasureError(
            f"students of {student!r} have {sorted(counts)} pairs of {projected}; "
            "give each the same pairs"
        )
    marks = [pair.stronger for _, pairs in taken for pair in pairs]
    teachers = len({name for name, _ in taken})
    unit = "students of one teacher" if teachers == 1 else "teachers"
    values = _shares([(name, [p.stronger for p in pairs]) for name, pairs in taken], teachers)
    ends = _shares([(name, [p.stronger_at_end for p in pairs]) for name, pairs in taken], teachers)
    return BiasSummary(
        student=student,
        projected=projected,
        students=len(taken),
        teachers=teachers,
        pairs=counts.pop(),
        stronger=marks.count(True),
        not_stronger=marks.count(False),
        undecided=marks.count(None),
        share=_mean(values, unit),
        share_at_end=_mean(ends, unit),
        majority=_majority(values, unit),
    )


def _shares(verdicts: Sequence[tuple[str, Sequence[bool | None]]], teachers: int) -> list[float]:
    """Return one share a teacher, or a student where there is one teacher; none without verdicts."""
    found: dict[str, list[float]] = {}
    for number, (name, marks) in enumerate(verdicts):
        decided = [mark for mark in marks if mark is not None]
        if decided:
            key = name if teachers > 1 else str(number)
            found.setdefault(key, []).append(float(np.mean(decided)))
    return [float(np.mean(shares)) for _, shares in sorted(found.items())]


def _mean(values: list[float], unit: str) -> Estimate:
    if not values:
        return Estimate(float("nan"))
    found = mean_over_seeds(values)
    if found.interval is None:
        return found
    low, high = max(0.0, found.interval.low), min(1.0, found.interval.high)
    method = f"Student t over {len(values)} {unit}, cut to [0, 1]"
    return Estimate(found.value, Interval(low, high, found.interval.level, method))


def _majority(values: list[float], unit: str) -> Estimate:
    if not values:
        return Estimate(float("nan"))
    share = float(np.mean([value > 0.5 for value in values]))
    found = wilson_interval(share, len(values))
    return Estimate(share, replace(found, method=f"Wilson over {len(values)} {unit}"))
