"""The share of pairs with a stronger bias, with intervals over seeds.

Pairs of one student share eigenvectors and trajectories, students of one teacher share it: neither are
independent trials. So every teacher gives one number, and intervals are over teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from distillens.errors import MeasureError
from distillens.measures.statistics.intervals import mean_over_seeds, wilson_interval
from distillens.results.base import Estimate
from distillens.results.eigenspace import BiasSummary, PairBias, Projected


def summarise_bias(
    student: str, projected: Projected, compared: Sequence[tuple[str, Sequence[PairBias]]]
) -> BiasSummary:
    """Summarise the students of one kind.

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
    verdicts = [(name, [p.stronger for p in pairs]) for name, pairs in taken]
    ends = [(name, [p.stronger_at_end for p in pairs]) for name, pairs in taken]
    flat = [verdict for _, each in verdicts for verdict in each]
    teachers = len({name for name, _ in taken})
    values = _shares(verdicts, teachers)
    return BiasSummary(
        student=student,
        projected=projected,
        students=len(taken),
        teachers=teachers,
        pairs=counts.pop(),
        stronger=flat.count(True),
        not_stronger=flat.count(False),
        undecided=flat.count(None),
        share=_estimate(values, teachers),
        share_at_end=_estimate(_shares(ends, teachers), teachers),
        majority=_majority(values, teachers),
    )


def _shares(verdicts: Sequence[tuple[str, Sequence[bool | None]]], teachers: int) -> list[float]:
    """Return one share a teacher, or a student where there is one teacher; none without verdicts."""
    each = [
        (name, float(np.mean(decided)))
        for name, marks in verdicts
        if (decided := [mark for mark in marks if mark is not None])
    ]
    if teachers == 1:
        return [share for _, share in each]
    by_name = groupby(sorted(each), key=lambda one: one[0])
    return [float(np.mean([share for _, share in members])) for _, members in by_name]


def _estimate(values: list[float], teachers: int) -> Estimate:
    if not values:
        return Estimate(float("nan"))
    found = mean_over_seeds(values)
    if found.interval is None:
        return found
    interval = replace(
        found.interval,
        low=max(0.0, found.interval.low),
        high=min(1.0, found.interval.high),
        method=f"Student t over {len(values)} {_unit(teachers)}, cut to [0, 1]",
    )
    return Estimate(found.value, interval)


def _unit(teachers: int) -> str:
    return "students of one teacher" if teachers == 1 else "teachers"


def _majority(values: list[float], teachers: int) -> Estimate:
    if not values:
        return Estimate(float("nan"))
    share = float(np.mean([value > 0.5 for value in values]))
    found = wilson_interval(share, len(values))
    return Estimate(share, replace(found, method=f"Wilson over {len(values)} {_unit(teachers)}"))
