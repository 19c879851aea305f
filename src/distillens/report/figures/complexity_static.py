"""The complexity figures of a run as static pictures: over its student's epochs, over temperatures.

Two panels each: adjusted and normalised; starred, so without predictions, for a student trained with
cross-entropy, whose logits are no fit of the targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from distillens.report.figures.complexity import (
    GRADIENT,
    MEASURES,
    Measure,
    is_logarithmic,
    measured,
    series,
    target_sets,
    target_title,
)
from distillens.report.figures.temperature import TAUGHT, OverTemperatures, over_temperatures
from distillens.report.tables.text import printable
from distillens.results.complexity import ComplexityCurves
from distillens.results.figure import Curve, Panel, Picture, Style

# Numbers of colours in `report.draw`, which are those of the page.
_LOOKS: dict[str, tuple[int, Style]] = {
    "labels": (1, "solid"),
    "random labels": (6, "dotted"),
    TAUGHT: (0, "dashed"),
    "online teacher": (2, "solid"),
}
_OTHER: tuple[int, Style] = (5, "solid")


def complexity_picture(curves: ComplexityCurves) -> Picture | None:
    """Return complexity over the student's epochs; None where no value of it is finite."""
    panels = [
        _panel(
            measure,
            "student's epoch",
            [
                _curve(name, *zip(*points, strict=True))
                for name in target_sets(curves)
                if (points := series(curves, name, measure))
            ],
        )
        for measure in _pair(curves)
        if measured(curves, measure)
    ]
    return _picture("Supervision complexity", curves, panels, f"τ = {curves.temperature:g}")


def temperature_picture(curves: ComplexityCurves) -> Picture | None:
    """Return the final teacher's complexity over temperatures; None where there is none to draw."""
    panels = []
    epoch = 0
    for measure in _pair(curves):
        found = over_temperatures(curves, measure)
        if found is not None and any(math.isfinite(value) for value in found.values):
            panels.append(_over_temperatures(found, measure))
            epoch = found.epoch
    return _picture(
        "The final teacher over temperatures", curves, panels, f"kernel at epoch {epoch}"
    )


def _pair(curves: ComplexityCurves) -> list[Measure]:
    star = "_star" if measured(curves, GRADIENT) else ""
    wanted = (f"adjusted{star}", f"normalised{star}")
    return [measure for measure in MEASURES if measure.field in wanted]


def _over_temperatures(found: OverTemperatures, measure: Measure) -> Panel:
    ends = (found.temperatures[0], found.temperatures[-1])
    drawn = [_curve(TAUGHT, found.temperatures, found.values)]
    drawn += [_curve(name, ends, (value, value)) for name, value in found.references.items()]
    return _panel(measure, "temperature τ", drawn, found.temperatures)


def _curve(name: str, x: Sequence[float], y: Sequence[float]) -> Curve:
    colour, style = _LOOKS.get(name, _OTHER)
    values = np.array(y, dtype=np.float64)
    # A curve breaks where it is infinite.
    values[~np.isfinite(values)] = np.nan
    return Curve(np.array(x, dtype=np.float64), values, target_title(name), colour, style)


def _panel(
    measure: Measure, x_label: str, curves: list[Curve], x_ticks: Sequence[float] = ()
) -> Panel:
    drawn = [float(value) for curve in curves for value in curve.y_M if np.isfinite(value)]
    return Panel(
        title=measure.title,
        x_label=x_label,
        y_label=f"{measure.sentence} ({measure.unit})",
        curves=tuple(curves),
        x_scale="log" if x_ticks else "linear",
        y_scale="log" if is_logarithmic(drawn) else "linear",
        x_ticks=tuple(x_ticks),
    )


def _picture(
    title: str, curves: ComplexityCurves, panels: list[Panel], more: str
) -> Picture | None:
    if not panels:
        return None
    caption = (
        f"{curves.student}, seed {curves.seed}; {curves.examples:,} {curves.split} examples; "
        f"{curves.form} kernel; {curves.coding}; {more}"
    )
    return Picture(title, tuple(panels), printable(caption))
