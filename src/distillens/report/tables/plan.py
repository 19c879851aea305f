"""The plan of a run, for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distillens.report.tables.check import disk_line, size
from distillens.report.tables.text import duration, plural, printable
from distillens.results.check import PlannedWork, RunPlan


def plan_text(plan: RunPlan) -> Group:
    """Return what a run takes: a table of its parts, then time, memory and disk space."""
    heading = f"{printable(plan.recipe)}, {printable(plan.folder)}"
    parts: list[RenderableType] = [Text(heading, style="bold"), _table(plan.work)]
    parts += [Text(line) for line in _lines(plan)]
    parts += [Text(f"problem: {printable(problem)}", style="red") for problem in plan.problems]
    return Group(*parts)


def _table(work: tuple[PlannedWork, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("part", "networks", "epochs", "time", "left", "estimated from"):
        right = column in ("networks", "epochs", "time", "left")
        table.add_column(column, justify="right" if right else "left", no_wrap=right)
    for part in work:
        table.add_row(
            printable(part.name),
            f"{part.finished} of {part.networks}" if part.networks else "",
            f"{part.epochs_done:,} of {part.epochs:,}" if part.epochs else "",
            duration(part.seconds),
            duration(part.seconds_left),
            part.measured_from,
        )
    return table


def _lines(plan: RunPlan) -> list[str]:
    threads = f"{plan.device} with {plural(plan.threads, 'thread')}"
    many = f", {plan.workers} students at once, each timed alone" if plan.workers > 1 else ""
    if not plan.begun:
        left = "all of it is left"
    elif plan.seconds_left:
        left = f"about {duration(plan.seconds_left)} are left"
    else:
        left = "nothing is left"
    memory = f"memory: {size(plan.estimate.memory)} were used while steps were timed"
    return [
        f"time: about {duration(plan.seconds)} on {threads}{many}; {left}",
        memory + (f", by each of {plan.workers} processes" if plan.workers > 1 else ""),
        disk_line(plan.estimate),
        f"the folder holds {size(plan.disk_there)}; up to {size(plan.disk_left)} are still needed",
    ]
