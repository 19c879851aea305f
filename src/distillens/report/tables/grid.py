"""Tables of text that the terminal, Markdown and the HTML page show alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def grid_of(
    items: Iterable[Sequence[Any]], columns: Mapping[str, Callable[..., str]], caption: str = ""
) -> Grid:
    """Return a grid with one row per item.

    ``columns`` map headings to functions that make a cell of the values of an item; items of one value
    are given as ``zip(values)``.
    """
    rows = [[cell(*item) for cell in columns.values()] for item in items]
    return Grid([*columns], rows, caption)


def terminal_table(
    grid: Grid, *, title: str = "", caption: str = "", left: Collection[int] = (0,)
) -> Table:
    """Return a grid as a table for the terminal; ``left`` are the columns aligned to the left.

    The caption of the grid is not shown, but ``caption`` is.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title=Text(printable(title), style="bold") if title else None,
        title_justify="left",
        caption=Text(caption) if caption else None,
        caption_justify="left",
    )
    for place, heading in enumerate(grid.headings):
        table.add_column(Text(heading), justify="left" if place in left else "right")
    for row in grid.rows:
        # Text, not str: rich would read brackets in a name as markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def pipe_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str, left: int = 1
) -> str:
    """Return cells that are Markdown already as a pipe table, with a caption as a paragraph below.

    The first ``left`` columns are aligned to the left.
    """
    aligned = [":--"] * left + ["--:"] * (len(headings) - left)
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, aligned, *rows)]
    return "\n".join([*lines, "", markdown_text(caption), ""])


def markdown_text(text: str) -> str:
    """Return text as Markdown that shows it as it is."""
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for letter in "\\`*_[]|":
        escaped = escaped.replace(letter, f"\\{letter}")
    return escaped
