"""A table of text that the terminal and the HTML page show alike."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from distillens.report.tables.text import printable


@dataclass(frozen=True)
class Grid:
    """Headings, rows of cells, and a caption. The first column names the row."""

    headings: list[str]
    rows: list[list[str]]
    caption: str = ""


def terminal_table(grid: Grid) -> Table:
    """Return a grid as a table for the terminal, without its caption."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for place, heading in enumerate(grid.headings):
        table.add_column(Text(heading), justify="right" if place else "left")
    for row in grid.rows:
        # Text, not str: rich would read brackets in a name as markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table
