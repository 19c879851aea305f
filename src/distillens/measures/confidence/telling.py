"""The departures that tell most: where the student moved the most probability. Shapes: N examples."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distillens.measures.confidence.per_example import PerExample
from distillens.results.confidence import TellingExample

_OUTCOMES: tuple[tuple[int, Literal["gained", "lost", "both wrong"]], ...] = (
    (1, "gained"),
    (2, "lost"),
    (3, "both wrong"),
)
_LONGEST = 200


def telling_examples(
    found: PerExample,
    outcome_N: NDArray,
    mislabelled_N: NDArray[np.bool_] | None,
    index_N: NDArray | None,
    inputs: NDArray | None,
    each: int,
) -> tuple[TellingExample, ...]:
    """Return up to ``each`` examples of each outcome, those with the most moved probability first."""
    teacher, student = found.teacher, found.student
    moved_N = (teacher.confidence_N - student.on_other_N) + (
        student.confidence_N - teacher.on_other_N
    )
    chosen = []
    for code, outcome in _OUTCOMES:
        rows = np.flatnonzero(outcome_N == code)
        # Ties go by row, so that the list is the same each time.
        rows = rows[np.argsort(-moved_N[rows], kind="stable")[:each]]
        chosen += [(int(row), outcome) for row in rows]
    chosen.sort(key=lambda pair: (-moved_N[pair[0]], pair[0]))
    return tuple(
        TellingExample(
            row=row,
            index=None if index_N is None else _plain(index_N[row]),
            outcome=outcome,
            label=int(found.labels_N[row]),
            teacher_class=int(teacher.top_N[row]),
            student_class=int(student.top_N[row]),
            teacher_on_its_class=float(teacher.confidence_N[row]),
            teacher_on_student_class=float(teacher.on_other_N[row]),
            student_on_its_class=float(student.confidence_N[row]),
            student_on_teacher_class=float(student.on_other_N[row]),
            moved=float(moved_N[row]),
            mislabelled=None if mislabelled_N is None else bool(mislabelled_N[row]),
            text=None if inputs is None else _text(inputs[row]),
        )
        for row, outcome in chosen
    )


def _plain(value: object) -> int | str:
    return int(value) if isinstance(value, (int, np.integer)) else str(value)


def _text(value: object) -> str | None:
    """Return an input that can be read as it is; pictures and vectors cannot."""
    if np.ndim(value) > 0:  # pyright: ignore[reportArgumentType]
        return None
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
