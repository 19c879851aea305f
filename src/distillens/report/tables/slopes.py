"""The slopes of the deviation plots as numbers, one table a split."""

from __future__ import annotations

from distillens.report.backends.html import Safe, element, join, table
from distillens.report.sections import ranking
from distillens.report.sections.accuracy import swatch
from distillens.report.tables.text import estimate, listed, number, percent, slope
from distillens.results.training import StudyResult


def splits(result: StudyResult) -> list[str]:
    """Return the splits with deviations, test first, train second."""
    place = {"test": 0, "train": 1}
    found = dict.fromkeys(deviation.split for deviation in result.deviations)
    return sorted(found, key=lambda split: place.get(split, 2))


def names(result: StudyResult) -> list[str]:
    """Return the names of the students with deviations, in the order of the accuracy table."""
    found = dict.fromkeys(deviation.student for deviation in result.deviations)
    known = [row.name for row in ranking.ordered(result) if row.name in found]
    return known + [name for name in found if name not in known]


def slope_table(result: StudyResult, split: str, colours: dict[str, str]) -> Safe:
    """Return the slopes of a split, a row for each student and seed, with their intervals."""
    order = names(result)
    chosen = [deviation for deviation in result.deviations if deviation.split == split]
    chosen.sort(key=lambda deviation: (order.index(deviation.student), deviation.seed))
    heads = [
        "student",
        "seed",
        "slope, all",
        "low half",
        "high half",
        "underfit %",
        "same top %",
        "KL, nats",
        "only student",
        "only teacher",
    ]
    body = [
        [
            join(swatch(colours[deviation.student]), deviation.student),
            str(deviation.seed),
            slope(deviation.slope),
            slope(deviation.slope_low),
            slope(deviation.slope_high),
            estimate(deviation.underfit_share, 0, scale=100),
            percent(deviation.top_agreement, 1),
            number(deviation.kl),
            f"{deviation.right.only_student:,}",
            f"{deviation.right.only_teacher:,}",
        ]
        for deviation in chosen
    ]
    examples = sorted({deviation.examples for deviation in chosen})
    found = [
        value.interval
        for deviation in chosen
        for value in (deviation.slope, deviation.slope_low, deviation.slope_high)
        if value.interval is not None
    ]
    how = dict.fromkeys(f"{100 * interval.level:g} %, {interval.method}" for interval in found)
    caption = f"{split} split, {listed([f'{amount:,}' for amount in examples])} examples. "
    caption += f"In brackets: {'; '.join(how)}. " if how else "No slope has an interval. "
    caption += (
        "Halves: below and above the median of the teacher's log-odds. Underfit: share of the low "
        "half at which the student is less sure than the teacher. Same top: share with the same "
        "top class. KL(teacher ‖ student) at τ = 1. Only student, only teacher: examples that only "
        "one of them gets right."
    )
    if any(deviation.clipped for deviation in chosen):
        heads.append("clipped")
        for cells, deviation in zip(body, chosen, strict=True):
            cells.append(f"{deviation.clipped:,}")
        caption += " Clipped: probabilities of 0 or 1 that had to be clipped."
    reference = ranking.reference_name(result)
    if any(deviation.student == reference for deviation in chosen):
        caption += f" {reference} is the one-hot reference."
    return join(element("h3", f"Slopes, {split}"), table(heads, body, caption))
