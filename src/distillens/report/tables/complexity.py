"""Complexity values for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from distillens.report.figures.complexity import MEASURES, target_title
from distillens.report.figures.temperature import REFERENCES, over_temperatures
from distillens.report.tables.text import DASH, number, printable
from distillens.results.complexity import CertifiedComplexity, ComplexityCurves, KernelComplexity


def certified_table(result: KernelComplexity) -> Table:
    """Return one row a target set, easiest first; what is not determined is marked."""
    table = plain_table(
        f"complexity of output {result.outputs} on {result.examples:,} examples",
        ("targets", "adjusted", "adjusted*", "normalised", "YᵀK⁻¹Y", "interval"),
    )
    for row in sorted(result.targets, key=lambda row: row.adjusted_star):
        _add(table, row)
    for row in sorted(result.uncertified, key=lambda row: row.adjusted_star):
        _add(table, row, f" (ridge {number(result.with_ridge or 0.0)})")
    ridge = f"ridge {number(result.ridge)}, " if result.ridge else "no ridge, "
    notes = [f"{result.method}, {ridge}Tr K {number(result.trace)}, {result.seconds:.1f} s"]
    table.caption = Text("\n".join([*notes, *map(printable, result.notes)]))
    return table


def curves_table(curves: ComplexityCurves) -> Table:
    """Return the adjusted complexity of each target set at each epoch."""
    names = list(dict.fromkeys(point.targets for point in curves.points))
    table = plain_table(
        f"adjusted complexity for {curves.student}, seed {curves.seed}, on {curves.examples:,} "
        f"{curves.split} examples",
        ("epoch", *names),
    )
    for epoch in dict.fromkeys(point.epoch for point in curves.points):
        found = {point.targets: point.value for point in curves.points if point.epoch == epoch}
        cells = []
        for name in names:
            value = found[name].adjusted if name in found else None
            cells.append(DASH if value is None else number(value))
        table.add_row(str(epoch), *cells)
    lines = [f"{curves.form} kernel, targets {curves.coding}, τ = {curves.temperature:g}"]
    table.caption = Text("\n".join([*lines, *map(printable, curves.notes)]))
    return table


def temperature_table(curves: ComplexityCurves) -> Table:
    """Return the final teacher's complexity at each temperature, below that of the references."""
    shown = [measure for measure in MEASURES if over_temperatures(curves, measure) is not None]
    found = {measure: over_temperatures(curves, measure) for measure in shown}
    epoch = curves.temperatures[0].epoch
    table = plain_table(
        f"complexity of the final teacher over temperatures, for {curves.student} at epoch {epoch}",
        ("targets", *(measure.short for measure in shown)),
    )
    for name in REFERENCES:
        values = [each.references.get(name) for each in found.values() if each is not None]
        table.add_row(target_title(name), *map(number, values))
    for point in sorted(curves.temperatures, key=lambda point: point.temperature):
        values = [getattr(point.value, measure.field) for measure in shown]
        table.add_row(f"τ = {point.temperature:g}", *map(number, values))
    return table


def _add(table: Table, row: CertifiedComplexity, more: str = "") -> None:
    mark = "" if row.determined else " undetermined"
    interval = f"[{number(row.plain_low)}, {number(row.plain_high)}]{mark}"
    values = (row.adjusted_star, row.normalised, row.plain)
    adjusted = DASH if row.adjusted is None else number(row.adjusted)
    table.add_row(Text(printable(row.name) + more), adjusted, *map(number, values), Text(interval))


def plain_table(title: str, headings: tuple[str, ...]) -> Table:
    """Return an empty table, its first column to the left."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(printable(title), style="bold"),
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place else "left")
    return table
