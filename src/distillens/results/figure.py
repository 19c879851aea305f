"""Descriptions of figures as arrays; `report.draw` draws them.

Shapes: M points of a curve, (R, Q) cells of a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Scale = Literal["linear", "log"]
Style = Literal["solid", "thick", "dashed", "dotted", "points", "dots"]
"""Points are small and faint, for many; dots are for the few among them that matter."""
Symbol = Literal["circle", "triangle-up", "triangle-down", "x", "square", "diamond", "cross"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Points (x, y), joined by a line or not.

    ``colour`` is a number of the palette or a colour as "#rrggbb".
    """

    x_M: Array
    y_M: Array
    label: str = ""
    colour: int | str = 0
    style: Style = "solid"
    band: tuple[Array, Array] | None = None
    """Lower and upper ends of an interval at each x."""
    symbol: Symbol | None = None
    """The marker of each point; None for circles, and for lines without markers."""


@dataclass(frozen=True)
class Mark:
    """A moment on the x axis, shown as a vertical line, or a period, shown as a band."""

    begins: float
    ends: float
    label: str = ""


@dataclass(frozen=True, eq=False)
class Surface:
    """A map of values over two axes, one of each row and column; NaN cells stay blank.

    Without ``limits`` the scale is centred: zero is white, the two signs have colours of their own that
    mean the same above and below, and a line separates cells of either sign.
    """

    x_Q: Array
    y_R: Array
    values_RQ: Array
    label: str
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...] = ()
    surface: Surface | None = None
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    x_ticks: tuple[float, ...] = ()
    """Tick positions; by default chosen by the plotting library."""
    marks: tuple[Mark, ...] = ()
    limits: tuple[float, float] | None = None
    """Limits of both axes; None to choose them from the values."""
    y_from_zero: bool = False
    """Whether a linear y axis begins at 0."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Panels in rows, with a caption that describes content and source."""

    title: str
    panels: tuple[Panel, ...]
    caption: str = ""


@dataclass(frozen=True)
class Finding:
    """A number from a study, with its meaning in one line."""

    name: str
    value: float | int
    meaning: str


@dataclass(frozen=True, eq=False)
class Shown:
    """Outcome of a study: findings, arrays and a figure."""

    name: str
    source: str
    settings: Mapping[str, float | int | str]
    findings: tuple[Finding, ...]
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    picture: Picture = field(repr=False)
