"""Complexity curves: complexity of each target set for the student's kernel, over its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distillens.report import palette as colours
from distillens.report.tables.text import printable
from distillens.results.complexity import ComplexityCurves, ComplexityPoint
from distillens.results.figure import Curve, Panel, Picture, Style, Symbol

# Above this ratio the lower curves could not be told from zero on a linear axis.
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

# Curves differ in style or symbol too, not only in their colour.
_LOOKS: dict[str, tuple[Style, Symbol]] = {
    "labels": ("solid", "circle"),
    "random labels": ("dotted", "x"),
    "final teacher": ("dashed", "square"),
    "online teacher": ("solid", "diamond"),
}
_OTHER: tuple[Style, Symbol] = ("dashed", "cross")

_ORDER = tuple(_LOOKS)


def target_sets(curves: ComplexityCurves) -> list[str]:
    """Return the names of the target sets, in the papers' order."""
    found = dict.fromkeys(point.targets for point in curves.points)
    known = [name for name in _ORDER if name in found]
    return known + [name for name in found if name not in _ORDER]


def target_title(targets: str) -> str:
    """Return the name of a target set as shown: "labels" are the dataset's labels."""
    return "dataset labels" if targets == "labels" else targets


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


def missing_epochs(curves: ComplexityCurves, measure: Measure) -> list[int]:
    """Return the epochs at which a value is infinite or not a number, so that a curve breaks."""
    values = ((point.epoch, measure.of(point)) for point in curves.points)
    return sorted(
        {epoch for epoch, value in values if value is not None and not math.isfinite(value)}
    )


def complexity_panel(curves: ComplexityCurves, measure: Measure) -> Panel:
    """Return a measure over the student's epochs, one curve for each target set."""
    curves_shown = [
        target_curve(name, *zip(*points, strict=True))
        for name in target_sets(curves)
        if (points := series(curves, name, measure))
    ]
    return measure_panel(measure, "student's epoch", curves_shown)


def complexity_picture(curves: ComplexityCurves) -> Picture | None:
    """Return two measures over the student's epochs; None if no value of them is finite."""
    panels = [
        complexity_panel(curves, measure)
        for measure in pictured_measures(curves)
        if measured(curves, measure)
    ]
    return picture("Supervision complexity", curves, panels, f"τ = {curves.temperature:g}")


def target_curve(
    targets: str, x: Sequence[float], y: Sequence[float], *, marked: bool = True
) -> Curve:
    """Return the curve of a target set, which breaks where a value is not finite."""
    style, symbol = _LOOKS.get(targets, _OTHER)
    values = np.array(y, dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    return Curve(
        np.array(x, dtype=np.float64), values, target_title(targets), colours.of_targets(targets),
        style, None, symbol if marked else None,
    )  # fmt: skip


def measure_panel(
    measure: Measure, x_label: str, curves: Sequence[Curve], x_ticks: Sequence[float] = ()
) -> Panel:
    """Return the panel of a measure; its y axis is logarithmic if the values are far apart."""
    finite = [float(value) for curve in curves for value in curve.y_M if np.isfinite(value)]
    far = bool(finite) and min(finite) > 0 and max(finite) > _LOG_RATIO * min(finite)
    return Panel(
        measure.title,
        x_label,
        f"{measure.short} ({measure.unit}{', log' if far else ''})",
        tuple(curves),
        x_scale="log" if x_ticks else "linear",
        y_scale="log" if far else "linear",
        x_ticks=tuple(x_ticks),
        y_from_zero=not far,
    )


def pictured_measures(curves: ComplexityCurves) -> list[Measure]:
    """Return the adjusted and the normalised measure of a picture.

    They are the starred ones, without predictions, for a student trained with cross-entropy, whose
    logits are no fit of the targets.
    """
    star = "_star" if measured(curves, GRADIENT) else ""
    wanted = (f"adjusted{star}", f"normalised{star}")
    return [measure for measure in MEASURES if measure.field in wanted]


def picture(
    title: str, curves: ComplexityCurves, panels: Sequence[Panel], more: str
) -> Picture | None:
    """Return panels with a caption on the measurement; None without panels."""
    if not panels:
        return None
    caption = (
        f"{curves.student}, seed {curves.seed}; {curves.examples:,} {curves.split} examples; "
        f"{curves.form} kernel; {curves.coding}; {more}"
    )
    return Picture(title, tuple(panels), printable(caption))
