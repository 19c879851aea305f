"""The accuracy table, for the terminal and as Markdown."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from distillens.report import ranking
from distillens.report.costs import HEADINGS, cost_caption, cost_cells
from distillens.report.text import (
    DASH,
    bracket,
    count,
    estimate,
    percent,
    plural,
    printable,
    seconds,
)
from distillens.results import Row, StudyResult


def accuracy_table(result: StudyResult) -> Table:
    """Return the accuracy table for the terminal, the best student in bold.

    Parameters
    ----------
    result
        What a run found out.

    Returns
    -------
    Table
        One row for the teacher and for each supervision; accuracies and gains in percent.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        title=Text(printable(result.name), style="bold"),
        title_justify="left",
        caption=Text(caption(result)),
        caption_justify="left",
        pad_edge=False,
    )
    for index, heading in enumerate(_stacked(headings(result))):
        table.add_column(
            Text(heading),
            justify="right" if index else "left",
            no_wrap=index > 0,
        )
    best = ranking.best(result)
    for row in ranking.ordered(result):
        name, *cells = cells_of(row, ranking.accuracy_digits(result))
        # Text, not str: rich would read brackets in a name as markup.
        stacked = [Text(cell) for cell in _stacked([printable(name), *cells])]
        table.add_row(*stacked, style="bold" if row in best else None)
    return table


def markdown_table(result: StudyResult) -> str:
    """Return the accuracy table as Markdown, with its caption as a paragraph below.

    Parameters
    ----------
    result
        What a run found out.

    Returns
    -------
    str
        A pipe table that ends with a line break.
    """
    lines = [markdown_line(headings(result))]
    lines.append(markdown_line([":--"] + ["--:"] * (len(headings(result)) - 1)))
    best = ranking.best(result)
    for row in ranking.ordered(result):
        name, *cells = cells_of(row, ranking.accuracy_digits(result))
        cells.insert(0, markdown_text(name))
        lines.append(markdown_line([f"**{cell}**" for cell in cells] if row in best else cells))
    lines += ["", markdown_text(caption(result)), ""]
    if result.costs:
        lines += [markdown_line(list(HEADINGS)), markdown_line(["---"] * len(HEADINGS))]
        lines += [markdown_line(cost_cells(row)) for row in result.costs]
        lines += ["", markdown_text(cost_caption(result)), ""]
    return "\n".join(lines)


def headings(result: StudyResult) -> list[str]:
    """Return the column headings with their units."""
    return [
        "supervision",
        "n",
        "test % ± std",
        ranking.level(result),
        f"gain over {printable(ranking.reference_name(result))}",
        "train %",
        "parameters",
        "seconds per network",
    ]


def cells_of(row: Row, digits: int) -> list[str]:
    """Return the cells of a row in the order of `headings`."""
    spread = "" if row.deviation is None else f" ± {percent(row.deviation, digits)}"
    return [
        row.name,
        str(len(row.seeds)),
        percent(row.accuracy.value, digits) + spread,
        bracket(row.accuracy.interval, digits, scale=100),
        estimate(row.gain, digits, scale=100, signed=True),
        percent(row.train_accuracy, digits),
        count(row.parameters),
        seconds(row.seconds),
    ]


def splits(result: StudyResult) -> str:
    """Return the sizes of the splits; an empty validation split is left out."""
    validation = f"{result.validation_examples:,} validation, " * bool(result.validation_examples)
    return f"{result.train_examples:,} training, {validation}{result.test_examples:,} test examples"


def caption(result: StudyResult) -> str:
    """Return what the table was measured on and how to read it."""
    epochs = sorted({cell.epochs for cell in result.cells})
    last = f" (epoch {', '.join(str(epoch) for epoch in epochs)})" if epochs else ""
    parts = [
        f"{splits(result)}; {plural(result.classes, 'class', 'classes')}; "
        f"loss: {printable(result.loss)}.",
        f"Accuracy at the last epoch{last}, std over n seeds, gain paired by seed.",
    ]
    if result.changed_labels:
        parts.append(f"{plural(result.changed_labels, 'training label')} changed on purpose.")
    if result.open_cells:
        parts.append(f"Open, not trained yet: {printable('; '.join(result.open_cells))}.")
    methods = [printable(method) for method in ranking.methods(result)]
    if methods:
        parts.append(f"Intervals: {'; '.join(methods)}.")
    if len(ranking.best(result)) > 1:
        parts.append("Bold: highest mean among students, shared at the digits shown.")
    else:
        parts.append("Bold: highest mean among students.")
    return " ".join(parts)


def _stacked(cells: list[str]) -> list[str]:
    """Return the columns for a terminal of 80: each interval stands under its number."""
    name, seeds, accuracy, interval, gain, train, parameters, time = cells
    value, _, bracketed = gain.partition(" [")
    return [
        name,
        seeds,
        accuracy if interval == DASH else f"{accuracy}\n{interval}",
        f"{value}\n[{bracketed}" if bracketed else gain,
        train.replace(" ", "\n"),
        parameters,
        time.replace(" ", "\n"),
    ]


def markdown_line(cells: list[str]) -> str:
    """Return a row of a pipe table from cells that are Markdown already."""
    return f"| {' | '.join(cells)} |"


def markdown_text(text: str) -> str:
    """Return text as Markdown that shows it as it is."""
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for letter in "\\`*_[]|":
        escaped = escaped.replace(letter, f"\\{letter}")
    return escaped
