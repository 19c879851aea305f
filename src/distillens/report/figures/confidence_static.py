"""Confidence plots and curves over training as pictures for SVG and PNG."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distillens.report.figures.confidence import BY_WHO, Group, panels_of, shared_range
from distillens.report.figures.over_training import (
    QUANTITIES,
    Quantity,
    drawn_quantities,
    moment,
    tracks,
)
from distillens.report.figures.points import Points
from distillens.report.tables.confidence import name_of
from distillens.report.tables.text import printable, slope
from distillens.results.confidence import OverTraining, StudentAudit, StudentOverTraining
from distillens.results.figure import Curve, Mark, Panel, Picture

_COMPARED = ("slope-low", "underfit", "net-gain")
_GREY = 6


def over_training_picture(over: StudentOverTraining) -> Picture:
    """Return the curves of a student over its training."""
    marks: tuple[Mark, ...] = ()
    if over.switch is not None:
        marks = (Mark(over.switch.begins, over.switch.ends, moment(over.switch)),)
    panels = []
    for quantity in drawn_quantities(over):
        found = tracks(over, quantity)
        curves = [
            Curve(
                track.epochs_M,
                track.values_M,
                track.label,
                track.colour,
                "dashed" if track.dashed else "solid",
                (track.low_M, track.high_M),
            )
            for track in found
        ]
        ends = np.array([found[0].epochs_M.min(), found[0].epochs_M.max()])
        # The switch is named once, so that legends stay small.
        shown = marks if not panels else tuple(Mark(mark.begins, mark.ends) for mark in marks)
        panels.append(_panel(quantity, [*_level(quantity, ends), *curves], shown))
    counts = ", ".join(f"{count:,} {split}" for split, count in over.examples.items())
    return Picture(
        f"{printable(over.student)}, seed {over.seed}: against the final teacher, epoch by epoch",
        tuple(panels),
        f"{counts} examples; shaded: 95 % intervals over examples",
        columns=4 if len(panels) > 6 else 3,
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
        curves = []
        for place, over in enumerate(students):
            for track in tracks(over, quantity):
                if track.split == split:
                    style = "solid" if place < _GREY else "dashed"
                    label = printable(over.student) if not panels else ""
                    curves.append(
                        Curve(track.epochs_M, track.values_M, label, place % _GREY, style)
                    )
        if curves:
            ends = np.array([curves[0].x_M.min(), curves[0].x_M.max()])
            marks = tuple(Mark(*pair) for pair in moments)
            panels.append(_panel(quantity, [*_level(quantity, ends), *curves], marks))
    caption = f"{split} examples; dashed upright lines: moments of a switch" if moments else split
    return Picture(f"{printable(run)}: students over training", tuple(panels), caption)


def confidence_picture(student: StudentAudit, points: Mapping[str, Points]) -> Picture:
    """Return the confidence plot of each split, by who is right and by mislabelled or not.

    Raises
    ------
    RunError
        The points do not fit each other.
    """
    drawn = panels_of(student, points)
    low, high = shared_range(drawn)
    diagonal = np.array([low, high])
    panels = []
    for one in drawn:
        x, y, fit = one.sample.x, one.sample.y, one.split.exaggeration
        inside = (x >= low) & (x <= high) & (y >= low) & (y <= high)
        curves = [
            Curve(
                x[chosen],
                y[chosen],
                group.name,
                _colour(place, one.groups),
                "dots" if place else "points",
            )
            for place, group in enumerate(one.groups)
            if (chosen := inside & (one.sample.who == place)).any()
        ]
        slopes = f"slope {slope(fit.slope_low.ordinary)} low, {slope(fit.slope_all.ordinary)} all"
        panels.append(
            Panel(
                f"{one.title}\n{slopes}",
                "teacher's log-odds of its top class (nats)",
                "student's log-odds of that class (nats)",
                (*curves, Curve(diagonal, diagonal, "", _GREY, "dotted")),
            )
        )
    thinned = any(len(one.sample.x) < one.split.examples for one in drawn)
    return Picture(
        f"{printable(name_of(student))}: confidence",
        tuple(panels),
        "Below the dotted diagonal the student is less sure than the teacher"
        + ("; points thinned at random" if thinned else ""),
    )


def _colour(place: int, groups: tuple[Group, ...]) -> int:
    # Who is right: grey, orange-red, purple, blue of the figures' colours; wrong labels orange-red.
    return (_GREY, 1, 5, 0)[place] if groups is BY_WHO else (_GREY, 1)[place]


def _panel(quantity: Quantity, curves: list[Curve], marks: tuple[Mark, ...]) -> Panel:
    return Panel(quantity.title, "epoch", quantity.unit, tuple(curves), marks=marks)


def _level(quantity: Quantity, ends: np.ndarray) -> list[Curve]:
    if quantity.level is None:
        return []
    return [Curve(ends, np.full(2, quantity.level), "", _GREY, "dotted")]
