"""Quantities of students at their checkpoints: the panels that the page and the pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distillens.report.palette import GREY
from distillens.report.tables.text import fixed, printable
from distillens.results.confidence import OverTraining, StudentOverTraining, Switch
from distillens.results.figure import Curve, Mark, Panel, Picture

Array = NDArray[np.float64]
_COMPARED = ("slope-low", "underfit", "net-gain")
_COLOURS = 6


@dataclass(frozen=True)
class Quantity:
    """Fields of `TrajectoryPoint` that share one pair of axes."""

    key: str
    title: str
    unit: str
    fields: tuple[tuple[str, str], ...]
    """Each with what it adds to the label of a curve."""
    scale: float = 1.0
    level: float | None = None
    """Reference value of each quantity: no exaggeration, gain or loss."""


QUANTITIES = (
    Quantity("slope-low", "Slope of the low part", "slope", (("slope_low", ""),), level=1.0),
    Quantity("slope-all", "Slope of all points", "slope", (("slope_all", ""),), level=1.0),
    Quantity("slope-high", "Slope of the high part", "slope", (("slope_high", ""),), level=1.0),
    Quantity(
        "underfit", "Low part: less confident than the teacher", "% of points", (("underfit", ""),),
        100.0, 50.0,
    ),
    Quantity(
        "agreement", "Same top class as the final teacher", "% of examples", (("agreement", ""),),
        100.0,
    ),
    Quantity(
        "net-gain", "Net gain over the final teacher", "accuracy points", (("net_gain", ""),),
        level=0.0,
    ),
    Quantity(
        "mislabelled", "Mislabelled examples", "% of them",
        (("mislabelled_right", ", true class"), ("mislabelled_given", ", class as given")), 100.0,
    ),
)  # fmt: skip


def over_training_panels(over: StudentOverTraining) -> dict[str, Panel]:
    """Return one panel per quantity, by its key; quantities that are not known are left out."""
    marks: tuple[Mark, ...] = ()
    if over.switch is not None:
        marks = (Mark(over.switch.begins, over.switch.ends, moment(over.switch)),)
    found = {}
    for quantity in QUANTITIES:
        curves = [curve for split in over.examples for curve in _curves(over, quantity, split)]
        if curves:
            found[quantity.key] = _panel(quantity, curves, marks)
            # The switch is named once, which keeps the legends small.
            marks = tuple(replace(mark, label="") for mark in marks)
    return found


def over_training_picture(over: StudentOverTraining) -> Picture:
    """Return all panels of a student."""
    panels = tuple(over_training_panels(over).values())
    counts = ", ".join(f"{count:,} {split}" for split, count in over.examples.items())
    return Picture(
        f"{printable(over.student)}, seed {over.seed}: against the final teacher, epoch by epoch",
        panels,
        f"{counts} examples; shaded: 95 % intervals over examples",
    )


def compared_picture(run: str, overs: OverTraining, split: str) -> Picture | None:
    """Return all students of a run in one picture, by split; None for fewer than two."""
    students = overs.students
    if len(students) < 2:
        return None
    switches = [over.switch for over in students if over.switch is not None]
    moments = sorted({(switch.begins, switch.ends) for switch in switches})
    panels = []
    for quantity in (one for one in QUANTITIES if one.key in _COMPARED):
        curves = [
            replace(
                curve,
                label=printable(over.student) if not panels else "",
                colour=place % _COLOURS,
                style="solid" if place < _COLOURS else "dashed",
                band=None,
            )
            for place, over in enumerate(students)
            for curve in _curves(over, quantity, split)
        ]
        if curves:
            panels.append(_panel(quantity, curves, tuple(Mark(*pair) for pair in moments)))
    caption = f"{split} examples; dashed upright lines: moments of a switch" if moments else split
    return Picture(f"{printable(run)}: students over training", tuple(panels), caption)


def moment(switch: Switch) -> str:
    """Return a switch in words."""
    when = f"epoch {fixed(switch.begins, 2)}"
    if switch.ends > switch.begins:
        when += f" to {fixed(switch.ends, 2)}"
    return f"{switch.before} → {switch.after}, {when}"


def _curves(over: StudentOverTraining, quantity: Quantity, split: str) -> list[Curve]:
    """Return a curve per field of a quantity; ends of intervals are NaN where there is none."""
    points = sorted(
        (point for point in over.points if point.split == split), key=lambda point: point.epoch
    )
    found = []
    for name, suffix in quantity.fields:
        known = [point for point in points if getattr(point, name) is not None]
        values = [getattr(point, name) for point in known]
        intervals = [one.interval for one in values]
        ends = [(i.low, i.high) if i is not None else (np.nan, np.nan) for i in intervals]
        low_M, high_M = quantity.scale * np.array(ends, dtype=np.float64).reshape(-1, 2).T
        if known:
            found.append(
                Curve(
                    np.array([point.epoch for point in known], dtype=np.float64),
                    quantity.scale * np.array([one.value for one in values], dtype=np.float64),
                    f"{split}{suffix}",
                    list(over.examples).index(split),
                    "dashed" if found else "solid",
                    (low_M, high_M),
                )
            )
    return found


def _panel(quantity: Quantity, curves: Sequence[Curve], marks: tuple[Mark, ...]) -> Panel:
    level: list[Curve] = []
    if quantity.level is not None:
        ends = np.array([curves[0].x_M.min(), curves[0].x_M.max()])
        level = [Curve(ends, np.full(2, quantity.level), "", GREY, "dotted")]
    return Panel(quantity.title, "epoch", quantity.unit, (*level, *curves), marks=marks)
