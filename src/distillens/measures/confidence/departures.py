"""The disobedience ledger: where the student departs from its teacher, and whether that pays.

Sources: McNemar, 1947 (the exact test); Agresti and Min, *Simple improved confidence intervals for
comparing matched proportions*, 2005 (the interval of the net gain). Shapes: N examples.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distillens.measures.confidence.per_example import PerExample
from distillens.measures.confidence.telling import telling_examples
from distillens.measures.statistics.intervals import LEVEL
from distillens.results.base import Estimate, Interval
from distillens.results.confidence import Agreement, Ledger, LedgerEntry

_BANDS = 5


def keep_ledger(
    found: PerExample,
    classes: int,
    mislabelled_N: NDArray[np.bool_] | None,
    index_N: NDArray | None,
    inputs: NDArray | None,
    telling: int,
) -> Ledger:
    """Count departures over all examples and by group; ``telling`` is how many of each to list."""
    teacher_right = found.teacher.top_N == found.labels_N
    student_right = found.student.top_N == found.labels_N
    departs = found.teacher.top_N != found.student.top_N
    # One code an example, so that any grouping is one count: 0 obeys, 1 gained, 2 lost, 3 both wrong.
    outcome_N = np.zeros(len(departs), dtype=np.int64)
    outcome_N[departs] = 3
    outcome_N[departs & student_right] = 1
    outcome_N[departs & teacher_right] = 2
    by_mislabelled: tuple[LedgerEntry, ...] = ()
    if mislabelled_N is not None:
        names = ["not mislabelled", "mislabelled"]
        by_mislabelled = _entries(outcome_N, mislabelled_N.astype(np.int64), names)
    band_N, bands = _confidence_bands(found.teacher.confidence_N)
    whole = _entries(outcome_N, np.zeros_like(outcome_N), ["all"])[0]
    return Ledger(
        departures=whole.departures,
        all=whole,
        right=Agreement(
            both=int(np.count_nonzero(teacher_right & student_right)),
            only_student=whole.gained,
            only_teacher=whole.lost,
            neither=int(np.count_nonzero(~teacher_right & ~student_right)),
        ),
        by_class=_entries(outcome_N, found.labels_N, [f"class {c}" for c in range(classes)]),
        by_confidence=_entries(outcome_N, band_N, bands),
        by_mislabelled=by_mislabelled,
        telling=telling_examples(found, outcome_N, mislabelled_N, index_N, inputs, telling),
    )


def mcnemar_exact(gained: int, lost: int) -> float:
    """Return the exact two-sided p of ``gained`` against ``lost`` under equal odds; 1 without any."""
    if gained + lost == 0:
        return 1.0
    return min(1.0, 2 * float(stats.binom.cdf(min(gained, lost), gained + lost, 0.5)))


def net_gain(gained: int, lost: int, examples: int) -> Estimate:
    """Return 100 (gained − lost)/examples with the interval of Agresti and Min.

    One half is added to each of the four cells of the paired table, after which the plain normal
    interval covers well even where few or no examples differ.
    """
    size = examples + 2
    difference = (gained - lost) / size
    variance = ((gained + lost + 1) - (gained - lost) ** 2 / size) / size**2
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * math.sqrt(max(0.0, variance))
    interval = Interval(
        100 * max(-1.0, difference - half),
        100 * min(1.0, difference + half),
        LEVEL,
        f"Agresti and Min over {examples} pairs",
    )
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
