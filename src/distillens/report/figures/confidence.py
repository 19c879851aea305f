"""The confidence plot: the student's log-odds against the teacher's, by student and split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from distillens.report import palette as colours
from distillens.report.figures.points import PANEL_LIMIT, Points, Sample, sample
from distillens.results.confidence import Exaggeration, SplitAudit, StudentAudit

WHO = ("both right", "only the student", "only the teacher", "neither")
SYMBOLS = ("circle", "triangle-up", "triangle-down", "x")

MISLABELLED = ("not mislabelled", "mislabelled")


@dataclass(frozen=True)
class Group:
    """Points with one marker: those of a number in ``who``, switched by a check box ``key``."""

    key: str
    name: str
    colour: str
    symbol: str
    size: int
    opacity: float


@dataclass(frozen=True, eq=False)
class Panel:
    """The points of one split, by who is right or by mislabelled or not."""

    title: str
    split: SplitAudit
    sample: Sample
    groups: tuple[Group, ...]


# Many points are right in both; they lie below and faint so that the few others are seen.
BY_WHO = tuple(
    Group(f"w{place}", *parts)
    for place, parts in enumerate(
        zip(WHO, colours.WHO, SYMBOLS, (4, 7, 7, 5), (0.42, 0.85, 0.85, 0.75), strict=True)
    )
)
BY_MISLABELLED = (
    Group("m0", MISLABELLED[0], colours.GREY, "circle", 4, 0.42),
    Group("m1", MISLABELLED[1], "#c2344d", "x", 6, 0.85),
)


def panels_of(
    student: StudentAudit, points: Mapping[str, Points], limit: int = PANEL_LIMIT
) -> list[Panel]:
    """Return the panels of a student: one per split, and one for the mislabelled if there are any.

    Splits without points are left out.

    Raises
    ------
    RunError
        The points do not fit each other.
    """
    found = []
    for split in student.audit.splits:
        arrays, threshold = points.get(split.split), split.exaggeration.threshold
        if arrays is None:
            continue
        where = f"points of {split.split}"
        thinned = sample(arrays, where, threshold, limit)
        found.append(Panel(f"{split.split}, by who is right", split, thinned, BY_WHO))
        if "mislabelled" in arrays and np.any(arrays["mislabelled"]):
            marked = {**arrays, "who": np.asarray(arrays["mislabelled"], dtype=np.uint8)}
            thinned = sample(marked, where, threshold, limit)
            title = f"{split.split}, by mislabelled or not"
            found.append(Panel(title, split, thinned, BY_MISLABELLED))
    return found


def shared_range(panels: Sequence[Panel]) -> tuple[float, float]:
    """Return one range for both axes of all panels, which includes 99.6 % of the drawn values.

    With one range the diagonal is the same line in all panels, and a few extreme points do not
    compress all others.
    """
    samples = [panel.sample for panel in panels]
    values = [array for sample in samples for array in (sample.x, sample.y) if len(array)]
    if not values:
        return -1.0, 1.0
    low, high = np.quantile(np.concatenate(values), [0.002, 0.998])
    margin = 0.05 * float(high - low) or 1.0
    return float(low) - margin, float(high) + margin


def outside(sample: Sample, limits: tuple[float, float]) -> int:
    """Return how many of the drawn points lie outside the range."""
    low, high = limits
    inside = (sample.x >= low) & (sample.x <= high) & (sample.y >= low) & (sample.y <= high)
    return int((~inside).sum())


def confidence_figure(panel: Panel, colour: str, limits: tuple[float, float]) -> go.Figure:
    """Return one panel: points by group, the diagonal, and the two fitted lines.

    A fitted line has the slope of the result and passes through the mean of its part's points, as a
    least-squares line does. Groups are switched by the page's check boxes.
    """
    sample, figure = panel.sample, go.Figure()
    low, high = limits
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line={"color": colours.GREY, "dash": "dot", "width": 1.5},
        hoverinfo="skip",
    )
    for index, group in enumerate(panel.groups):
        chosen = sample.who == index
        figure.add_scatter(
            x=sample.x[chosen].astype(np.float32),
            y=sample.y[chosen].astype(np.float32),
            name=group.name,
            legendgroup=group.key,
            mode="markers",
            marker={
                "color": group.colour,
                "symbol": group.symbol,
                "size": group.size,
                "opacity": group.opacity,
            },
            hovertemplate="teacher %{x:.2f}, student %{y:.2f}<extra>%{fullData.name}</extra>",
        )
    for part in _lines(panel.split.exaggeration, sample):
        figure.add_scatter(
            x=part[0],
            y=part[1],
            mode="lines",
            line={"color": colour, "width": 3.5},
            hoverinfo="skip",
        )
    # The same ticks on both axes, at most nine of them.
    step = next((step for step in (0.5, 1, 2, 5, 10, 20) if high - low <= 9 * step), 50)
    axis = {"range": [low, high], "tick0": 0, "dtick": step, "zeroline": False}
    figure.update_layout(
        template="none",
        showlegend=False,
        margin={"l": 54, "r": 12, "t": 26, "b": 46},
        hovermode="closest",
        xaxis={**axis, "title": {"text": "teacher's log-odds of its top class (nats)"}},
        yaxis={**axis, "title": {"text": "student's log-odds of that class (nats)"}},
    )
    return figure


def _lines(fit: Exaggeration, sample: Sample) -> list[tuple[list[float], list[float]]]:
    """Return the ends of the low and the high line, left out where no slope is defined."""
    if not len(sample.x) or not math.isfinite(fit.threshold):
        return []
    parts = (
        (fit.slope_low.ordinary.value, sample.low, float(sample.x.min()), fit.threshold),
        (fit.slope_high.ordinary.value, sample.high, fit.threshold, float(sample.x.max())),
    )
    lines = []
    for slope, centre, start, end in parts:
        if centre is None or not math.isfinite(slope):
            continue
        heights = [centre[1] + slope * (place - centre[0]) for place in (start, end)]
        lines.append(([start, end], heights))
    return lines
