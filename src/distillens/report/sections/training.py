"""The section on training: loss and accuracy of each network over its epochs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillens.report.contents import Contents
from distillens.report.draw import page_figure
from distillens.report.tables.grid import Grid
from distillens.report.tables.text import listed, number, percent
from distillens.results.figure import Curve, Panel
from distillens.results.training import Cell
from distillens.runs.open import OpenRun

_COLUMNS = ("epoch", "loss", "accuracy", "learning_rate")


def training_part(contents: Contents, colours: dict[str, str]) -> dict[str, Any]:
    """Return what the section's template shows: the first seed of every supervision and the teacher."""
    if contents.run is None:
        return {"figures": [], "table": None, "missing": ""}
    firsts: dict[int, Cell] = {}
    for cell in contents.result.cells:
        firsts.setdefault(cell.position, cell)
    histories, missing = {}, []
    for cell in firsts.values():
        found = read_history(contents.run, cell)
        if found is None:
            missing.append(_name(cell))
        else:
            histories[cell.position] = found
    shown = {
        position: {
            "epoch": columns["epoch"],
            "accuracy": 100 * columns["accuracy"],
            "loss": columns["loss"] / (columns["loss"][0] or np.nan),
        }
        for position, columns in histories.items()
    }
    curves = {
        key: tuple(
            Curve(
                columns["epoch"],
                columns[key],
                _name(firsts[position]),
                colours.get(firsts[position].supervision, 0),
                "dashed" if firsts[position].id.is_teacher else "solid",
            )
            for position, columns in shown.items()
            if np.isfinite(columns[key]).any()
        )
        for key in ("accuracy", "loss")
    }
    panels = [
        Panel(
            "Training accuracy", "epoch", "accuracy on training examples (%)", curves["accuracy"]
        ),
        Panel("Training loss", "epoch", "loss / loss of the first epoch", curves["loss"]),
    ]
    figures = [
        page_figure(f"training-{place}", panel, words)
        for place, (panel, words) in enumerate(zip(panels, _WORDS, strict=True))
        if panel.curves
    ]
    rows = [
        [
            _name(firsts[position]),
            f"{columns['epoch'][-1]:g}",
            percent(float(columns["accuracy"][-1]), 1),
            number(float(columns["loss"][-1])),
            number(float(columns["learning_rate"].max())),
        ]
        for position, columns in histories.items()
    ]
    headings = ["network", "epochs", "training accuracy %", "loss", "largest learning rate"]
    caption = "Values of the last epoch, averaged over its steps while the weights were changing."
    return {
        "figures": figures,
        "table": Grid(headings, rows, caption) if rows else None,
        "missing": listed(missing),
    }


_WORDS = (
    "on given labels and augmented examples, while the weights change",
    "relative to the first epoch, because losses of different supervisions have different units",
)


def _name(cell: Cell) -> str:
    return "teacher" if cell.id.is_teacher else f"{cell.supervision}, seed {cell.seed}"


def read_history(run: OpenRun, cell: Cell) -> dict[str, NDArray[np.float64]] | None:
    """Return the columns of a network's training history; None if it is missing or damaged."""
    path = run.network(cell.id).history
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        columns = {
            key: np.array([np.nan if line[key] is None else line[key] for line in lines], float)
            for key in _COLUMNS
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return columns if lines else None
