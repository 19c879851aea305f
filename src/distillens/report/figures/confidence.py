"""The confidence plot: the student's log-odds against the teacher's, by student and split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.report.figures.points import PANEL_LIMIT, Points, Sample, sample
from distillens.report.palette import GREY, NUMBERED, WHO
from distillens.report.tables.confidence import name_of
from distillens.report.tables.text import printable, slope
from distillens.results.confidence import SplitAudit, StudentAudit
from distillens.results.figure import Curve, Panel, Picture, Symbol

Array = NDArray[np.float64]
BLUE = NUMBERED[0]


@dataclass(frozen=True)
class Group:
    """Points with one marker: those of a number in ``who``."""

    name: str
    colour: str
    symbol: Symbol


@dataclass(frozen=True, eq=False)
class Cloud:
    """The points of one split, by who is right or by mislabelled or not."""

    title: str
    split: SplitAudit
    sample: Sample
    groups: tuple[Group, ...]


# Most points are right in both; they are plotted first and faint, so that the few others are visible.
BY_WHO = (
    Group("both right", WHO[0], "circle"),
    Group("only the student", WHO[1], "triangle-up"),
    Group("only the teacher", WHO[2], "triangle-down"),
    Group("neither", WHO[3], "x"),
)
BY_MISLABELLED = (
    Group("not mislabelled", GREY, "circle"),
    Group("mislabelled", "#c2344d", "x"),
)


def clouds_of(
    student: StudentAudit, points: Mapping[str, Points], limit: int = PANEL_LIMIT
) -> list[Cloud]:
    """Return the points of a student: per split by who is right, and by mislabelled if there are any.

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
        found.append(Cloud(f"{split.split}, by who is right", split, thinned, BY_WHO))
        if "mislabelled" in arrays and np.any(arrays["mislabelled"]):
            marked = {**arrays, "who": np.asarray(arrays["mislabelled"], dtype=np.uint8)}
            thinned = sample(marked, where, threshold, limit)
            title = f"{split.split}, by mislabelled or not"
            found.append(Cloud(title, split, thinned, BY_MISLABELLED))
    return found


def shared_range(clouds: Sequence[Cloud]) -> tuple[float, float]:
    """Return one range for both axes of all panels, which includes 99.6 % of the plotted values.

    With one range the diagonal is the same line in all panels, and a few extreme points do not
    compress all others.
    """
    samples = [cloud.sample for cloud in clouds]
    values = [array for sample in samples for array in (sample.x, sample.y) if len(array)]
    if not values:
        return -1.0, 1.0
    low, high = np.quantile(np.concatenate(values), [0.002, 0.998])
    margin = 0.05 * float(high - low) or 1.0
    return float(low) - margin, float(high) + margin


def outside(sample: Sample, limits: tuple[float, float]) -> int:
    """Return the number of plotted points outside the range."""
    low, high = limits
    inside = (sample.x >= low) & (sample.x <= high) & (sample.y >= low) & (sample.y <= high)
    return int((~inside).sum())


def confidence_panel(cloud: Cloud, colour: str, limits: tuple[float, float]) -> Panel:
    """Return the points by group, the diagonal, and the two fitted lines in a colour.

    A fitted line has the slope of the result and passes through the mean of the points of its part,
    as a least-squares line does.
    """
    shown, ends = cloud.sample, np.array(limits)
    curves = [Curve(ends, ends, "", GREY, "dotted")]
    for place, group in enumerate(cloud.groups):
        chosen = shown.who == place
        style = "dots" if place else "points"
        x, y = shown.x[chosen], shown.y[chosen]
        curves.append(Curve(x, y, group.name, group.colour, style, None, group.symbol))
    curves += [Curve(x, y, "", colour, "thick") for x, y in _lines(cloud)]
    fit = cloud.split.exaggeration
    slopes = f"slope {slope(fit.slope_low.ordinary)} low, {slope(fit.slope_all.ordinary)} all"
    return Panel(
        f"{cloud.title}\n{slopes}",
        "teacher's log-odds of its top class (nats)",
        "student's log-odds of that class (nats)",
        tuple(curves),
        limits=limits,
    )


def confidence_picture(student: StudentAudit, points: Mapping[str, Points]) -> Picture:
    """Return the confidence plot of each split, by who is right and by mislabelled or not.

    Raises
    ------
    RunError
        The points do not fit each other.
    """
    clouds = clouds_of(student, points)
    limits = shared_range(clouds)
    rule = f"; at most {PANEL_LIMIT:,} points of a panel, chosen uniformly at random"
    thinned = any(len(one.sample.x) < one.sample.total for one in clouds)
    return Picture(
        f"{printable(name_of(student))}: confidence",
        tuple(confidence_panel(cloud, BLUE, limits) for cloud in clouds),
        "Below the dotted diagonal the student is less confident than the teacher" + rule * thinned,
    )


def _lines(cloud: Cloud) -> list[tuple[Array, Array]]:
    """Return the ends of the low and the high line, left out if a slope is not defined."""
    fit, shown = cloud.split.exaggeration, cloud.sample
    if not len(shown.x) or not math.isfinite(fit.threshold):
        return []
    parts = (
        (fit.slope_low.ordinary.value, shown.low, float(shown.x.min()), fit.threshold),
        (fit.slope_high.ordinary.value, shown.high, fit.threshold, float(shown.x.max())),
    )
    lines = []
    for value, centre, start, end in parts:
        if centre is not None and math.isfinite(value):
            x = np.array([start, end])
            lines.append((x, centre[1] + value * (x - centre[0])))
    return lines
