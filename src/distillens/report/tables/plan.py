"""The check of a recipe and the plan of a run, for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text

from distillens.report.tables.grid import grid_of, terminal_table
from distillens.report.tables.text import count, duration, plural, printable
from distillens.results.check import CheckedData, CheckedNetwork, RecipeCheck, RunEstimate, RunPlan

CLASSES_SHOWN = 10

WORDS = {"train": "training"}


def check_text(check: RecipeCheck) -> Group:
    """Return what was found out about a recipe, problems first."""
    parts: list[RenderableType] = [Text(printable(check.recipe), style="bold")]
    parts += [Text(f"problem: {printable(problem)}", style="red") for problem in check.problems]
    parts += [Text(f"note: {printable(note)}", style="yellow") for note in check.notes]
    if check.data is not None:
        parts += [Text(line) for line in _data(check.data)]
    parts += [Text(_network(network)) for network in check.networks]
    if check.supervisions:
        titles = ", ".join(printable(title) for title, _ in check.supervisions)
        networks = sum(seeds for _, seeds in check.supervisions)
        parts.append(Text(f"students: {plural(networks, 'network')}: {titles}"))
    if check.estimate is not None:
        parts += [Text(line) for line in _estimate(check.estimate)]
    found = plural(len(check.problems), "problem") if check.problems else "no problem"
    parts.append(Text(f"{found} found", style="red" if check.problems else "green"))
    return Group(*parts)


def _data(data: CheckedData) -> list[str]:
    where = f" from {printable(data.path)}" if data.path else ""
    lines = [
        f"data: {data.source}{where}: {data.train:,} training, {data.validation:,} validation and "
        f"{data.test:,} test examples of shape {' x '.join(map(str, data.input_shape))}"
    ]
    names = ", ".join(printable(name) for name in data.classes[:CLASSES_SHOWN])
    more = f" and {len(data.classes) - CLASSES_SHOWN} more" * (len(data.classes) > CLASSES_SHOWN)
    smallest, largest = min(data.train_counts), max(data.train_counts)
    more_examples = f" to {largest:,}" * (largest > smallest)
    lines.append(
        f"classes: {len(data.classes)}: {names}{more}; "
        f"{smallest:,}{more_examples} training examples each"
    )
    lines.append(f"normalisation: {printable(data.normalisation)}")
    return lines


def _network(network: CheckedNetwork) -> str:
    line = f"{network.role}: {printable(network.model)}"
    if network.parameters:
        line += f", {count(network.parameters)} parameters"
    line += f", {printable(network.origin)}"
    if network.seconds_per_step is not None:
        step = 1000 * network.seconds_per_step
        line += f", {plural(network.epochs, 'epoch')}, {step:,.1f} ms per step"
    if network.accuracies:
        shares = [
            f"{100 * share:.1f} % of {WORDS.get(split, split)} examples"
            for split, share in network.accuracies
        ]
        line += f"; right on {' and '.join(shares)}"
    return line


def _estimate(estimate: RunEstimate) -> list[str]:
    parts = ", ".join(f"{printable(name)} {duration(seconds)}" for name, seconds in estimate.parts)
    return [
        f"time: about {duration(estimate.seconds)} on {estimate.device} ({parts}; from "
        "training steps that were timed now)",
        *_resources(estimate),
    ]


def plan_text(plan: RunPlan) -> Group:
    """Return what a run takes: a table of its parts, then time, memory and disk space."""
    work = grid_of(
        zip(plan.work),
        {
            "part": lambda part: part.name,
            "networks": lambda part: f"{part.finished} of {part.networks}" if part.networks else "",
            "epochs": lambda part: (
                f"{part.epochs_done:,} of {part.epochs:,}" if part.epochs else ""
            ),
            "time": lambda part: duration(part.seconds),
            "left": lambda part: duration(part.seconds_left),
            "estimated from": lambda part: part.measured_from,
        },
    )
    table = terminal_table(work, left=(0, 5))
    for column in table.columns[1:5]:
        column.no_wrap = True
    heading = Text(f"{printable(plan.recipe)}, {printable(plan.folder)}", style="bold")
    parts: list[RenderableType] = [heading, table, *(Text(line) for line in _lines(plan))]
    parts += [Text(f"problem: {printable(problem)}", style="red") for problem in plan.problems]
    return Group(*parts)


def _lines(plan: RunPlan) -> list[str]:
    threads = f"{plan.device} with {plural(plan.threads, 'thread')}"
    many = f", {plan.workers} students at once, each timed alone" if plan.workers > 1 else ""
    if not plan.begun:
        left = "all of it is left"
    elif plan.seconds_left:
        left = f"about {duration(plan.seconds_left)} are left"
    else:
        left = "nothing is left"
    return [
        f"time: about {duration(plan.seconds)} on {threads}{many}; {left}",
        *_resources(plan.estimate, plan.workers),
        f"the folder holds {decimal(plan.disk_there)}; up to {decimal(plan.disk_left)} are still needed",
    ]


def _resources(estimate: RunEstimate, workers: int = 1) -> list[str]:
    """Return the memory and the disk space of a run, a line each."""
    each = f", by each of {workers} processes" if workers > 1 else ""
    trials = f" (and {decimal(estimate.trials)} while learning rates are selected)"
    return [
        f"memory: {decimal(estimate.memory)} were used while steps were timed{each}",
        f"disk: {decimal(estimate.checkpoints)} of checkpoints, {decimal(estimate.states)} of training "
        f"states, up to {decimal(estimate.cache)} of teacher logits and {decimal(estimate.outputs)} of "
        f"outputs and report{trials if estimate.trials else ''}; {decimal(estimate.free_disk)} are free",
    ]
