"""Progress on the terminal, with the time that remains."""

from __future__ import annotations

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
    """Opens a bar: a title, how many steps there are and how many are done."""

    def __call__(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Return a context whose value advances the bar by a number of steps."""
        ...


def silent(title: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
    """Show nothing."""
    return nullcontext(lambda steps: None)


def terminal(console: Console) -> Progress:
    """Show bars on a console; where it is no terminal, one line when a bar is done."""

    @contextmanager
    def show(title: str, total: int, done: int = 0) -> Iterator[Advance]:
        # A name out of a recipe is text, no markup and no escape sequence.
        shown = escape("".join(c if c.isprintable() else "?" for c in title))
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
        with bars:
            task = bars.add_task(shown, total=total, completed=done)
            yield lambda steps: bars.advance(task, steps)
            elapsed = bars.tasks[0].elapsed or 0.0
        console.print(f"[green]✓[/] {shown}  [dim]{elapsed:.1f} s[/]", highlight=False)

    return show
