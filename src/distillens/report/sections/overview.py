"""The first screen of the report: the verdict, one chart, what to do next, and where networks differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from distillens.report.contents import Contents
from distillens.report.next_steps import NextStep, next_steps, seeds_sentence
from distillens.report.sections import ranking
from distillens.report.sections.confidence import first_seeds
from distillens.report.sections.examples import OUTCOMES, Card, card
from distillens.report.tables.text import bracket, count, estimate, fixed, number, percent, plural
from distillens.report.verdict import Judgement, Verdict
from distillens.results.base import Interval
from distillens.results.training import NetworkCost, Row, StudyResult, validation_means

_SHOWN_DEPARTURES = 6

_STYLES = {
    Verdict.HELPS: "good",
    Verdict.HURTS: "bad",
    Verdict.PROBABLY_HELPS: "likely",
    Verdict.DOES_NOT_MATTER: "neutral",
    Verdict.CANNOT_BE_TOLD: "open",
}


@dataclass(frozen=True)
class Fact:
    """A number of the overview with its name and what it is compared with."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Dot:
    """One seed of a supervision in the chart."""

    x: float
    words: str


@dataclass(frozen=True)
class ChartRow:
    """A supervision in the chart; positions are in percent of the width."""

    name: str
    mean: float | None
    interval: tuple[float, float] | None
    dots: tuple[Dot, ...]
    words: str
    """Name, mean, interval and number of seeds, as the text alternative."""


@dataclass(frozen=True)
class Chart:
    """Test accuracy of every supervision: mean, interval and one dot for each seed."""

    rows: tuple[ChartRow, ...]
    guides: tuple[tuple[float, str], ...]
    """Position and name of the lines for the teacher and for labels alone."""
    ticks: tuple[tuple[float, str], ...]
    message: str
    """What the chart shows, as a sentence."""


def overview_part(contents: Contents, found: Judgement) -> dict[str, Any]:
    """Return what the overview's template shows."""
    result = contents.result
    return {
        "verdict": found.verdict.value,
        "style": _STYLES[found.verdict],
        "sentence": verdict_sentence(found, result),
        "remarks": remarks(found, result),
        "facts": facts(found, result),
        "chart": chart(result, found),
        "steps": [] if contents.run is None else _steps(contents, found),
        "differing": differing(contents, found),
        "margin": fixed(100 * found.margin, 1),
    }


def verdict_sentence(found: Judgement, result: StudyResult) -> str:
    """Return the verdict as a sentence that names the supervision and the gain with its interval."""
    row, gain = found.row, found.gain
    if row is None:
        return f"No supervision is named, because {found.reason}."
    if gain is None:
        return f"The gain of {row.name} is not known, because {found.reason}."
    digits = ranking.accuracy_digits(result)
    mean = 100 * gain.value
    size = fixed(abs(mean), digits)
    span = "" if gain.interval is None else f" ({_span(gain.interval, digits)})"
    if found.verdict is Verdict.HELPS:
        return f"{row.name} gains {size} points over labels alone{span}."
    if found.verdict is Verdict.HURTS:
        return f"{row.name} loses {size} points against labels alone{span}."
    change = f"{fixed(mean, digits, signed=True)} points{span}"
    if found.verdict is Verdict.DOES_NOT_MATTER:
        return (
            f"{row.name} differs from labels alone by {change}, which is within "
            f"±{fixed(100 * found.margin, 1)} points."
        )
    if found.reason:
        return f"{row.name} differs from labels alone by {change}, but {found.reason}."
    return f"{row.name} differs from labels alone by {change}, an interval that includes 0."


def _span(interval: Interval, digits: int) -> str:
    low, high = (fixed(100 * end, digits, signed=True) for end in (interval.low, interval.high))
    return f"{100 * interval.level:g} % interval {low} to {high}"


def remarks(found: Judgement, result: StudyResult) -> list[str]:
    """Return sentences that qualify the verdict."""
    sentences = [seeds_sentence(found)] if found.open else []
    means = validation_means(result)
    if found.row is not None and found.labels is not None and means:
        ours, labels = means[found.row.position], means[found.labels.position]
        if labels >= ours:
            digits = ranking.accuracy_digits(result)
            sentences.append(
                f"On validation examples, labels alone are at least as accurate as {found.row.name}: "
                f"{percent(labels, digits)} % against {percent(ours, digits)} %."
            )
    return [sentence for sentence in sentences if sentence]


def facts(found: Judgement, result: StudyResult) -> list[Fact]:
    """Return accuracy, gain, distance to the teacher and cost ratios of the judged supervision."""
    row = found.row
    if row is None:
        return []
    digits = ranking.accuracy_digits(result)
    shown = [
        Fact(
            "Test accuracy",
            f"{percent(row.accuracy.value, digits)} %",
            f"{bracket(row.accuracy.interval, digits, 100)}, {plural(len(row.seeds), 'seed')}",
        )
    ]
    if row.gain is not None:
        value, *rest = estimate(row.gain, digits, 100, signed=True).split(" ", 1)
        shown.append(Fact("Gain over labels alone", f"{value} points", " ".join(rest)))
    teacher = ranking.teacher(result)
    if teacher is not None:
        gap = row.accuracy.value - teacher.accuracy.value
        side = "below" if gap < 0 else "above"
        shown.append(
            Fact(
                "Distance to the teacher",
                f"{percent(abs(gap), digits)} points {side}",
                f"teacher: {percent(teacher.accuracy.value, digits)} %",
            )
        )
    return shown + _ratios(result.costs)


