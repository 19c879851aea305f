"""The quantities that are drawn over training, their curves and the moment of a switch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from distillens.report import palette
from distillens.report.tables.text import fixed
from distillens.results.base import Estimate
from distillens.results.confidence import StudentOverTraining, Switch, TrajectoryPoint

Array = NDArray[np.float64]
COLOURS = ("#1f83c4", "#d55e00")
"""Of the splits, in the order of the audit."""


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
    """Where nothing is exaggerated, gained or lost."""


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


@dataclass(frozen=True, eq=False)
class Track:
    """A quantity over the epochs of one split; ends of intervals are NaN where there is none."""

    split: str
    label: str
    colour: int
    dashed: bool
    epochs_M: Array
    values_M: Array
    low_M: Array
    high_M: Array


def tracks(over: StudentOverTraining, quantity: Quantity) -> list[Track]:
    """Return the curves of a quantity: one a split and field, without those that are not known."""
    found = []
    for colour, split in enumerate(over.examples):
        points = [point for point in over.points if point.split == split]
        for place, (name, suffix) in enumerate(quantity.fields):
            pairs = _known(points, name)
            if pairs:
                found.append(
                    _track(split, f"{split}{suffix}", colour, place > 0, pairs, quantity.scale)
                )
    return found


def drawn_quantities(over: StudentOverTraining) -> list[Quantity]:
    """Return the quantities that have a curve."""
    return [quantity for quantity in QUANTITIES if tracks(over, quantity)]


def over_training_figure(over: StudentOverTraining, quantity: Quantity) -> go.Figure:
    """Return a quantity over epochs with its intervals, its level and the moment of a switch."""
    figure = go.Figure()
    for track in tracks(over, quantity):
        colour = COLOURS[track.colour % 2]
        known = np.isfinite(track.low_M) & np.isfinite(track.high_M)
        epochs = track.epochs_M[known]
        figure.add_scatter(
            x=np.concatenate([epochs, epochs[::-1]]),
            y=np.concatenate([track.low_M[known], track.high_M[known][::-1]]),
            fill="toself",
            mode="lines",
            line={"width": 0},
            fillcolor=_faint(colour),
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=track.epochs_M,
            y=track.values_M,
            mode="lines",
            name=track.label,
            line={"color": colour, "width": 2, "dash": "dash" if track.dashed else "solid"},
            hovertemplate="epoch %{x}: %{y:.3g}<extra>%{fullData.name}</extra>",
        )
    if quantity.level is not None:
        figure.add_hline(y=quantity.level, line={"color": palette.GREY, "dash": "dot", "width": 1})
    if over.switch is not None:
        begins, ends = over.switch.begins, over.switch.ends
        if ends > begins:
            figure.add_vrect(x0=begins, x1=ends, fillcolor=palette.GREY, opacity=0.25, line_width=0)
        else:
            figure.add_vline(x=begins, line={"color": palette.GREY, "dash": "dash", "width": 1.5})
    figure.update_layout(
        template="none",
        margin={"l": 54, "r": 12, "t": 12, "b": 40},
        xaxis={"title": {"text": "epoch"}, "zeroline": False},
        yaxis={"zeroline": False},
        legend={"orientation": "h", "y": 1.12},
    )
    return figure


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def moment(switch: Switch) -> str:
    """Return a switch in words."""
    when = f"epoch {fixed(switch.begins, 2)}"
    if switch.ends > switch.begins:
        when += f" to {fixed(switch.ends, 2)}"
    return f"{switch.before} → {switch.after}, {when}"


def _known(points: list[TrajectoryPoint], name: str) -> list[tuple[int, Estimate]]:
    pairs = [(point.epoch, getattr(point, name)) for point in points]
    return sorted((epoch, value) for epoch, value in pairs if value is not None)


def _track(
    split: str,
    label: str,
    colour: int,
    dashed: bool,
    pairs: list[tuple[int, Estimate]],
    scale: float,
) -> Track:
    nothing = float("nan")
    ends = [
        (one.interval.low, one.interval.high) if one.interval else (nothing, nothing)
        for _, one in pairs
    ]
    low_M, high_M = np.array(ends, dtype=np.float64).T * scale
    return Track(
        split,
        label,
        colour,
        dashed,
        np.array([epoch for epoch, _ in pairs], dtype=np.float64),
        np.array([one.value for _, one in pairs], dtype=np.float64) * scale,
        low_M,
        high_M,
    )
