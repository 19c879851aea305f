"""Complexity values for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from distillens.report.figures.complexity import MEASURES, target_title
from distillens.report.figures.temperature import REFERENCES, over_temperatures
from distillens.report.tables.grid import Grid, terminal_table
from distillens.report.tables.text import number, printable
from distillens.results.complexity import CertifiedComplexity, ComplexityCurves, KernelComplexity


def certified_table(result: KernelComplexity) -> Table:
    """Return one row a target set, easiest first; what is not determined is marked."""
    with_ridge = f" (ridge {number(result.with_ridge or 0.0)})"
    rows = _sorted_rows(result.targets) + _sorted_rows(result.uncertified, with_ridge)
    headings = ["targets", "adjusted", "adjusted*", "normalised", "YᵀK⁻¹Y", "interval"]
    ridge = f"ridge {number(result.ridge)}, " if result.ridge else "no ridge, "
    notes = [f"{result.method}, {ridge}Tr K {number(result.trace)}, {result.seconds:.1f} s"]
    return terminal_table(
        Grid(headings, rows),
        title=f"complexity of output {result.outputs} on {result.examples:,} examples",
        caption="\n".join([*notes, *map(printable, result.notes)]),
    )


def _sorted_rows(targets: Sequence[CertifiedComplexity], more: str = "") -> list[list[str]]:
    return [
        [
            row.name + more,
            *map(number, (row.adjusted, row.adjusted_star, row.normalised, row.plain)),
            f"[{number(row.plain_low)}, {number(row.plain_high)}]"
            + ("" if row.determined else " undetermined"),
        ]
        for row in sorted(targets, key=lambda row: row.adjusted_star)
    ]


def curves_table(curves: ComplexityCurves) -> Table:
    """Return the adjusted complexity of each target set at each epoch."""
    names = list(dict.fromkeys(point.targets for point in curves.points))
    values = {(point.epoch, point.targets): point.value.adjusted for point in curves.points}
    rows = [
        [str(epoch), *(number(values.get((epoch, name))) for name in names)]
        for epoch in dict.fromkeys(point.epoch for point in curves.points)
    ]
    lines = [f"{curves.form} kernel, targets {curves.coding}, τ = {curves.temperature:g}"]
    return terminal_table(
        Grid(["epoch", *names], rows),
        title=f"adjusted complexity for {curves.student}, seed {curves.seed}, on "
        f"{curves.examples:,} {curves.split} examples",
        caption="\n".join([*lines, *map(printable, curves.notes)]),
    )


def temperature_table(curves: ComplexityCurves) -> Table:
    """Return the final teacher's complexity at each temperature, below that of the references."""
    shown = [measure for measure in MEASURES if over_temperatures(curves, measure) is not None]
    found = [over_temperatures(curves, measure) for measure in shown]
    rows = [
        [target_title(name), *(number(each.references.get(name)) for each in found if each)]
        for name in REFERENCES
    ]
    for point in sorted(curves.temperatures, key=lambda point: point.temperature):
        values = [getattr(point.value, measure.field) for measure in shown]
        rows.append([f"τ = {point.temperature:g}", *map(number, values)])
    return terminal_table(
        Grid(["targets", *(measure.short for measure in shown)], rows),
        title=f"complexity of the final teacher over temperatures, for {curves.student} at epoch "
        f"{curves.temperatures[0].epoch}",
    )
