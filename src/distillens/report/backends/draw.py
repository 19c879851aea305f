"""Draw a described picture with matplotlib, as SVG and PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from distillens.report.palette import colour_of
from distillens.results.figure import Curve, Mark, Panel, Picture, Surface

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

_STYLES = {"solid": "-", "thick": "-", "dashed": "--", "dotted": ":"}
_MARKERS = {"circle": ".", "triangle-up": "^", "triangle-down": "v", "x": "x"}
_MARKERS |= {"square": "s", "diamond": "D", "cross": "P"}
_WIDTH, _HEIGHT = 4.6, 4.4

# The same numbers give the same file: no random ids, no date. Text stays text, to be found and edited.
_STABLE: dict[RcKeyType, Any] = {"svg.hashsalt": "distillens", "svg.fonttype": "none"}


def draw(picture: Picture) -> Figure:
    """Return the picture as a matplotlib figure, axes for each panel; no global state is touched."""
    columns = min(picture.columns or len(picture.panels), len(picture.panels))
    rows = -(-len(picture.panels) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(picture.title, fontsize=11)
    if picture.caption:
        # Dollar signs in names of a recipe do not mark formulas.
        figure.supxlabel(picture.caption, fontsize=7.5, color="#555555", parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, picture.panels, strict=False):
        _draw_panel(figure, axes, panel)
    for axes in grid[len(picture.panels) :]:
        axes.set_visible(False)
    return figure


def svg_bytes(picture: Picture) -> bytes:
    """Return the picture as SVG, the same bytes for the same picture."""
    return _save(picture, "svg", metadata={"Date": None})


def png_bytes(picture: Picture, dots_per_inch: int = 150) -> bytes:
    """Return the picture as PNG."""
    return _save(picture, "png", dpi=dots_per_inch)


def _save(picture: Picture, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(_STABLE):
        draw(picture).savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def _draw_panel(figure: Figure, axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(panel.x_label, fontsize=9)
    axes.set_ylabel(panel.y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_xscale(panel.x_scale)
    axes.set_yscale(panel.y_scale)
    if panel.limits is not None:
        axes.set(xlim=panel.limits, ylim=panel.limits)
    if panel.x_ticks:
        axes.set_xticks(panel.x_ticks, [f"{tick:g}" for tick in panel.x_ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    if panel.surface is not None:
        _draw_surface(figure, axes, panel.surface)
    for mark in panel.marks:
        _draw_mark(axes, mark)
    for curve in panel.curves:
        _draw_curve(axes, curve)
    if panel.y_from_zero:
        axes.set_ylim(bottom=0)
    if any(part.label for part in (*panel.curves, *panel.marks)):
        axes.legend(fontsize=6.5, frameon=False)


def _draw_mark(axes: Axes, mark: Mark) -> None:
    if mark.ends > mark.begins:
        axes.axvspan(mark.begins, mark.ends, color="#8a8f98", alpha=0.25, label=mark.label)
    else:
        axes.axvline(mark.begins, color="#1c2430", lw=1, ls=(0, (4, 3)), label=mark.label)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    colour = colour_of(curve.colour)
    if curve.band is not None:
        axes.fill_between(curve.x_M, *curve.band, color=colour, alpha=0.18, lw=0)
    if curve.style in ("points", "dots"):
        size, opacity = (2, 0.4) if curve.style == "points" else (4, 0.8)
        # Many points as vectors would take megabytes.
        axes.plot(
            curve.x_M,
            curve.y_M,
            _MARKERS[curve.symbol or "circle"],
            ls="none",
            ms=size,
            alpha=opacity,
            color=colour,
            label=curve.label,
            rasterized=True,
        )
    else:
        axes.plot(
            curve.x_M,
            curve.y_M,
            _STYLES[curve.style],
            color=colour,
            marker=None if curve.symbol is None else _MARKERS[curve.symbol],
            ms=4,
            lw=3 if curve.style == "thick" else 1.4,
            label=curve.label,
        )


def _draw_surface(figure: Figure, axes: Axes, surface: Surface) -> None:
    values = np.ma.masked_invalid(surface.values_RQ)
    if surface.centred:
        reach = float(np.abs(values).max()) or 1.0
        # Reversed, so that red is the higher value.
        norm, colours = Normalize(-reach, reach), "RdBu_r"
    else:
        low, high = surface.limits or (float(values.min()), float(values.max()))
        norm, colours = Normalize(low, high), "viridis"
    mesh = axes.pcolormesh(
        surface.x_Q, surface.y_R, values, norm=norm, cmap=colours, shading="nearest", rasterized=True
    )  # fmt: skip
    bar = figure.colorbar(mesh, ax=axes, shrink=0.85)
    bar.set_label(surface.label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if surface.centred and values.min() < 0 < values.max():
        axes.contour(surface.x_Q, surface.y_R, values, levels=[0.0], colors="black", linewidths=0.8)
