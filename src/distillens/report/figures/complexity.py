"""Complexity curves: what each target set costs the student's kernel, over its training."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from distillens.report import palette as colours
from distillens.report.tables.text import printable
from distillens.results.complexity import ComplexityCurves, ComplexityPoint

# Above this ratio a linear axis would press the lower curves onto the zero line.
_LOG_RATIO = 50


@dataclass(frozen=True)
class Measure:
    """One way to measure complexity: the field it is read from, its title and its formula."""

    field: str
    title: str
    formula: str
    unit: str

    @property
    def short(self) -> str:
        """The title inside a line."""
        return self.title.lower()

    @property
    def sentence(self) -> str:
        """The title inside a sentence."""
        return f"the {self.short}" if self.field == "gradient" else f"{self.short} complexity"

    def of(self, point: ComplexityPoint) -> float | None:
        """Return the point's value, None where it was not measured."""
        if self.field == "gradient":
            return point.gradient
        return getattr(point.value, self.field)


GRADIENT = Measure(
    "gradient",
    "Gradient residual",
    "eq. 49 with Y − σ(f/τ), for cross-entropy; ours, not the paper's",
    "target units",
)

MEASURES = (
    Measure(
        "adjusted",
        "Adjusted",
        "(1/n)·√((Y−f)ᵀK⁻¹(Y−f)·Tr K), eq. 49, for squared error",
        "target units",
    ),
    Measure("adjusted_star", "Adjusted*", "(1/n)·√(YᵀK⁻¹Y·Tr K), eq. 50", "target units"),
    Measure("normalised", "Normalised", "adjusted ÷ target size ‖Y‖₂/√n", "no unit"),
    Measure("normalised_star", "Normalised*", "adjusted* ÷ target size ‖Y‖₂/√n", "no unit"),
    GRADIENT,
)

# dash, marker symbol: a curve is told apart without its colour too.
_STROKES = {
    "labels": ("solid", "circle"),
    "random labels": ("dot", "x"),
    "final teacher": ("dash", "square"),
    "online teacher": ("solid", "diamond"),
}
_OTHER = ("dashdot", "cross")

_ORDER = tuple(_STROKES)


def target_sets(curves: ComplexityCurves) -> list[str]:
    """Return the names of the target sets, in the papers' order."""
    found = dict.fromkeys(point.targets for point in curves.points)
    known = [name for name in _ORDER if name in found]
    return known + [name for name in found if name not in _ORDER]


def target_title(targets: str) -> str:
    """Return the name of a target set as shown: "labels" are the dataset's labels."""
    return "dataset labels" if targets == "labels" else targets


def stroke(targets: str) -> tuple[str, str]:
    """Return the dash and the marker symbol of a target set's curve."""
    return _STROKES.get(targets, _OTHER)


def series(curves: ComplexityCurves, targets: str, measure: Measure) -> list[tuple[int, float]]:
    """Return (epoch, value) of one curve by epoch, infinities kept, unmeasured points left out."""
    pairs = (
        (point.epoch, measure.of(point)) for point in curves.points if point.targets == targets
    )
    return sorted((epoch, value) for epoch, value in pairs if value is not None)


def measured(curves: ComplexityCurves, measure: Measure) -> bool:
    """Return whether the measure has a finite value anywhere in these curves."""
    values = (measure.of(point) for point in curves.points)
    return any(value is not None and math.isfinite(value) for value in values)


def undrawn(curves: ComplexityCurves, measure: Measure) -> list[int]:
    """Return the epochs at which a value is infinite or not a number, so that a curve breaks."""
    values = ((point.epoch, measure.of(point)) for point in curves.points)
    return sorted(
        {epoch for epoch, value in values if value is not None and not math.isfinite(value)}
    )


def complexity_figure(curves: ComplexityCurves, measure: Measure) -> go.Figure:
    """Return one panel: a measure over the student's epochs, one curve for each target set.

    Curves break where a value is not finite. Each trace's ``legendgroup`` is ``t0``, ``t1`` … in
    the order of `target_sets`, which the page's check boxes switch.
    """
    figure = go.Figure()
    drawn: list[float] = []
    for index, targets in enumerate(target_sets(curves)):
        points = series(curves, targets, measure)
        values = [value if math.isfinite(value) else None for _, value in points]
        drawn += [value for value in values if value is not None]
        figure.add_scatter(
            x=[epoch for epoch, _ in points],
            y=values,
            # plotly reads tags in labels, so a name is escaped here as well.
            name=html.escape(printable(target_title(targets))),
            legendgroup=f"t{index}",
            mode="lines+markers",
            hovertemplate="epoch %{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
            **marker_line(targets, colours.of_targets(targets)),
        )
    figure.update_layout(layout(measure, drawn, "student's epoch"))
    return figure


def marker_line(targets: str, colour: str) -> dict[str, Any]:
    """Return plotly's line and marker of a target set."""
    dash, symbol = stroke(targets)
    return {
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"color": colour, "symbol": symbol, "size": 6},
    }


def layout(measure: Measure, drawn: Sequence[float], x_title: str) -> dict[str, Any]:
    """Return the layout of a panel of a measure; ``drawn`` are the values that it must show."""
    logarithmic = is_logarithmic(drawn)
    scale = ", log" if logarithmic else ""
    return {
        "template": "none",
        "showlegend": False,
        "margin": {"l": 62, "r": 14, "t": 26, "b": 46},
        "hovermode": "closest",
        "xaxis": {"title": {"text": x_title}, "zeroline": False},
        "yaxis": {
            "title": {"text": f"{measure.short} ({measure.unit}{scale})"},
            "type": "log" if logarithmic else "linear",
            "rangemode": "normal" if logarithmic else "tozero",
            "zeroline": False,
            **({"tickvals": _log_ticks(min(drawn), max(drawn))} if logarithmic else {}),
        },
    }


def is_logarithmic(drawn: Sequence[float]) -> bool:
    """Return whether the values are too far apart for a linear axis."""
    return bool(drawn) and min(drawn) > 0 and max(drawn) > _LOG_RATIO * min(drawn)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten around the values; plotly would write 20 as "2"."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
