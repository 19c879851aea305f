"""The verdict on distillation: whether the selected supervision beats training on labels alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distillens.report.sections.ranking import ONE_HOT, TEACHER, labels_alone
from distillens.results.base import Estimate
from distillens.results.training import Row, StudyResult, validation_means

MARGIN = 0.005
"""The largest difference between accuracies that does not matter: 0.5 percentage points."""

MOST_SEEDS = 1000
"""The largest number of further seeds that is stated."""


class Verdict(StrEnum):
    """The possible verdicts, in the order in which `classify` tries them."""

    DOES_NOT_MATTER = "Does not matter"
    HELPS = "Helps"
    HURTS = "Hurts"
    PROBABLY_HELPS = "Probably helps"
    CANNOT_BE_TOLD = "Cannot be told"


@dataclass(frozen=True)
class SeedRange:
    """How many further seeds decide, if the mean difference stays what it is.

    Attributes
    ----------
    fewest, likely, most
        For the lower end of the 95 % interval of the standard deviation between seeds, for its
        estimate, and for the upper end. None if `MOST_SEEDS` further seeds do not decide, for
        instance because the number of test examples limits the precision.
    """

    fewest: int | None
    likely: int | None
    most: int | None


@dataclass(frozen=True)
class Judgement:
    """The verdict on one supervision of a run.

    Attributes
    ----------
    verdict
        One of five.
    margin
        The largest difference that does not matter, as a share.
    row
        The supervision that it is about; None if none can be named.
    labels
        The student trained on labels alone; None if the run has none.
    reason
        Why no supervision is named or no gain is known; empty otherwise.
    further_seeds
        How many further seeds decide; None if the verdict does not call for seeds, or if the spread
        between seeds is not known.
    """

    verdict: Verdict
    margin: float
    row: Row | None = None
    labels: Row | None = None
    reason: str = ""
    further_seeds: SeedRange | None = None

    @property
    def gain(self) -> Estimate | None:
        """The gain over labels alone, as a share."""
        return None if self.row is None else self.row.gain

    @property
    def open(self) -> bool:
        """Whether further seeds could change the verdict."""
        return self.verdict in (Verdict.CANNOT_BE_TOLD, Verdict.PROBABLY_HELPS)


def classify(gain: Estimate | None, seeds: int, margin: float = MARGIN) -> Verdict:
    """Return the verdict on a gain over labels alone.

    Parameters
    ----------
    gain
        The difference of test accuracies, as a share, with its interval.
    seeds
        The number of paired seeds. An interval from a single seed says nothing about other seeds, so
        the verdict is then that it cannot be told.
    margin
        The largest difference that does not matter, as a share.

    Examples
    --------
    >>> from distillens.results import Estimate, Interval
    >>> classify(Estimate(0.02, Interval(0.01, 0.03, 0.95, "Student t")), seeds=3)
    <Verdict.HELPS: 'Helps'>
    """
    if gain is None or gain.interval is None or seeds < 2:
        return Verdict.CANNOT_BE_TOLD
    low, high = gain.interval.low, gain.interval.high
    if not math.isfinite(low + high):
        return Verdict.CANNOT_BE_TOLD
    if -margin <= low and high <= margin:
        return Verdict.DOES_NOT_MATTER
    if low > 0:
        return Verdict.HELPS
    if high < 0:
        return Verdict.HURTS
    return Verdict.PROBABLY_HELPS if gain.value > margin else Verdict.CANNOT_BE_TOLD


def judge(result: StudyResult, margin: float = MARGIN) -> Judgement:
    """Return the verdict on the supervision that validation selects among those that distil.

    Test accuracies are never used to select it. While networks are not trained yet, and without
    validation examples, no supervision is named, unless a single one distils, so that nothing is
    selected.
    """
    labels = labels_alone(result)
    distilled = [row for row in result.rows if row.kind not in (ONE_HOT, TEACHER)]
    unknown = Judgement(Verdict.CANNOT_BE_TOLD, margin, labels=labels)
    if not distilled:
        return _because(unknown, "the run has no distilled student")
    if result.open_cells:
        return _because(unknown, f"{len(result.open_cells)} networks are not trained yet")
    means = validation_means(result)
    if len(distilled) > 1 and not means:
        return _because(
            unknown, "the run has no validation examples, and test labels select no supervision"
        )
    row = max(distilled, key=lambda one: means.get(one.position, 0.0))
    if labels is None:
        return _because(unknown, "the run has no student trained on labels alone", row)
    differences = paired_differences(result, row, labels)
    verdict = classify(row.gain, len(differences), margin)
    found = Judgement(verdict, margin, row, labels)
    if len(differences) < 2:
        return _because(found, "one seed does not show the spread between seeds", row)
    if found.open and row.gain is not None:
        seeds = further_seeds(row.gain, differences, margin)
        found = Judgement(verdict, margin, row, labels, further_seeds=seeds)
    return found


def _because(found: Judgement, reason: str, row: Row | None = None) -> Judgement:
    return Judgement(found.verdict, found.margin, row, found.labels, reason)


def paired_differences(result: StudyResult, row: Row, labels: Row) -> NDArray[np.float64]:
    """Return the test accuracy minus that of labels alone for each seed that both have, shape (S,)."""
    accuracies = {cell.id: cell.test_accuracy for cell in result.cells}
    by_seed = {
        position: {
            one.seed: value for one, value in accuracies.items() if one.supervision == position
        }
        for position in (row.position, labels.position)
    }
    shared = sorted(by_seed[row.position].keys() & by_seed[labels.position].keys())
    return np.array(
        [by_seed[row.position][seed] - by_seed[labels.position][seed] for seed in shared]
    )


def further_seeds(
    gain: Estimate, differences_S: Sequence[float] | NDArray[np.float64], margin: float = MARGIN
) -> SeedRange | None:
    """Return how many further seeds decide, if the mean difference stays what it is.

    The verdict is decided when the half-width of the interval of the gain is so small that the interval
    either excludes 0 or lies within ± ``margin``. The variance between seeds shrinks with their
    number; the part of the interval that comes from the test examples does not. The level of the
    interval is that which holds after seeds are added: the probability of an error is halved.

    Parameters
    ----------
    gain
        The mean difference with its present interval, as a share.
    differences_S
        The difference for each seed, as a share.
    margin
        The largest difference that does not matter, as a share.

    Returns
    -------
    SeedRange or None
        For the interval of the standard deviation (chi-squared, 95 %). None for fewer than two seeds.
    """
    values = np.asarray(differences_S, dtype=np.float64)
    count = len(values)
    if count < 2 or gain.interval is None:
        return None
    level = gain.interval.level
    later = 1 - (1 - level) / 2
    deviation = float(values.std(ddof=1))
    half = (gain.interval.high - gain.interval.low) / 2
    of_seeds = float(stats.t.ppf(0.5 + level / 2, count - 1)) * deviation / math.sqrt(count)
    of_examples = math.sqrt(max(0.0, half**2 - of_seeds**2))
    of_examples *= float(stats.norm.ppf(0.5 + later / 2) / stats.norm.ppf(0.5 + level / 2))
    wanted = max(abs(gain.value), margin - abs(gain.value))
    ends = stats.chi2.ppf([0.975, 0.025], count - 1)
    low, high = (deviation * np.sqrt((count - 1) / ends)).tolist()

    def needed(spread: float) -> int | None:
        counts = np.arange(count + 1, count + MOST_SEEDS + 1)
        halves = stats.t.ppf(0.5 + later / 2, counts - 1) * spread / np.sqrt(counts)
        enough = np.hypot(halves, of_examples) <= wanted
        return int(counts[enough.argmax()]) - count if enough.any() else None

    return SeedRange(needed(low), needed(deviation), needed(high))
