"""Draw a described panel with plotly, for the page."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from distillens.report.palette import GREY, colour_of
from distillens.report.tables.text import printable
from distillens.results.figure import Curve, Panel

_DASHES = {"solid": "solid", "thick": "solid", "dashed": "dash", "dotted": "dot"}


def interactive(panel: Panel, legend: bool = True) -> str:
    """Return the JSON of a panel as a plotly figure; check boxes of the page switch its keys."""
    figure = go.Figure()
    for curve in panel.curves:
        for trace in _traces(curve):
            figure.add_scatter(**trace)
    for mark in panel.marks:
        if mark.ends > mark.begins:
            figure.add_vrect(x0=mark.begins, x1=mark.ends, fillcolor=GREY, opacity=0.25)
        else:
            figure.add_vline(x=mark.begins, line={"color": GREY, "dash": "dash", "width": 1.5})
    axes: list[dict[str, Any]] = [
        {"title": {"text": text}, "type": scale, "zeroline": False}
        for text, scale in ((panel.x_label, panel.x_scale), (panel.y_label, panel.y_scale))
    ]
    if panel.x_ticks:
        axes[0] |= {"tickvals": panel.x_ticks, "ticktext": [f"{tick:g}" for tick in panel.x_ticks]}
    if panel.y_scale == "log":
        axes[1]["tickvals"] = _log_ticks(panel)
    elif panel.y_from_zero:
        axes[1]["rangemode"] = "tozero"
    if panel.limits is not None:
        low, high = panel.limits
        # The same ticks on both axes, at most nine of them.
        step = next((step for step in (0.5, 1, 2, 5, 10, 20) if high - low <= 9 * step), 50)
        for axis in axes:
            axis |= {"range": [low, high], "tick0": 0, "dtick": step}
    figure.update_layout(
        template="none",
        showlegend=legend,
        margin={"l": 54, "r": 12, "t": 26, "b": 46},
        hovermode="closest",
        xaxis=axes[0],
        yaxis=axes[1],
        legend={"orientation": "h", "y": 1.12},
    )
    return figure.to_json(validate=False) or "{}"


def _traces(curve: Curve) -> list[dict[str, Any]]:
    colour = colour_of(curve.colour)
    trace: dict[str, Any] = {
        "x": curve.x_M, "y": curve.y_M, "showlegend": bool(curve.label),
        # plotly reads tags in labels, so a label is escaped.
        "name": html.escape(printable(curve.label)),
    }  # fmt: skip
    if curve.key:
        trace["legendgroup"] = curve.key
    if not curve.label:
        trace["hoverinfo"] = "skip"
    else:
        trace["hovertemplate"] = "%{x:.4g}: %{y:.4g}<extra>%{fullData.name}</extra>"
    if curve.style in ("points", "dots"):
        size, opacity = (4, 0.42) if curve.style == "points" else (7, 0.85)
        marker = {
            "color": colour,
            "symbol": curve.symbol or "circle",
            "size": size,
            "opacity": opacity,
        }
        # Half of the digits are enough for many points, and keep the page small.
        trace["x"], trace["y"] = curve.x_M.astype(np.float32), curve.y_M.astype(np.float32)
        return [{**trace, "mode": "markers", "marker": marker}]
    width = 3.5 if curve.style == "thick" else 2
    line = {"color": colour, "width": width, "dash": _DASHES[curve.style]}
    # A line breaks at None; an array with NaN would be written as bytes.
    trace["x"], trace["y"] = (
        curve.x_M.tolist(),
        [None if np.isnan(v) else v for v in curve.y_M.tolist()],
    )
    found = [{**trace, "mode": "lines", "line": line}]
    if curve.symbol is not None:
        marker = {"color": colour, "symbol": curve.symbol, "size": 6}
        found[0] |= {"mode": "lines+markers", "marker": marker}
    if curve.band is not None:
        low_M, high_M = curve.band
        known = np.isfinite(low_M) & np.isfinite(high_M)
        x_M = curve.x_M[known]
        red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
        found.insert(
            0,
            {
                "x": np.concatenate([x_M, x_M[::-1]]),
                "y": np.concatenate([low_M[known], high_M[known][::-1]]),
                "fill": "toself", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip",
                "fillcolor": f"rgba({red},{green},{blue},0.18)", "showlegend": False,
            },
        )  # fmt: skip
    return found


def _log_ticks(panel: Panel) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten around the values; plotly would write 20 as "2"."""
    values = np.concatenate([curve.y_M for curve in panel.curves])
    low, high = np.log10(np.nanmin(values)), np.log10(np.nanmax(values))
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
