"""Sentences on which targets were easy for the student, early and late in training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from distillens.report.figures.complexity import (
    GRADIENT,
    MEASURES,
    Measure,
    measured,
    series,
    target_sets,
    target_title,
)
from distillens.report.tables.text import number
from distillens.results.complexity import ComplexityCurves

# Values closer than this share of the larger one are called equal.
_CLOSE = 0.02


def complexity_summary(measured_curves: Sequence[ComplexityCurves]) -> list[tuple[str, str]]:
    """Return a sentence for each student and split: the order of the targets, early and late."""
    found: dict[tuple[str, str], ComplexityCurves] = {}
    for curves in sorted(measured_curves, key=lambda curves: curves.seed):
        found.setdefault((curves.student, curves.split), curves)
    return [
        (f"Complexity for {student}, seed {curves.seed}, {split}", _sentences(curves))
        for (student, split), curves in found.items()
    ]


def _sentences(curves: ComplexityCurves) -> str:
    # Adjusted is the paper's first choice; it is missing where no predictions were given. The
    # gradient residual is measured for students trained with cross-entropy, and then reported as well.
    chosen = [measure for measure in MEASURES[:2] if measured(curves, measure)][:1]
    chosen += [GRADIENT] * measured(curves, GRADIENT)
    if not chosen:
        return "No finite complexity: the Gram was singular at every epoch."
    return " ".join(_of_measure(curves, measure) for measure in chosen)


def _of_measure(curves: ComplexityCurves, measure: Measure) -> str:
    values = {name: dict(series(curves, name, measure)) for name in target_sets(curves)}
    epochs = _common(values)
    if not epochs:
        return f"No epoch has finite {measure.short} values for all target sets."
    # Epoch 0 is the untrained network; nothing has been learned there that could be easy.
    early = next((epoch for epoch in epochs if epoch > 0), epochs[0])
    parts = [f"By {measure.sentence} at epoch {early}: {_order(values, early)}."]
    if epochs[-1] != early:
        parts.append(f"At epoch {epochs[-1]}: {_order(values, epochs[-1])}.")
    return " ".join(parts + _online(values, epochs))


def _common(values: dict[str, dict[int, float]]) -> list[int]:
    shared = set.intersection(*(set(curve) for curve in values.values()))
    return sorted(
        epoch for epoch in shared if all(math.isfinite(curve[epoch]) for curve in values.values())
    )


def _order(values: dict[str, dict[int, float]], epoch: int) -> str:
    ranked = sorted(values, key=lambda name: -values[name][epoch])
    words = [f"{target_title(ranked[0])} {number(values[ranked[0]][epoch])}"]
    for before, name in itertools.pairwise(ranked):
        higher, lower = values[before][epoch], values[name][epoch]
        sign = "≈" if higher - lower <= _CLOSE * abs(higher) else ">"
        words.append(f"{sign} {target_title(name)} {number(lower)}")
    return " ".join(words)


def _online(values: dict[str, dict[int, float]], epochs: list[int]) -> list[str]:
    online, final = values.get("online teacher"), values.get("final teacher")
    if online is None or final is None:
        return []
    below = sum(online[epoch] < final[epoch] for epoch in epochs)
    return [
        f"The online teacher's targets cost less than the final teacher's at {below} of the "
        f"{len(epochs)} epochs measured."
    ]
