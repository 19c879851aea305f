"""The accuracy section: the rows of the table, and the places of the marks in its strip chart."""

from __future__ import annotations

import math
from typing import Any

from distillens.report.sections import ranking
from distillens.report.tables.accuracy import caption, cells_of, headings
from distillens.report.tables.costs import HEADINGS, cost_caption, cost_cells
from distillens.report.tables.grid import Grid
from distillens.report.tables.text import fixed
from distillens.results.training import StudyResult

STRIP_WIDTH = 180


def accuracy_part(result: StudyResult) -> dict[str, Any]:
    """Return what the section's template shows; its rows are empty if there are no accuracies."""
    digits = ranking.accuracy_digits(result)
    low, high = _scale(result)

    def place(share: float) -> str | None:
        """Return the horizontal place of a share in the strip chart; None if it is not finite."""
        if not math.isfinite(share):
            return None
        inside = min(1.0, max(0.0, (100 * share - low) / (high - low)))
        return f"{8 + inside * (STRIP_WIDTH - 16):.1f}"

    heads = headings(result)
    heads.insert(4, f"test %, from {fixed(low, 0)} to {fixed(high, 0)}")
    return {
        "headings": heads,
        "rows": [(row, cells_of(row, digits)) for row in ranking.ordered(result)],
        "chosen": ranking.chosen(result),
        "caption": caption(result),
        "costs": result.costs
        and Grid(list(HEADINGS), [cost_cells(row) for row in result.costs], cost_caption(result)),
        "digits": digits,
        "place": place,
        "width": STRIP_WIDTH,
    }


def _scale(result: StudyResult) -> tuple[float, float]:
    """Return the ends of the strips' common scale in percent, whole numbers around all values."""
    values = [row.accuracy.value for row in result.rows]
    values += [cell.test_accuracy for cell in result.cells]
    for row in result.rows:
        if row.accuracy.interval is not None:
            values += [row.accuracy.interval.low, row.accuracy.interval.high]
    inside = [100 * min(1.0, max(0.0, value)) for value in values if math.isfinite(value)]
    if not inside:
        return 0.0, 100.0
    low, high = float(math.floor(min(inside))), float(math.ceil(max(inside)))
    return (low, high) if high > low else (low - 1, high + 1)
