"""From cells to the rows of the accuracy table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillens.measures import accuracy_estimate, paired_gain
from distillens.measures.statistics.intervals import LEVEL
from distillens.results.base import Estimate
from distillens.results.training import TEACHER, Cell, Row
from distillens.study.recipe import Recipe

Right = Callable[[int, int], NDArray[np.bool_]]
"""Returns for the student of a supervision (its place in the recipe) and a seed which test examples it
classifies correctly, (N,)."""


def rows(
    recipe: Recipe,
    teacher: Cell,
    students: Sequence[Sequence[Cell]],
    right: Right,
    level: float = LEVEL,
) -> tuple[Row, ...]:
    """Return the teacher's row and one for each supervision that has a network, in the recipe's order.

    ``level`` is that of all intervals, 0.95 = 95 %.

    Gains are against the first one-hot supervision, paired by seed and by test example, over the
    seeds that both have.
    """
    baseline = next((k for k, e in enumerate(recipe.supervisions) if e.is_baseline), None)
    found = [_row(TEACHER, "teacher", "teacher", [teacher], None, level)]
    for place, (entry, cells) in enumerate(zip(recipe.supervisions, students, strict=True)):
        if not cells:
            continue
        gain = None
        if baseline is not None and baseline != place:
            gain = _gain((place, cells), (baseline, students[baseline]), right, level)
        found.append(
            _row(
                place,
                entry.title,
                entry.kind,
                cells,
                gain,
                level,
                recipe.training_of(entry).learning_rate,
                _overridden(recipe, entry),
            )
        )
    return tuple(found)


def _gain(
    student: tuple[int, Sequence[Cell]],
    baseline: tuple[int, Sequence[Cell]],
    right: Right,
    level: float,
) -> Estimate | None:
    (place, cells), (other, others) = student, baseline
    known = {cell.seed: cell.test_accuracy for cell in others}
    paired = [cell for cell in cells if cell.seed in known]
    if not paired:
        return None
    differences_SN = [
        right(place, cell.seed).astype(float) - right(other, cell.seed) for cell in paired
    ]
    return paired_gain(
        [cell.test_accuracy for cell in paired],
        [known[cell.seed] for cell in paired],
        level,
        differences_N=np.mean(differences_SN, axis=0),
    )


def _overridden(recipe: Recipe, entry: Any) -> dict[str, Any]:
    """Return the keys of the student's training that the recipe itself overrides."""
    merged = recipe.training_of(entry).model_dump(mode="json")
    # A rate that tune selected is a result, not a part of the recipe.
    return {
        key: merged[key]
        for key in entry.training or {}
        if recipe.tune is None or key != "learning_rate"
    }


def _row(
    position: int,
    name: str,
    kind: str,
    cells: Sequence[Cell],
    gain: Estimate | None,
    level: float,
    learning_rate: float | None = None,
    training: dict[str, Any] | None = None,
) -> Row:
    accuracies = [cell.test_accuracy for cell in cells]
    return Row(
        position=position,
        name=name,
        kind=kind,
        seeds=tuple(cell.seed for cell in cells),
        accuracy=accuracy_estimate(accuracies, cells[0].test_count, level),
        deviation=statistics.stdev(accuracies) if len(cells) > 1 else None,
        gain=gain,
        train_accuracy=statistics.fmean(cell.train_accuracy for cell in cells),
        parameters=cells[0].parameters,
        seconds=statistics.fmean(cell.seconds for cell in cells),
        learning_rate=learning_rate,
        training=training or {},
    )
