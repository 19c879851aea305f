"""When an audit says yes, and when it says that there is nothing or not enough to see."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distillens.results.base import Estimate
from distillens.results.confidence import SplitAudit, Verdict

FEWEST = 30
"""Fewer points get no verdict: percentile intervals of so few are too narrow."""

NEGLIGIBLE_SLOPE = 0.05
"""A slope surely below 1.05 is "not here", however narrow its interval."""

NEGLIGIBLE_SHARE = 0.02


def judge(
    points: int,
    estimates: Sequence[Estimate],
    beyond: Sequence[Estimate],
    edge: float,
    negligible: float,
) -> Verdict:
    """Judge whether numbers lie above an edge and above all references.

    Parameters
    ----------
    points
        That the numbers were made from.
    estimates
        All must lie above the edge for a yes: the ordinary and the robust fit.
    beyond
        Differences to references, which must lie above 0.
    edge
        1 for slopes, one half for shares.
    negligible
        An interval that ends below ``edge + negligible`` is "not here".
    """
    intervals = [one.interval for one in estimates]
    if points < FEWEST or any(math.isnan(one.value) for one in estimates):
        return "too few examples"
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return "too few examples"
    if all(interval.high < edge + negligible for interval in known):
        return "not here"
    if not all(interval.low > edge for interval in known):
        return "undecided"
    if all(one.interval is not None and one.interval.low > 0 for one in beyond):
        return "yes"
    return "no more than a reference"


def particular(verdict: Verdict, beyond_high: Estimate) -> Verdict:
    """Return the verdict of the underfit share, given how far it is beyond that of the high part.

    A student that is less sure than its teacher where this is sure too does not exaggerate.
    """
    if verdict not in ("yes", "no more than a reference"):
        return verdict
    interval = beyond_high.interval
    if interval is None or interval.low > 0:
        return verdict
    return "undecided" if interval.high > NEGLIGIBLE_SHARE else "less sure throughout"


def together(verdicts: dict[str, Verdict], references: bool) -> tuple[Verdict, str]:
    """Return one verdict for all, and a sentence; ``verdicts`` maps what was looked at to its own."""
    order: tuple[Verdict, ...] = (
        "yes",
        "no more than a reference",
        "undecided",
        "less sure throughout",
        "not here",
    )
    found: Verdict = "too few examples"
    for verdict in order:
        if verdict in verdicts.values():
            found = verdict
            break
    where = ", ".join(name for name, verdict in verdicts.items() if verdict == found)
    words = {
        "yes": f"The student exaggerates its teacher's confidence ({where}).",
        "no more than a reference": "As exaggeration would have it, but no more than under a "
        f"reference ({where}).",
        "undecided": f"Undecided: an interval holds both answers ({where}).",
        "less sure throughout": "Not here: the student is less sure than its teacher, but no more so "
        "where the teacher is unsure.",
        "not here": "Not here: the student does not exaggerate its teacher's confidence.",
        "too few examples": f"Too few examples for a verdict (fewer than {FEWEST} in each part, "
        "or the teacher is equally sure of them).",
    }
    said = words[found]
    if found == "yes" and not references:
        said += " No reference was given, and regression to the mean alone tilts slopes."
    return found, said


def chance_warnings(split: SplitAudit) -> tuple[str, ...]:
    """Return a sentence for each network whose accuracy is not above the share of the largest class.

    It is above if the upper end of its Wilson interval is.
    """
    found = []
    for one in split.calibration:
        interval, majority = one.accuracy.interval, split.majority
        if interval is None or majority is None or interval.high > majority:
            continue
        found.append(
            f"the accuracy of the {one.who} on the split {split.split!r} is not above chance: "
            f"{100 * one.accuracy.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}], "
            f"the most frequent class has {100 * majority:.1f} %; check that labels, rows and columns "
            "belong together"
        )
    return tuple(found)
