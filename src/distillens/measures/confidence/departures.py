"""Departures: examples on which the student predicts another class than its teacher.

Sources: McNemar, 1947 (the exact test); Agresti and Min, *Simple improved confidence intervals for
comparing matched proportions*, 2005 (the interval of the net gain). Shapes: N examples.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distillens.measures.confidence.per_example_statistics import PerExampleStatistics
from distillens.measures.confidence.splits import Split
from distillens.measures.statistics.intervals import LEVEL, paired_bounds
from distillens.results.base import Estimate, Interval
from distillens.results.confidence import Agreement, InformativeDeparture, Ledger, LedgerEntry

_BANDS = 5
_LONGEST_TEXT = 200
_OUTCOMES: tuple[tuple[int, Literal["gained", "lost", "both wrong"]], ...] = (
    (1, "gained"),
    (2, "lost"),
    (3, "both wrong"),
)


def departure_ledger(found: PerExampleStatistics, split: Split, listed: int) -> Ledger:
    """Count departures over all examples and by group; list ``listed`` examples of each outcome."""
    who_N = found.who_is_right()
    both, only_student, only_teacher, neither = np.bincount(who_N, minlength=4).tolist()
    departs = found.teacher.top_N != found.student.top_N
    # One code per example, so that any grouping is one count: 0 no departure, then as in `_OUTCOMES`.
    outcome_N = np.where(departs, who_N, 0).astype(np.int64)
    by_mislabelled: tuple[LedgerEntry, ...] = ()
    if split.mislabelled_N is not None:
        names = ["not mislabelled", "mislabelled"]
        by_mislabelled = _entries(outcome_N, split.mislabelled_N.astype(np.int64), names)
    band_N, bands = _confidence_bands(found.teacher.confidence_N)
    whole = _entries(outcome_N, np.zeros_like(outcome_N), ["all"])[0]
    return Ledger(
        departures=whole.departures,
        all=whole,
        right=Agreement(both, only_student, only_teacher, neither),
        by_class=_entries(outcome_N, found.labels_N, [f"class {c}" for c in range(split.classes)]),
        by_confidence=_entries(outcome_N, band_N, bands),
        by_mislabelled=by_mislabelled,
        telling=_largest(found, outcome_N, split, listed),
    )


def mcnemar_exact(gained: int, lost: int) -> float:
    """Return the exact two-sided p of ``gained`` against ``lost`` under equal odds; 1 without any."""
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost).pvalue)


def net_gain(gained: int, lost: int, examples: int) -> Estimate:
    """Return 100 (gained − lost)/examples with the interval of Agresti and Min.

    One half is added to each of the four cells of the paired table, after which the plain normal
    interval covers well even where few or no examples differ.
    """
    low, high = paired_bounds(gained - lost, gained + lost, examples, LEVEL)
    method = f"Agresti and Min over {examples} pairs"
    interval = Interval(100 * low, 100 * high, LEVEL, method)
    return Estimate(100 * (gained - lost) / examples, interval)


def _entries(outcome_N: NDArray, group_N: NDArray, names: list[str]) -> tuple[LedgerEntry, ...]:
    counts = np.bincount(4 * group_N + outcome_N, minlength=4 * len(names)).reshape(-1, 4)
    found = []
    for name, row in zip(names, counts, strict=True):
        _, gained, lost, both_wrong = (int(count) for count in row)
        examples = int(row.sum())
        if examples:
            found.append(
                LedgerEntry(
                    name, examples, gained + lost + both_wrong, gained, lost, both_wrong,
                    net_gain(gained, lost, examples), mcnemar_exact(gained, lost),
                )
            )  # fmt: skip
    return tuple(found)


def _confidence_bands(confidence_N: NDArray) -> tuple[NDArray, list[str]]:
    """Deal examples into fifths of the teacher's confidence; ties share a band."""
    edges = np.unique(np.quantile(confidence_N, np.linspace(0, 1, _BANDS + 1)))
    if len(edges) == 1:
        return np.zeros(len(confidence_N), dtype=np.int64), [f"confidence {edges[0]:.3f}"]
    names = [f"confidence {a:.3f} to {b:.3f}" for a, b in itertools.pairwise(edges)]
    return np.searchsorted(edges[1:-1], confidence_N), names


def _largest(
    found: PerExampleStatistics, outcome_N: NDArray, split: Split, listed: int
) -> tuple[InformativeDeparture, ...]:
    """Return the departures of each outcome that moved the most probability, largest first."""
    teacher, student = found.teacher, found.student
    mislabelled_N, index, inputs = split.mislabelled_N, split.index, split.inputs
    moved_N = (teacher.confidence_N - student.on_other_N) + (
        student.confidence_N - teacher.on_other_N
    )
    chosen = []
    for code, outcome in _OUTCOMES:
        rows = np.flatnonzero(outcome_N == code)
        # Ties are ordered by row, so that the list is reproducible.
        rows = rows[np.argsort(-moved_N[rows], kind="stable")[:listed]]
        chosen += [(int(row), outcome) for row in rows]
    chosen.sort(key=lambda pair: (-moved_N[pair[0]], pair[0]))
    return tuple(
        InformativeDeparture(
            row=row,
            index=None if index is None else _plain(index[row]),
            outcome=outcome,
            label=int(found.labels_N[row]),
            teacher_class=int(teacher.top_N[row]),
            student_class=int(student.top_N[row]),
            teacher_on_its_class=float(teacher.confidence_N[row]),
            teacher_on_student_class=float(teacher.on_other_N[row]),
            student_on_its_class=float(student.confidence_N[row]),
            student_on_teacher_class=float(student.on_other_N[row]),
            moved=float(moved_N[row]),
            mislabelled=None if mislabelled_N is None else bool(mislabelled_N[row]),
            text=None if inputs is None else _text(inputs[row]),
        )
        for row, outcome in chosen
    )


def _plain(value: object) -> int | str:
    return value if isinstance(value, int) else str(value)


def _text(value: object) -> str | None:
    """Return an input as text; None for images and vectors."""
    if np.ndim(value) > 0:  # pyright: ignore[reportArgumentType]
        return None
    text = str(value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"
