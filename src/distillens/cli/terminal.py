"""Terminal output of all commands."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table

from distillens.progress import Progress, terminal

console = Console()
"""Standard output."""

error_console = Console(stderr=True)
"""Standard error, where progress goes when standard output is JSON."""


def prepare_streams() -> None:
    """Make standard output and error accept every character in any encoding.

    A character that the encoding lacks is written as an escape, for example ``τ`` as ``\\u03c4``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show(*parts: RenderableType) -> None:
    """Print tables and paragraphs; a table that does not fit is printed at its smallest width.

    Rich would drop the columns that do not fit. The terminal wraps lines that are too long for it.
    """
    for part in parts:
        if isinstance(part, Group):
            show(*part.renderables)
            continue
        smallest = _uncut_width(part) if isinstance(part, Table) else 0
        fits = smallest <= console.width
        (console if fits else Console(width=smallest)).print(part)


def show_line(*lines: str) -> None:
    """Print lines of plain text without wrapping, markup or emoji names."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)


def show_json(text: str) -> None:
    """Print the JSON text of a result to standard output.

    Characters that the encoding lacks are written as JSON escapes.
    """
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=1) + "\n"
    sys.stdout.write(text)


def show_result(result: Any, made: Callable[[Any], RenderableType], as_json: bool) -> None:
    """Print a result as JSON, or what ``made`` makes of it for the terminal."""
    from distillens.results.base import to_json

    if as_json:
        show_json(to_json(result))
    else:
        show(made(result))


def progress_bars(as_json: bool = False) -> Progress:
    """Return progress bars; with JSON on standard output they are shown on standard error."""
    return terminal(error_console if as_json else console)


def smallest_width(table: RenderableType) -> int:
    """Return the smallest width at which rich does not break words."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).minimum


def _uncut_width(table: Table) -> int:
    """Return the smallest width at which rich neither truncates words nor drops columns."""
    unbounded = console.options.update(max_width=10_000)
    for column in table.columns:
        sizes = [
            Measurement.get(console, unbounded, cell) for cell in (column.header, *column.cells)
        ]
        column.min_width = max(
            (size.maximum if column.no_wrap else size.minimum for size in sizes), default=0
        )
    # Rich omits some of the padding between columns from this sum.
    return smallest_width(table) + 2 * len(table.columns)
