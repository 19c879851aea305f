"""The gallery: examples on which student and teacher predict different classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillens.errors import RunError
from distillens.report.contents import Contents
from distillens.report.figures.points import Points, column
from distillens.report.sections.confidence import first_seeds
from distillens.report.tables.grid import Grid
from distillens.report.tables.text import fixed
from distillens.report.verdict import Judgement
from distillens.results.confidence import InformativeDeparture, StudentAudit

MOST_EXAMPLES = 200
"""Largest number of examples in the gallery."""

MOST_CLASSES = 20
"""Largest number of classes for which the whole confusion matrix is shown."""

_PAIRS = 15

OUTCOMES = {
    "gained": "The student corrects its teacher",
    "lost": "The student makes a new error",
    "both wrong": "Both are wrong",
}


@dataclass(frozen=True)
class Card:
    """An example on which student and teacher predict different classes."""

    supervision: str
    split: str
    outcome: str
    student: str
    teacher: str
    label: str
    mislabelled: bool
    where: str
    text: str | None
    picture: str | None
    """The input as the data URL of a PNG."""
    place: tuple[float, float] | None
    """Its point in the confidence plot, written as the plot writes it."""


def examples_part(contents: Contents, found: Judgement) -> dict[str, Any]:
    """Return what the section's template shows."""
    students = first_seeds(contents.confidence, contents.points)
    parts = sum(len(student.audit.splits) for student, _ in students.values())
    quota = max(1, MOST_EXAMPLES // max(1, len(OUTCOMES) * parts))
    listed = []
    for student, points in students.values():
        for split in student.audit.splits:
            for outcome in OUTCOMES:
                chosen = [one for one in split.ledger.telling if one.outcome == outcome][:quota]
                arrays = points.get(split.split)
                listed += [(one.moved, student.student, split.split, one, arrays) for one in chosen]
    listed.sort(key=lambda entry: -entry[0])
    cards = [
        card(one, name, split, contents, points)
        for _, name, split, one, points in listed[:MOST_EXAMPLES]
    ]
    chosen = students.get(found.row.name) if found.row is not None else None
    if chosen is None and students:
        chosen = next(iter(students.values()))
    return {
        "cards": cards,
        "quota": quota,
        "choices": {
            "supervision": list(dict.fromkeys(one.supervision for one in cards)),
            "split": list(dict.fromkeys(one.split for one in cards)),
            "outcome": [
                name for name in OUTCOMES.values() if any(name == c.outcome for c in cards)
            ],
            "label": sorted({one.label for one in cards}, key=_natural),
        },
        "mislabelled": any(one.mislabelled for one in cards),
        "confusion": None if chosen is None else confusion_grid(*chosen, contents),
    }


def card(
    one: InformativeDeparture,
    supervision: str,
    split: str,
    contents: Contents,
    points: Points | None = None,
) -> Card:
    """Return a departure with the names of its classes, and its input if the record holds it."""

    def predicted(label: int, probability: float) -> str:
        return f"{class_name(contents, label)}, {fixed(100 * probability, 0)} %"

    where = f"{split}, row {one.row}" if one.index is None else f"{split}, index {one.index}"
    place = None
    if points is not None:
        x_N, y_N = (column(points, key, f"points of {supervision}, {split}") for key in ("x", "y"))
        if 0 <= one.row < min(len(x_N), len(y_N)):
            place = (float(x_N[one.row]), float(y_N[one.row]))
    return Card(
        supervision,
        split,
        OUTCOMES[one.outcome],
        predicted(one.student_class, one.student_on_its_class),
        predicted(one.teacher_class, one.teacher_on_its_class),
        class_name(contents, one.label),
        bool(one.mislabelled),
        where,
        one.text or contents.sentences.get((split, one.row)),
        contents.pictures.get((split, one.row)),
        place,
    )


def class_name(contents: Contents, label: int) -> str:
    """Return the name of a class, or its number where the run has no names."""
    names = contents.class_names
    return names[label] if 0 <= label < len(names) else f"class {label}"


def confusion_grid(
    student: StudentAudit, points: Mapping[str, Points], contents: Contents
) -> Grid | None:
    """Return how often the student predicts a class where its teacher predicts another.

    The matrix is complete for at most `MOST_CLASSES` classes; for more it lists the most frequent
    pairs of different classes. None if the record does not hold predicted classes.
    """
    split = "test" if "test" in points else next(iter(points), "")
    arrays = points.get(split, {})
    if not {"teacher_class", "student_class"} <= arrays.keys():
        return None
    where = f"points of {student.student}, {split}"
    teacher_N, student_N = (
        column(arrays, key, where).astype(np.int64) for key in ("teacher_class", "student_class")
    )
    classes = student.audit.classes
    both = np.concatenate([teacher_N, student_N])
    if len(teacher_N) != len(student_N) or ((both < 0) | (both >= classes)).any():
        raise RunError(
            f"{where}: the classes do not fit {classes} classes and {len(teacher_N)} examples; "
            "measure the run again"
        )
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (teacher_N, student_N), 1)
    names = [class_name(contents, label) for label in range(classes)]
    about = f"{student.student}, {split} split, {len(teacher_N):,} examples."
    if classes <= MOST_CLASSES:
        rows = [
            [name, *(f"{n:,}" if n else "·" for n in row)]
            for name, row in zip(names, counts, strict=True)
        ]
        caption = f"Rows: the teacher's class. Columns: the student's class. {about}"
        return Grid(["teacher \\ student", *names], rows, caption)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_PAIRS]
    pairs = [np.unravel_index(place, counts.shape) for place in order if counts.flat[place]]
    rows = [[names[t], names[s], f"{counts[t, s]:,}"] for t, s in pairs]
    caption = f"The {len(rows)} most frequent pairs of different classes. {about}"
    return Grid(["teacher's class", "student's class", "examples"], rows, caption)


def _natural(name: str) -> tuple[int, str]:
    """Order numbers by their value and before other names."""
    return (int(name), "") if name.isdecimal() else (1 << 62, name)
