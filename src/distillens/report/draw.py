"""Draw described pictures with Vega-Lite: in the page by Vega, as SVG and PNG by vl-convert."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import vl_convert
from numpy.typing import NDArray

from distillens.files.atomic import write_atomically
from distillens.report.palette import GREY, colour_of
from distillens.report.tables.text import printable
from distillens.results.figure import Curve, Mark, Panel, Picture, Scale, Surface

Spec = dict[str, Any]
Array = NDArray[np.float64]

_WIDTH, _HEIGHT = 330, 280
_LETTER = 6.0
"""Mean width of a letter of a caption, in the units of ``_WIDTH``."""

_DASHES = {"dashed": [7, 4], "dotted": [2, 3]}
_MARKS: Mapping[str, Spec] = {
    "solid": {"type": "line", "strokeWidth": 1.8, "clip": True},
    "dashed": {"type": "line", "strokeWidth": 1.8, "clip": True},
    "dotted": {"type": "line", "strokeWidth": 1.8, "clip": True},
    "thick": {"type": "line", "strokeWidth": 3.5, "clip": True},
    "points": {"type": "point", "filled": True, "size": 12, "fillOpacity": 0.45, "clip": True},
    "dots": {"type": "point", "filled": True, "size": 36, "fillOpacity": 0.85, "clip": True},
}
_SERIES = {"field": "series", "type": "nominal"}
_TIPS = [
    {"field": field, "type": "quantitative", "title": title, "format": ".4~g"}
    for field, title in (("0", "across"), ("1", "up"))
]
# Vega has no shape x; this is the outline of one in the square from -1 to 1.
_SHAPES = {"x": "M-1-.6L-.6-1L0-.4L.6-1L1-.6L.4 0L1 .6L.6 1L0 .4L-.6 1L-1 .6L-.4 0Z"}

_CONFIG: Spec = {
    "background": "white",
    "font": "DejaVu Sans, Liberation Sans, Arial, sans-serif",
    # Descriptions of each point for screen readers would triple the size of an SVG.
    "mark": {"aria": False},
    "view": {"stroke": "#d5dae1"},
    "axis": {
        "grid": True,
        "gridColor": "#e8ebef",
        "titleFontWeight": "normal",
        "titleFontSize": 12,
    },
    "title": {"fontSize": 12, "subtitleFontSize": 10.5, "subtitleColor": "#5c6675", "offset": 8},
}


class PageFigure(NamedTuple):
    """A figure of the page: its specification, and the words above it."""

    identity: str
    spec: Spec
    title: str
    words: str = ""
    examples: tuple[str, str] | None = None
    """The supervision and the split whose examples the points are; a click shows the example."""


def page_figure(
    identity: str,
    panel: Panel,
    words: str = "",
    title: str = "",
    height: int = 320,
    examples: tuple[str, str] | None = None,
) -> PageFigure:
    """Return a panel for the page, as wide as its column.

    Its axes can be dragged and zoomed, and a click in the legend emphasises a curve.
    """
    spec = panel_spec(panel)
    curves = spec["layer"][-1]["layer"]
    for curve in curves:
        shown = {"condition": {"param": "shown", "value": 1}, "value": 0.1}
        curve["encoding"]["opacity"] = shown
    # The first curve brings the legend, so the parameters belong to it. A wheel alone scrolls the page.
    curves[0]["layer"][0]["params"] = [
        {"name": "shown", "select": {"type": "point", "fields": ["series"]}, "bind": "legend"},
        {
            "name": "moved",
            "select": {"type": "interval", "zoom": "wheel![event.shiftKey]"},
            "bind": "scales",
        },
    ]
    fit = {"type": "fit", "contains": "padding"}
    size = {"width": "container", "height": height, "autosize": fit}
    return PageFigure(identity, spec | size, title or panel.title, words, examples)


def write_picture(picture: Picture, folder: Path, name: str) -> list[Path]:
    """Write a picture as ``<name>.svg`` and ``<name>.png`` and return the paths.

    The same picture gives the same bytes.
    """
    svg = svg_text(picture)
    written: dict[Path, str | bytes] = {
        folder / f"{name}.svg": svg,
        folder / f"{name}.png": vl_convert.svg_to_png(svg, scale=2),
    }
    for path, content in written.items():
        write_atomically(path, content)
    return list(written)


def svg_text(picture: Picture) -> str:
    """Return the picture as SVG, whose text remains text."""
    svg = vl_convert.vegalite_to_svg(picture_spec(picture), config=_CONFIG)
    # vl-convert counts the names of clip paths and gradients on from picture to picture.
    found = dict.fromkeys(re.findall(r"#((?:clip|gradient_)\d+)\)", svg))
    numbers = {name: f"part{number}" for number, name in enumerate(found)}
    pattern = r'(id="|#)((?:clip|gradient_)\d+)(?=[")])'
    return re.sub(pattern, lambda match: match[1] + numbers.get(match[2], match[2]), svg)


def picture_spec(picture: Picture) -> Spec:
    """Return the panels in rows of at most three, below the title and the caption."""
    count = len(picture.panels)
    columns = 2 if count == 4 else min(count, 3)
    letters = round(columns * (_WIDTH + 60) / _LETTER)
    panels = [
        panel_spec(panel)
        | {"width": _WIDTH, "height": _HEIGHT, "title": {"text": _lines(panel.title, 60)}}
        for panel in picture.panels
    ]
    title = {
        "text": _lines(picture.title, letters),
        "subtitle": _lines(picture.caption, letters),
        "anchor": "start",
        "fontSize": 15,
        "offset": 16,
    }
    independent = dict.fromkeys(("color", "shape", "strokeDash"), "independent")
    return {
        "title": title,
        "concat": panels,
        "columns": columns,
        "spacing": 32,
        "resolve": {"scale": independent},
    }


def panel_spec(panel: Panel) -> Spec:
    """Return a panel as a layered Vega-Lite specification without title and size."""
    named = _named(panel.curves)
    series = _series(named)
    layers = [] if panel.surface is None else _surface(panel.surface)
    layers += [_curve(name, curve, panel, series) for name, curve in named.items()]
    x = _field("0", panel.x_label, _scale(panel.x_scale, panel.limits))
    if panel.x_ticks:
        x["axis"] = {"values": list(panel.x_ticks)}
    y = _field("1", panel.y_label, _scale(panel.y_scale, panel.limits, panel.y_from_zero))
    marks = [layer for mark in panel.marks for layer in _mark(mark)]
    return {"layer": [*marks, {"layer": layers, "encoding": {"x": x, "y": y}}]}


def _named(curves: Sequence[Curve]) -> dict[str, Curve]:
    """Return the curves by names that differ; those without a label have a number as name."""
    named: dict[str, Curve] = {}
    for place, curve in enumerate(curves):
        label = printable(curve.label)
        named[f"{label} ({place})" if not label or label in named else label] = curve
    return named


def _series(named: Mapping[str, Curve]) -> dict[str, Spec]:
    """Return the channels that tell curves apart, with one legend of those that have a label."""
    labelled = [name for name, curve in named.items() if curve.label]
    legend = {"title": None, "values": labelled, "orient": "bottom", "columns": 2}
    legend |= {"labelLimit": 300, "symbolSize": 80}
    if not any(curve.symbol for curve in named.values()):
        # A line needs a long symbol to show its dashes.
        legend |= {"symbolSize": 300, "symbolType": "stroke"}
    ranges = {
        "color": [colour_of(curve.colour) for curve in named.values()],
        "strokeDash": [_DASHES.get(curve.style, [1, 0]) for curve in named.values()],
        "shape": [
            _SHAPES.get(curve.symbol or "", curve.symbol or "circle") for curve in named.values()
        ],
    }
    return {
        channel: {
            **_SERIES,
            "scale": {"domain": list(named), "range": values},
            "legend": legend if labelled else None,
        }
        for channel, values in ranges.items()
    }


def _curve(name: str, curve: Curve, panel: Panel, series: dict[str, Spec]) -> Spec:
    """Return the band, the line and the points of a curve, with data of its own.

    Parameters
    ----------
    series
        The channels of `_series`. The first curve that uses a channel takes its scale and its legend;
        Vega-Lite shares them with the curves after it.
    """
    ys = (curve.y_M, *(curve.band or ()))
    columns = [_written(curve.x_M, panel.x_scale), *(_written(y, panel.y_scale) for y in ys)]
    tooltip: Any = [{"field": "series", "title": "curve"}, *_TIPS] if curve.label else None
    encoding = {"color": series.pop("color", _SERIES)}
    mark = _MARKS[curve.style]
    layers: list[Spec] = []
    if mark["type"] == "line":
        dashes = {"strokeDash": series.pop("strokeDash", _SERIES), "order": {"value": None}}
        layers.append({"mark": mark, "encoding": dashes | {"tooltip": tooltip}})
        mark = _MARKS["dots"]
    if curve.band is not None:
        ends = {"y": _field("2", panel.y_label), "y2": {"field": "3"}}
        layers.append(
            {"mark": {"type": "area", "fillOpacity": 0.18, "clip": True}, "encoding": ends}
        )
    if curve.symbol is not None or curve.style in ("points", "dots"):
        shape = {"shape": series.pop("shape", _SERIES)}
        layers.append({"mark": mark, "encoding": shape | {"tooltip": tooltip}})
    return {
        "data": {"values": [list(row) for row in zip(*columns, strict=True)]},
        "transform": [{"calculate": json.dumps(name), "as": "series"}],
        "encoding": encoding,
        "layer": layers,
    }


def _written(values_M: Array, scale: Scale) -> list[float | None]:
    """Return numbers with four digits; those that the axis cannot show are None and break a line."""
    return [
        float(f"{value:.4g}") if np.isfinite(value) and (scale == "linear" or value > 0) else None
        for value in values_M.tolist()
    ]


def _mark(mark: Mark) -> list[Spec]:
    """Return a vertical line or a shaded period, and its label."""
    begins, ends = ({"datum": at, "type": "quantitative"} for at in (mark.begins, mark.ends))
    top = {"x": begins, "y": {"value": 0}}
    if mark.ends > mark.begins:
        shape: Spec = {"type": "rect", "color": GREY, "opacity": 0.25}
        encoding = top | {"x2": ends, "y2": {"value": "height"}}
    else:
        shape = {"type": "rule", "color": GREY, "strokeDash": [5, 4], "strokeWidth": 1.5}
        encoding = top | {"y2": {"value": "height"}}
    words = {"type": "text", "align": "left", "dx": 4, "dy": 8, "color": GREY}
    label = top | {"text": {"value": printable(mark.label)}}
    parts = [(shape, encoding), (words, label)][: 1 + bool(mark.label)]
    return [{"data": {"values": [{}]}, "mark": one, "encoding": two} for one, two in parts]


def _surface(surface: Surface) -> list[Spec]:
    """Return the cells of a map, and the lines between signs on a centred scale."""
    values = surface.values_RQ
    if surface.limits is None:
        reach = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
        scale: Spec = {"scheme": "redblue", "reverse": True, "domain": [-reach, reach]}
    else:
        scale = {"scheme": "viridis", "domain": list(surface.limits)}
    x, y = _edges(surface.x_Q), _edges(surface.y_R)
    cells = [
        [x[q], y[r], x[q + 1], y[r + 1], float(values[r, q])]
        for r, q in np.argwhere(np.isfinite(values)).tolist()
    ]
    legend = {"orient": "bottom", "gradientLength": _WIDTH - 60, "titleLimit": _WIDTH}
    colour = _field("4", surface.label, scale) | {"legend": legend}
    ends = {"x2": {"field": "2"}, "y2": {"field": "3"}}
    layers: list[Spec] = [
        {"data": {"values": cells}, "mark": "rect", "encoding": ends | {"color": colour}}
    ]
    if surface.limits is None:
        sign_RQ = np.where(np.isfinite(values), np.sign(values), 0.0)
        sideways = np.argwhere(sign_RQ[:, :-1] * sign_RQ[:, 1:] < 0).tolist()
        upwards = np.argwhere(sign_RQ[:-1] * sign_RQ[1:] < 0).tolist()
        border = [[x[q + 1], y[r], x[q + 1], y[r + 1]] for r, q in sideways]
        border += [[x[q], y[r + 1], x[q + 1], y[r + 1]] for r, q in upwards]
        layers.append({"data": {"values": border}, "mark": "rule", "encoding": ends})
    return layers


def _edges(centres: Array) -> list[float]:
    """Return the edges of cells around increasing centres, in the middle between neighbours."""
    middles = (centres[:-1] + centres[1:]) / 2
    first, last = 2 * centres[0] - middles[0], 2 * centres[-1] - middles[-1]
    if centres[0] > 0 >= first:
        # A logarithmic axis has no place for it.
        first = centres[0] / 2
    return [float(edge) for edge in (first, *middles, last)]


def _field(name: str, title: str | None = None, scale: Spec | None = None) -> Spec:
    found: Spec = {"field": name, "type": "quantitative"}
    if title is not None:
        found["title"] = printable(title)
    return found if scale is None else found | {"scale": scale}


def _scale(kind: Scale, limits: tuple[float, float] | None, from_zero: bool = False) -> Spec:
    if kind == "log":
        return {"type": "log", "nice": False, "padding": 6}
    if limits is not None:
        return {"domain": list(limits), "nice": False}
    return {"zero": from_zero}


def _lines(text: str, width: int) -> list[str]:
    """Return a text in lines that fit."""
    return [line for part in text.splitlines() for line in textwrap.wrap(printable(part), width)]
