"""Sentences on the supervision that validation selects, supported by intervals."""

from __future__ import annotations

from distillens.report.sections import ranking
from distillens.report.tables.accuracy import cells_of
from distillens.report.tables.text import estimate, listed, percent, plural
from distillens.results.base import Estimate
from distillens.results.training import Row, StudyResult, validation_means


def accuracy_summary(result: StudyResult) -> list[tuple[str, str]]:
    """Return (subject, sentences): the student chosen on validation, and its gain with its interval."""
    students = ranking.students(result)
    if not students:
        return []
    reference = ranking.reference_name(result)
    chosen = ranking.chosen(result)
    parts = [_first(result, chosen, students)]
    if chosen is None:
        parts += _beyond(students, reference, result, "above")
    else:
        if chosen.name != reference:
            parts.append(_gain(chosen, result, reference))
        rivals = [row.name for row in students if row is not chosen and _overlap(row, chosen)]
        if rivals:
            verb = "interval of {} overlaps" if len(rivals) == 1 else "intervals of {} overlap"
            parts.append(f"The {verb.format(listed(rivals))} with that of {chosen.name}.")
    parts += _beyond(students, reference, result, "below")
    if chosen is not None:
        parts += _teacher_gap(result, chosen)
    return [("Accuracy", " ".join(parts))]


def _first(result: StudyResult, chosen: Row | None, students: list[Row]) -> str:
    digits = ranking.accuracy_digits(result)
    if len(students) == 1:
        (only,) = students
        return (
            f"The only student, {only.name}, reaches a test accuracy of {_reached(only, digits)}."
        )
    if chosen is None:
        why = (
            f"{plural(len(result.open_cells), 'network')} not trained yet"
            if result.open_cells
            else "no validation examples, and test labels are not used for choosing"
        )
        accuracies = [row.accuracy.value for row in students]
        return (
            f"No student was chosen: the run has {why}. The mean test accuracies of "
            f"{len(students)} students lie between {percent(min(accuracies), digits)} and "
            f"{percent(max(accuracies), digits)} %."
        )
    mean = percent(validation_means(result)[chosen.position], digits)
    if chosen.name == ranking.reference_name(result):
        return (
            f"No supervision had a higher mean validation accuracy than {chosen.name} ({mean} %), "
            f"which reaches a test accuracy of {_reached(chosen, digits)}."
        )
    return (
        f"{chosen.name} has the highest mean validation accuracy of {len(students)} students "
        f"({mean} %); it reaches a test accuracy of {_reached(chosen, digits)}."
    )


def _reached(row: Row, digits: int) -> str:
    return f"{cells_of(row, digits)[2]} % (n = {plural(len(row.seeds), 'seed')})"


def _beyond(students: list[Row], reference: str, result: StudyResult, side: str) -> list[str]:
    """Return which students' gains have an interval on one side of 0."""
    found = [row for row in students if _side(row.gain, 0.0) == side]
    if not found:
        return []
    told = [f"{row.name} ({_points(row.gain, result)})" for row in found]
    word = "Better" if side == "above" else "Worse"
    return [f"{word} than {reference}, with an interval {side} 0: {listed(told)}."]


def _gain(row: Row, result: StudyResult, reference: str) -> str:
    if row.gain is None:
        return f"It was not compared with {reference}."
    told = f"Its gain over {reference} is {_points(row.gain, result)}"
    side = _side(row.gain, 0.0)
    if side is None:
        return f"{told}; no interval is defined, so whether it holds for other seeds is open."
    over = "" if len(row.seeds) > 1 else " (over test examples only, since there is one seed)"
    if side == "includes":
        return (
            f"{told}, an interval{over} that includes 0: these results do not show that it helps."
        )
    return f"{told}, an interval{over} that excludes 0."


def _points(gain: Estimate | None, result: StudyResult) -> str:
    digits = ranking.accuracy_digits(result)
    return f"{estimate(gain, digits, scale=100, signed=True)} percentage points"


def _side(value: Estimate | None, mark: float) -> str | None:
    """Return where an interval lies against a mark; None where there is none to tell."""
    if value is None or value.interval is None:
        return None
    if value.interval.low > mark:
        return "above"
    return "below" if value.interval.high < mark else "includes"


def _overlap(one: Row, other: Row) -> bool:
    first, second = one.accuracy.interval, other.accuracy.interval
    if first is None or second is None:
        return False
    return first.low <= second.high and second.low <= first.high


def _teacher_gap(result: StudyResult, chosen: Row) -> list[str]:
    teacher = ranking.teacher(result)
    if teacher is None:
        return []
    digits = ranking.accuracy_digits(result)
    gap = teacher.accuracy.value - chosen.accuracy.value
    way = "below" if gap >= 0 else "above"
    return [
        f"The mean test accuracy of {chosen.name} lies {percent(abs(gap), digits)} percentage points "
        f"{way} the teacher's {percent(teacher.accuracy.value, digits)} %."
    ]
