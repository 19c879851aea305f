"""The findings of the sections of the report, as sentences for their headings."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from distillens.report.contents import Contents
from distillens.report.figures.complexity import MEASURES, measured, series, target_sets
from distillens.report.sections import ranking
from distillens.report.tables.text import fixed, percent, plural
from distillens.report.verdict import Judgement
from distillens.results.complexity import ComplexityCurves
from distillens.results.confidence import SplitAudit

_ANSWERS = {
    "yes": "Yes.",
    "no more than a reference": "Not more than a student that never saw the teacher.",
    "undecided": "This cannot be told from these examples.",
    "less confident throughout": "No: it is more cautious everywhere.",
    "no": "No.",
    "too few examples": "There are too few examples.",
}


def findings(contents: Contents, found: Judgement) -> dict[str, str]:
    """Return a sentence for each section, by the section's name; empty where there is no finding."""
    return {
        "accuracy": _accuracy(contents),
        "examples": _departures(contents, found),
        "confidence": _exaggeration(contents, found),
        "complexity": _complexity(contents.complexity),
    }


def _accuracy(contents: Contents) -> str:
    result = contents.result
    teacher = ranking.teacher(result)
    chosen = ranking.chosen(result)
    if chosen is None or teacher is None:
        return ""
    digits = ranking.accuracy_digits(result)
    gap = 100 * (chosen.accuracy.value - teacher.accuracy.value)
    side = "less" if gap < 0 else "more"
    return (
        f"{chosen.name}, which validation selects, is {fixed(abs(gap), digits)} points {side} accurate "
        f"than its teacher ({percent(teacher.accuracy.value, digits)} %)"
    )


def _splits(
    contents: Contents, found: Judgement, split: str = "test"
) -> tuple[str, list[SplitAudit]]:
    """Return the judged supervision, or the first one, and the audits of its seeds on a split."""
    students = () if contents.confidence is None else contents.confidence.students
    name = found.row.name if found.row is not None else next((one.student for one in students), "")
    audits = [
        part
        for one in students
        if one.student == name
        for part in one.audit.splits
        if part.split == split
    ]
    return name, audits


def _departures(contents: Contents, found: Judgement) -> str:
    name, audits = _splits(contents, found)
    if not audits:
        return ""
    gained = fmean(one.ledger.all.gained for one in audits)
    lost = fmean(one.ledger.all.lost for one in audits)
    mean = f", mean of {plural(len(audits), 'seed')}" if len(audits) > 1 else ""
    digits = 0 if len(audits) == 1 else 1
    return (
        f"{name} corrects {fixed(gained, digits)} errors of its teacher and makes {fixed(lost, digits)} "
        f"new ones on {plural(audits[0].examples, 'test example')}{mean}"
    )


def _exaggeration(contents: Contents, found: Judgement) -> str:
    name, audits = _splits(contents, found)
    if not audits:
        return ""
    verdicts = {one.exaggeration.verdict for one in audits}
    answer = _ANSWERS[verdicts.pop()] if len(verdicts) == 1 else "The answer differs between seeds."
    return f"Does {name} exaggerate its teacher's confidence? {answer}"


def _complexity(curves: Sequence[ComplexityCurves]) -> str:
    for one in curves[:1]:
        measure = next((each for each in MEASURES[:2] if measured(one, each)), None)
        if measure is None or not {"online teacher", "final teacher"} <= set(target_sets(one)):
            continue
        online = dict(series(one, "online teacher", measure))
        final = dict(series(one, "final teacher", measure))
        # At the last checkpoint both are the same network, so its epoch decides nothing.
        epochs = sorted(
            epoch for epoch in online.keys() & final.keys() if online[epoch] != final[epoch]
        )
        if not epochs:
            continue
        below = [epoch for epoch in epochs if online[epoch] < final[epoch]]
        if len(below) == len(epochs):
            return (
                "Online targets are less complex than the final teacher's at every measured epoch"
            )
        if not below:
            return "Online targets are never less complex than the final teacher's"
        return (
            f"Online targets are less complex than the final teacher's at {len(below)} of "
            f"{plural(len(epochs), 'measured epoch')}"
        )
    return ""
