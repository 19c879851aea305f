"""Roles of rows: the teacher, the reference, and the student that validation selects."""

from __future__ import annotations

from distillens.report.tables.text import fixed
from distillens.results.training import Row, StudyResult, validation_means

TEACHER = "teacher"
ONE_HOT = "one-hot"


def accuracy_digits(result: StudyResult) -> int:
    """Return the decimals of percentages: 2 for a large test split, or where 1 would hide a sign.

    An interval of [+0.0, +3.7] would not show whether it excludes 0.
    """
    gains = [row.gain.interval for row in result.rows if row.gain is not None]
    bounds = [bound for gain in gains if gain is not None for bound in (gain.low, gain.high)]
    hidden = any(0 < abs(bound) < 0.0005 for bound in bounds)
    return 2 if result.test_examples >= 10_000 or hidden else 1


def ordered(result: StudyResult) -> list[Row]:
    """Return the rows with the teacher first, the one-hot student next, the others as they came."""
    place = {TEACHER: 0, ONE_HOT: 1}
    return sorted(result.rows, key=lambda row: place.get(row.kind, 2))


def students(result: StudyResult) -> list[Row]:
    """Return the rows of students, the one-hot student first."""
    return [row for row in ordered(result) if row.kind != TEACHER]


def teacher(result: StudyResult) -> Row | None:
    """Return the row of the teacher; None if no network is trained yet."""
    return next((row for row in result.rows if row.kind == TEACHER), None)


def labels_alone(result: StudyResult) -> Row | None:
    """Return the row of the student trained on labels alone; None if there is none."""
    return next((row for row in result.rows if row.kind == ONE_HOT), None)


def reference_name(result: StudyResult) -> str:
    """Return the name of the one-hot student in this run, which gains are counted from."""
    row = labels_alone(result)
    return "no KD" if row is None else row.name


def chosen(result: StudyResult) -> Row | None:
    """Return the student with the highest mean validation accuracy; of equals the recipe's first.

    There is none where students have no validation accuracy, and while networks are not trained yet:
    test accuracies are not for choosing.
    """
    means = {} if result.open_cells else validation_means(result)
    if not means:
        return None
    position = max(means, key=means.__getitem__)
    return next(row for row in result.rows if row.position == position)


def level(result: StudyResult) -> str:
    """Return "95 % interval" for the level that the rows' intervals share, else "interval"."""
    intervals = [row.accuracy.interval for row in result.rows]
    levels = {interval.level for interval in intervals if interval is not None}
    if len(levels) != 1:
        return "interval"
    shared = 100 * levels.pop()
    return f"{fixed(shared, 0 if shared == round(shared) else 1)} % interval"


def methods(result: StudyResult) -> list[str]:
    """Return the words for how the accuracy and gain intervals were made, each once, in order."""
    found: dict[str, None] = {}
    for row in ordered(result):
        for value in (row.accuracy, row.gain):
            if value is not None and value.interval is not None:
                found[value.interval.method] = None
    return list(found)