def _ratios(costs: Sequence[NetworkCost]) -> list[Fact]:
    by_network = {one.network: one.cost for one in costs}
    teacher, student = by_network.get("teacher"), by_network.get("student")
    if teacher is None or student is None:
        return []
    counts = (
        ("Parameters", teacher.parameters, student.parameters),
        ("Multiply-adds", teacher.multiply_adds, student.multiply_adds),
    )
    shown = [
        Fact(name, _ratio(before / after), f"{count(after)} instead of {count(before)}")
        for name, before, after in counts
        if before and after
    ]
    before, after = teacher.latency_ms, student.latency_ms
    if before > 0 and after > 0:
        detail = f"{number(after, 2)} ms instead of {number(before, 2)} ms"
        shown.append(Fact("Latency of one example", _ratio(before / after), detail))
    return shown


def _ratio(value: float) -> str:
    return f"{number(value, 2)}× less" if value >= 1 else f"{number(1 / value, 2)}× more"


def chart(result: StudyResult, found: Judgement) -> Chart | None:
    """Return the chart of test accuracies; None if there are none."""
    rows = ranking.ordered(result)
    cells = [cell for cell in result.cells if math.isfinite(cell.test_accuracy)]
    values = [cell.test_accuracy for cell in cells]
    for row in rows:
        interval = row.accuracy.interval
        values += [row.accuracy.value]
        values += [] if interval is None else [interval.low, interval.high]
    known = [100 * min(1.0, max(0.0, value)) for value in values if math.isfinite(value)]
    if not known:
        return None
    step = _step(max(known) - min(known))
    low = step * math.floor(min(known) / step)
    high = max(step * math.ceil(max(known) / step), low + step)

    def place(share: float) -> float:
        inside = (100 * min(1.0, max(0.0, share)) - low) / (high - low)
        return round(100 * inside, 2)

    digits = ranking.accuracy_digits(result)
    charted = []
    for row in rows:
        interval = row.accuracy.interval
        mean = row.accuracy.value
        ends = None
        if interval is not None and math.isfinite(interval.low + interval.high):
            ends = (place(interval.low), place(interval.high))
        dots = tuple(
            Dot(
                place(cell.test_accuracy),
                f"{row.name}, seed {cell.seed}: {percent(cell.test_accuracy, digits)} %",
            )
            for cell in cells
            if cell.position == row.position
        )
        words = (
            f"{row.name}: {percent(mean, digits)} % {bracket(interval, digits, 100)}, "
            f"{plural(len(row.seeds), 'seed')}"
        )
        centre = place(mean) if math.isfinite(mean) else None
        charted.append(ChartRow(row.name, centre, ends, dots, words))
    guides = tuple(
        (place(row.accuracy.value), name)
        for row, name in ((ranking.teacher(result), "teacher"), (found.labels, "labels alone"))
        if row is not None and math.isfinite(row.accuracy.value)
    )
    ticks = tuple(
        (place(value / 100), f"{value:g}")
        for value in (low + step * index for index in range(round((high - low) / step) + 1))
    )
    return Chart(tuple(charted), guides, ticks, _message(rows, digits))


def _step(span: float) -> float:
    """Return a distance of round ticks, of which at most eight cover the span."""
    for step in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        if span / step <= 6:
            return step
    return 20.0


def _message(rows: Sequence[Row], digits: int) -> str:
    students = [row for row in rows if row.kind != ranking.TEACHER]
    known = [row for row in students or rows if math.isfinite(row.accuracy.value)]
    if not known:
        return "No test accuracy is finite."
    best = max(known, key=lambda row: row.accuracy.value)
    worst = min(known, key=lambda row: row.accuracy.value)
    if best is worst:
        return f"{best.name} reaches {percent(best.accuracy.value, digits)} % on test examples."
    return (
        f"Mean test accuracies of the students lie between {percent(worst.accuracy.value, digits)} % "
        f"({worst.name}) and {percent(best.accuracy.value, digits)} % ({best.name})."
    )


def _steps(contents: Contents, found: Judgement) -> list[NextStep]:
    run = contents.run
    if run is None:
        return []
    newest = run.files.stages()[-1]
    return next_steps(
        contents.result,
        found,
        folder=run.files.folder,
        recipe=newest.recipe,
        values=run.recipe,
        analyses=[record.content.analysis for record in run.records()],
        unfinished_addition=not newest.results.is_file(),
    )


def differing(contents: Contents, found: Judgement) -> list[Card]:
    """Return the test examples on which most probability moved, from each outcome in turn.

    They are those of the judged supervision and its first seed.
    """
    students = first_seeds(contents.confidence, contents.points)
    name = found.row.name if found.row is not None else next(iter(students), "")
    if name not in students:
        return []
    student, _ = students[name]
    splits = {split.split: split for split in student.audit.splits}
    split = splits.get("test", next(iter(splits.values())))
    by_outcome = [
        [one for one in split.ledger.telling if one.outcome == outcome] for outcome in OUTCOMES
    ]
    turns = [one for turn in zip_longest(*by_outcome) for one in turn if one is not None]
    return [card(one, name, split.split, contents) for one in turns[:_SHOWN_DEPARTURES]]
