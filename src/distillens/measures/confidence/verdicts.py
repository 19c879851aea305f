"""The verdicts of an audit, and the thresholds that they are made with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distillens.results.base import Estimate
from distillens.results.confidence import SplitAudit, Verdict

FEWEST_FOR_A_VERDICT = 30
"""Fewer points get no verdict, because percentile intervals of so few points are too narrow."""

NEGLIGIBLE_SLOPE = 0.05
"""The verdict is "no" if the interval of a slope ends below 1.05."""

NEGLIGIBLE_SHARE = 0.02
"""The verdict is "no" if the interval of the underfit share ends below 0.52."""


def judge(
    points: int,
    estimates: Sequence[Estimate],
    beyond: Sequence[Estimate],
    edge: float,
    negligible: float,
) -> Verdict:
    """Return whether estimates lie above an edge and above all references.

    Parameters
    ----------
    points
        Number of points that the estimates were made from.
    estimates
        All of them must lie above the edge for "yes": the ordinary and the robust fit.
    beyond
        Differences to references, which must lie above 0.
    edge
        1 for slopes, one half for shares.
    negligible
        The verdict is "no" if all intervals end below ``edge + negligible``.
    """
    known = [one.interval for one in estimates if one.interval and not math.isnan(one.value)]
    if points < FEWEST_FOR_A_VERDICT or len(known) < len(estimates):
        return "too few examples"
    if all(interval.high < edge + negligible for interval in known):
        return "no"
    if not all(interval.low > edge for interval in known):
        return "undecided"
    if all(one.interval is not None and one.interval.low > 0 for one in beyond):
        return "yes"
    return "no more than a reference"


def particular(verdict: Verdict, beyond_high: Estimate) -> Verdict:
    """Return the verdict on the underfit share, given its difference to that of the high part.

    A student that is less confident than its teacher also where the teacher is confident does not
    exaggerate.
    """
    if verdict not in ("yes", "no more than a reference"):
        return verdict
    interval = beyond_high.interval
    if interval is None or interval.low > 0:
        return verdict
    return "undecided" if interval.high > NEGLIGIBLE_SHARE else "less confident throughout"


def together(verdicts: dict[str, Verdict], references: bool) -> tuple[Verdict, str]:
    """Return the strongest of several verdicts, and a sentence; the keys name the quantities."""
    # From the strongest to the weakest.
    words: dict[Verdict, str] = {
        "yes": "The student exaggerates its teacher's confidence ({where}).",
        "no more than a reference": "The student exaggerates its teacher's confidence, but no more "
        "than a reference does ({where}).",
        "undecided": "Undecided: an interval includes both answers ({where}).",
        "less confident throughout": "The student does not exaggerate its teacher's confidence: it is "
        "less confident, but no more so where the teacher is unsure.",
        "no": "The student does not exaggerate its teacher's confidence.",
        "too few examples": "Too few examples for a verdict (fewer than "
        f"{FEWEST_FOR_A_VERDICT} in each part, or the teacher is equally confident on all of them).",
    }
    found = next(verdict for verdict in words if verdict in verdicts.values())
    where = ", ".join(name for name, verdict in verdicts.items() if verdict == found)
    sentence = words[found].format(where=where)
    if found == "yes" and not references:
        sentence += " No reference was given, and regression to the mean alone biases slopes."
    return found, sentence


def chance_warnings(split: SplitAudit) -> tuple[str, ...]:
    """Return a sentence for each network whose accuracy is not above chance.

    Its accuracy is above chance if the upper end of its Wilson interval is above the share of the most
    frequent class.
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
