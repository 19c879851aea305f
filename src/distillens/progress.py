"""Progress bars on the terminal, with the remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

Advance = Callable[[int], None]


class Progress(Protocol):
    """Opens a bar, given a title, the number of steps and the number of steps done."""

    def __call__(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Return a context whose value advances the bar by a number of steps."""
        ...


def silent(title: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
    """Show nothing."""
    return nullcontext(lambda steps: None)


def terminal(console: Console) -> Progress:
    """Show bars on a console; if it is not a terminal, print one line when a bar is done.

    Bars may be open at the same time; they share one display, of which a console has only one.
    """
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    @contextmanager
    def show(title: str, total: int, done: int = 0) -> Iterator[Advance]:
        # Names from a recipe are plain text, neither markup nor escape sequences.
        shown = escape("".join(c if c.isprintable() else "?" for c in title))
        if not bars.tasks:
            bars.start()
        task = bars.add_task(shown, total=total, completed=done)
        began = time.monotonic()
        try:
            yield lambda steps: bars.advance(task, steps)
        finally:
            bars.remove_task(task)
            if not bars.tasks:
                bars.stop()
        elapsed = time.monotonic() - began
        console.print(f"[green]✓[/] {shown}  [dim]{elapsed:.1f} s[/]", highlight=False)

    return show
