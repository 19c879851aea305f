"""The section on complexity: curves with one panel per measure, and properties of the Grams."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from distillens.report.draw import PageFigure, page_figure
from distillens.report.figures.complexity import (
    MEASURES,
    Measure,
    complexity_panel,
    measured,
    missing_epochs,
    series,
    target_sets,
    target_title,
)
from distillens.report.figures.temperature import (
    over_temperatures,
    temperature_measures,
    temperature_panel,
)
from distillens.report.tables.grid import Grid
from distillens.report.tables.profile import (
    profile_headings,
    profile_lines,
    profile_rows,
    teacher_kernel_line,
)
from distillens.report.tables.text import number, plural
from distillens.results.complexity import ComplexityCurves


def complexity_parts(curves: Sequence[ComplexityCurves]) -> list[dict[str, Any]]:
    """Return what the section's template shows of each student."""
    return [_part(one, index) for index, one in enumerate(curves)]


def _part(curves: ComplexityCurves, index: int) -> dict[str, Any]:
    shown = [measure for measure in MEASURES if measured(curves, measure)]
    figures = []
    for measure in shown:
        epochs = missing_epochs(curves, measure)
        gap = f" ∞ at epoch {_some(epochs)}, not plotted." if epochs else ""
        identity, words = f"complexity-{index}-{measure.field}", f"{measure.formula}.{gap}"
        figures.append(page_figure(identity, complexity_panel(curves, measure), words))
    profile = curves.profile
    return {
        "curves": curves,
        "student": curves.student,
        "title": f"{curves.student}, seed {curves.seed}, {curves.split} examples",
        "figures": figures,
        "tables": [values_grid(curves, measure) for measure in shown],
        "order": order_remark(curves),
        "missing": [measure.short for measure in MEASURES if measure not in shown],
        "caption": _caption(curves),
        "temperatures": _temperatures(curves, index),
        "profile": profile and Grid(list(profile_headings(profile)), profile_rows(profile)),
        "profile_lines": [] if profile is None else profile_lines(profile),
        "teacher_kernel": curves.teacher_kernel and teacher_kernel_line(curves.teacher_kernel),
        "spectra": sorted(curves.spectra, key=lambda spectrum: spectrum.epoch),
    }


def values_grid(curves: ComplexityCurves, measure: Measure) -> Grid:
    """Return the values of a figure as a table, one row for each epoch."""
    names = target_sets(curves)
    values = {name: dict(series(curves, name, measure)) for name in names}
    epochs = sorted({point.epoch for point in curves.points})
    rows = [[str(epoch), *(number(values[name].get(epoch)) for name in names)] for epoch in epochs]
    return Grid(["epoch", *map(target_title, names)], rows, f"{measure.title}: {measure.formula}.")


def order_remark(curves: ComplexityCurves) -> str:
    """Return a sentence on targets whose order changes under normalisation; empty if none do."""
    by_field = {measure.field: measure for measure in MEASURES}
    for plain, divided in (("adjusted", "normalised"), ("adjusted_star", "normalised_star")):
        measures = (by_field[plain], by_field[divided])
        names = [name for name in target_sets(curves) if name != "random labels"]
        values = {
            (name, measure.field): dict(series(curves, name, measure))
            for name in names
            for measure in measures
        }
        epochs = [
            epoch
            for epoch in sorted({point.epoch for point in curves.points})
            if all(math.isfinite(one.get(epoch, math.nan)) for one in values.values())
        ]
        if not names or not epochs:
            continue
        last = epochs[-1]
        for first, second in itertools.combinations(names, 2):
            signs = [
                np.sign(values[first, field][last] - values[second, field][last])
                for field in (plain, divided)
            ]
            if signs[0] * signs[1] < 0:
                lower, higher = (first, second) if signs[0] < 0 else (second, first)
                return (
                    f"The order depends on the normalisation: at epoch {last}, values of "
                    f"{target_title(lower)} are below those of {target_title(higher)} by "
                    f"{measures[0].sentence} and above them by {measures[1].sentence}, because these "
                    "targets differ in size."
                )
    return ""


def _temperatures(curves: ComplexityCurves, index: int) -> list[PageFigure]:
    return [
        page_figure(
            f"temperature-{index}-{measure.field}",
            temperature_panel(found, measure),
            f"{measure.formula}.",
        )
        for measure in temperature_measures(curves)
        if (found := over_temperatures(curves, measure)) is not None
    ]


def _caption(curves: ComplexityCurves) -> str:
    parts = [
        f"{curves.examples:,} {curves.split} examples; {curves.form} kernel; {curves.coding}; "
        f"τ = {curves.temperature:g}.",
    ]
    if "random labels" in target_sets(curves):
        parts.append(f"Random labels: mean of {plural(curves.random_draws, 'draw')}.")
    if curves.points:
        residual = max(point.value.residual for point in curves.points)
        ridge = max(point.value.ridge for point in curves.points)
        parts.append(
            f"Largest relative residual of a solve: {number(residual, 2)}; largest ridge "
            f"added to the diagonal: {number(ridge)}."
        )
    return " ".join(parts)


def _some(epochs: list[int]) -> str:
    shown = ", ".join(str(epoch) for epoch in epochs[:6])
    return shown if len(epochs) <= 6 else f"{shown} and {len(epochs) - 6} more"
