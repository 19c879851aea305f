"""The final teacher's complexity over its temperature, beside labels and random labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import plotly.graph_objects as go

from distillens.report import palette as colours
from distillens.report.figures.complexity import (
    MEASURES,
    Measure,
    layout,
    marker_line,
    series,
    target_title,
)
from distillens.results.complexity import ComplexityCurves

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

    @property
    def finite(self) -> list[float]:
        """All values that can be drawn."""
        return [
            value for value in (*self.values, *self.references.values()) if math.isfinite(value)
        ]


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


def temperature_figure(found: OverTemperatures, measure: Measure) -> go.Figure:
    """Return one panel: a measure of the final teacher over τ, references as level lines."""
    figure = go.Figure()
    ends = [found.temperatures[0], found.temperatures[-1]]
    drawn = [
        (TAUGHT, list(found.temperatures), list(found.values)),
        *((name, ends, [value, value]) for name, value in found.references.items()),
    ]
    for name, x, y in drawn:
        figure.add_scatter(
            x=x,
            y=[value if math.isfinite(value) else None for value in y],
            name=target_title(name),
            mode="lines+markers" if name == TAUGHT else "lines",
            hovertemplate="τ = %{x:g}: %{y:.4g}<extra>%{fullData.name}</extra>",
            **marker_line(name, colours.of_targets(name)),
        )
    figure.update_layout(layout(measure, found.finite, "temperature τ (log)"))
    figure.update_xaxes(
        type="log",
        tickvals=list(found.temperatures),
        ticktext=[f"{temperature:g}" for temperature in found.temperatures],
    )
    return figure
