"""A recipe's check, for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from distillens.report.tables.text import count, duration, plural, printable
from distillens.results.check import CheckedData, CheckedNetwork, RecipeCheck, RunEstimate

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
        f"memory: {size(estimate.memory)} were used while steps were timed",
        disk_line(estimate),
    ]


def disk_line(estimate: RunEstimate) -> str:
    """Return the disk space of a run, in a line."""
    trials = (
        f" (and {size(estimate.trials)} while learning rates are selected)"
        if estimate.trials
        else ""
    )
    return (
        f"disk: {size(estimate.checkpoints)} of checkpoints, {size(estimate.states)} of training "
        f"states, up to {size(estimate.cache)} of teacher logits and {size(estimate.outputs)} of "
        f"outputs and report{trials}; {size(estimate.free_disk)} are free"
    )


def size(amount: int) -> str:
    """Write bytes with a unit: 4.0 GB, 12.5 MB, 300 kB."""
    for unit, word in ((1e9, "GB"), (1e6, "MB")):
        if amount >= unit:
            return f"{amount / unit:.1f} {word}"
    return f"{amount / 1e3:.0f} kB"
