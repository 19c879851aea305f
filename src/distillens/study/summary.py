"""From cells to the rows of the accuracy table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from distillens.measures import accuracy_estimate, paired_gain
from distillens.results import Cell, Row
from distillens.study.recipe import Recipe


def rows(recipe: Recipe, teacher: Cell, students: Sequence[Sequence[Cell]]) -> tuple[Row, ...]:
    """Return the teacher's row and one for each supervision that has a network, in the recipe's order.

    Gains are against the first one-hot supervision, paired by seed, over the seeds that both have.
    """
    baseline = next(
        (
            cells
            for entry, cells in zip(recipe.supervisions, students, strict=True)
            if entry.kind == "one-hot"
        ),
        None,
    )
    found = [_row("teacher", "teacher", [teacher], None)]
    for entry, cells in zip(recipe.supervisions, students, strict=True):
        if not cells:
            continue
        reference = baseline if cells is not baseline else None
        found.append(_row(entry.title, entry.kind, cells, reference))
    return tuple(found)


def _row(name: str, kind: str, cells: Sequence[Cell], baseline: Sequence[Cell] | None) -> Row:
    accuracies = [cell.test_accuracy for cell in cells]
    gain = None
    if baseline is not None:
        known = {cell.seed: cell.test_accuracy for cell in baseline}
        paired = [cell for cell in cells if cell.seed in known]
        if paired:
            gain = paired_gain(
                [cell.test_accuracy for cell in paired], [known[cell.seed] for cell in paired]
            )
    return Row(
        name=name,
        kind=kind,
        seeds=tuple(cell.seed for cell in cells),
        accuracy=accuracy_estimate(accuracies, cells[0].test_count),
        deviation=statistics.stdev(accuracies) if len(cells) > 1 else None,
        gain=gain,
        train_accuracy=statistics.fmean(cell.train_accuracy for cell in cells),
        parameters=cells[0].parameters,
        seconds=statistics.fmean(cell.seconds for cell in cells),
    )
