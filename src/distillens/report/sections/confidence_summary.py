"""Whether students exaggerate their teacher's confidence and what departures bring, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from distillens.report.tables.text import estimate, fixed, plural, slope
from distillens.results.base import Estimate
from distillens.results.confidence import Confidence, SplitAudit

_LEADS = {
    "yes": "Yes",
    "no more than a reference": "No more than a reference",
    "undecided": "Undecided",
    "less confident throughout": "No, but less confident throughout",
    "no": "No",
    "too few examples": "Too few examples",
    "": "The verdict differs between seeds",
}


def confidence_summary(confidence: Confidence | None) -> list[tuple[str, str]]:
    """Return the verdicts on the test split, and the net gain of departing from the teacher."""
    found: dict[str, list[SplitAudit]] = {}
    for student in confidence.students if confidence is not None else ():
        for split in student.audit.splits:
            if split.split == "test":
                found.setdefault(student.student, []).append(split)
    if not found:
        return []
    by_verdict: dict[str, list[str]] = {}
    gains = []
    for name, splits in found.items():
        verdicts = {split.exaggeration.verdict for split in splits}
        verdict = verdicts.pop() if len(verdicts) == 1 else ""
        slopes = [split.exaggeration.slope_low.ordinary for split in splits]
        by_verdict.setdefault(verdict, []).append(f"{name} (low slope {_over_seeds(slopes)})")
        gain = [split.ledger.all.net_gain for split in splits]
        gains.append(f"{name} {_over_seeds(gain, signed=True)}")
    answers = [
        f"{lead}: {'; '.join(by_verdict[verdict])}."
        for verdict, lead in _LEADS.items()
        if verdict in by_verdict
    ]
    return [
        ("Exaggerated confidence on test", " ".join(answers)),
        (
            "Net gain over the teacher on test",
            f"{'; '.join(gains)} (accuracy points, 95 % intervals over examples).",
        ),
    ]


def _over_seeds(values: Sequence[Estimate], signed: bool = False) -> str:
    """Write one value with its interval, or the mean and the range over several seeds."""
    if len(values) == 1:
        return estimate(values[0], 2, signed=True) if signed else slope(values[0])
    numbers = [one.value for one in values]
    low, high = fixed(min(numbers), 2, signed), fixed(max(numbers), 2, signed)
    mean = fixed(fmean(numbers), 2, signed)
    return f"{mean}, mean of {plural(len(numbers), 'seed')} from {low} to {high}"
