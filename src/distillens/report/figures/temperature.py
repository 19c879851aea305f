"""The final teacher's complexity over its temperature, compared with labels and random labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distillens.report.figures.complexity import (
    MEASURES,
    Measure,
    measure_panel,
    picture,
    pictured_measures,
    series,
    target_curve,
)
from distillens.results.complexity import ComplexityCurves
from distillens.results.figure import Panel, Picture

REFERENCES = ("labels", "random labels")
"""Target sets that do not change with the temperature."""

TAUGHT = "final teacher"


@dataclass(frozen=True)
class OverTemperatures:
    """One measure of the final teacher over its temperatures, and of the references at one epoch."""

    epoch: int
    temperatures: tuple[float, ...]
    values: tuple[float, ...]
    references: dict[str, float]


def over_temperatures(curves: ComplexityCurves, measure: Measure) -> OverTemperatures | None:
    """Return a measure over temperatures, by temperature; None where it was not measured."""
    points = sorted(curves.temperatures, key=lambda point: point.temperature)
    found = [
        (point.temperature, value)
        for point in points
        if (value := getattr(point.value, measure.field, None)) is not None
    ]
    if not found:
        return None
    epoch = points[0].epoch
    known = {name: dict(series(curves, name, measure)).get(epoch) for name in REFERENCES}
    return OverTemperatures(
        epoch=epoch,
        temperatures=tuple(temperature for temperature, _ in found),
        values=tuple(value for _, value in found),
        references={name: value for name, value in known.items() if value is not None},
    )


def temperature_measures(curves: ComplexityCurves) -> list[Measure]:
    """Return the measures of which the teacher has a finite value at some temperature."""
    return [
        measure
        for measure in MEASURES
        if (found := over_temperatures(curves, measure)) is not None
        and any(math.isfinite(value) for value in found.values)
    ]


def temperature_panel(found: OverTemperatures, measure: Measure) -> Panel:
    """Return a measure of the final teacher over τ, references as level lines."""
    ends = (found.temperatures[0], found.temperatures[-1])
    curves = [target_curve(TAUGHT, found.temperatures, found.values)]
    curves += [
        target_curve(name, ends, (value, value), marked=False)
        for name, value in found.references.items()
    ]
    return measure_panel(measure, "temperature τ (log)", curves, found.temperatures)


def temperature_picture(curves: ComplexityCurves) -> Picture | None:
    """Return the final teacher's complexity over temperatures; None if there is none to draw."""
    shown = [one for one in pictured_measures(curves) if one in temperature_measures(curves)]
    found = [(over_temperatures(curves, measure), measure) for measure in shown]
    panels = [temperature_panel(one, measure) for one, measure in found if one is not None]
    epoch = next((one.epoch for one, _ in found if one is not None), 0)
    title = "The final teacher over temperatures"
    return picture(title, curves, panels, f"kernel at epoch {epoch}")
