"""Which supervision did best, in sentences that claim no more than the intervals allow."""

from __future__ import annotations

from distillens.report import ranking
from distillens.report.table import cells_of
from distillens.report.text import estimate, listed, percent, plural
from distillens.results import Estimate, Row, StudyResult


def accuracy_summary(result: StudyResult) -> list[tuple[str, str]]:
    """Return (subject, sentences): the best supervision, and its interval against no KD."""
    students = ranking.students(result)
    best = ranking.best(result)
    if not best:
        return []
    reference = ranking.reference_name(result)
    parts = [_first(result, best, len(students))]
    if len(best) == 1 and best[0].name != reference:
        parts.append(_gain(best[0], result, reference))
    if len(best) == 1:
        rivals = [row.name for row in students if row not in best and _overlap(row, best[0])]
        if rivals:
            verb = "interval of {} overlaps" if len(rivals) == 1 else "intervals of {} overlap"
            parts.append(f"The {verb.format(listed(rivals))} with that of {best[0].name}.")
    if len(students) > 2:
        parts.append(
            f"The best of {len(students)} was picked by its test accuracy, "
            "which flatters it a little."
        )
    harmed = [row for row in students if _side(row.gain, 0.0) == "below"]
    if harmed:
        told = [f"{row.name} ({_points(row.gain, result)})" for row in harmed]
        parts.append(f"Worse than {reference}, with an interval below 0: {listed(told)}.")
    parts += _teacher_gap(result, best[0])
    return [("Accuracy", " ".join(parts))]


def _first(result: StudyResult, best: list[Row], students: int) -> str:
    digits = ranking.accuracy_digits(result)
    told = f"{cells_of(best[0], digits)[2]} % (n = {plural(len(best[0].seeds), 'seed')})"
    if len(best) > 1:
        return (
            f"{listed([row.name for row in best])} share the highest mean test accuracy at the "
            f"digits shown: {percent(best[0].accuracy.value, digits)} %."
        )
    if students == 1:
        return f"The only student, {best[0].name}, reaches a test accuracy of {told}."
    if best[0].name == ranking.reference_name(result):
        return f"No supervision had a higher mean test accuracy than {best[0].name}: {told}."
    return f"{best[0].name} has the highest mean test accuracy of {students} students: {told}."


def _gain(row: Row, result: StudyResult, reference: str) -> str:
    if row.gain is None:
        return f"It was not compared with {reference}."
    told = f"Its gain over {reference} is {_points(row.gain, result)}"
    side = _side(row.gain, 0.0)
    if side is None:
        return f"{told}; no interval is defined, so whether it holds for other seeds is open."
    if side == "includes":
        return f"{told}, an interval that includes 0: these seeds do not show that it helps."
    return f"{told}, an interval that excludes 0."


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


def _teacher_gap(result: StudyResult, best: Row) -> list[str]:
    teacher = next((row for row in result.rows if row.kind == ranking.TEACHER), None)
    if teacher is None:
        return []
    digits = ranking.accuracy_digits(result)
    gap = teacher.accuracy.value - best.accuracy.value
    way = "below" if gap >= 0 else "above"
    return [
        f"The best mean lies {percent(abs(gap), digits)} percentage points {way} the teacher's "
        f"{percent(teacher.accuracy.value, digits)} %."
    ]
