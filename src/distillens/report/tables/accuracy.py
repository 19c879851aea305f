"""The accuracy table, for the terminal and as Markdown."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from distillens.report.sections import ranking
from distillens.report.tables.costs import HEADINGS, cost_caption, cost_cells
from distillens.report.tables.grid import Grid, markdown_text, pipe_table, terminal_table
from distillens.report.tables.text import (
    DASH,
    bracket,
    count,
    estimate,
    percent,
    plural,
    printable,
    seconds,
)
from distillens.results.training import Row, StudyResult, validation_means


def accuracy_table(result: StudyResult) -> Table:
    """Return the accuracy table for the terminal, the student chosen on validation in bold.

    Parameters
    ----------
    result
        Results of a run.

    Returns
    -------
    Table
        One row for the teacher and for each supervision; accuracies and gains in percent.
    """
    stacked = Grid(_stacked(headings(result)), [])
    table = terminal_table(stacked, title=result.name, caption=caption(result))
    for column in table.columns[1:]:
        column.no_wrap = True
    chosen = ranking.chosen(result)
    for row in ranking.ordered(result):
        name, *cells = cells_of(row, ranking.accuracy_digits(result))
        # Text, not str: rich would read brackets in a name as markup.
        lines = [Text(cell) for cell in _stacked([printable(name), *cells])]
        table.add_row(*lines, style="bold" if row is chosen else None)
    return table


def markdown_table(result: StudyResult) -> str:
    """Return the accuracy table as Markdown, with its caption as a paragraph below.

    Parameters
    ----------
    result
        Results of a run.

    Returns
    -------
    str
        A pipe table that ends with a line break.
    """
    chosen = ranking.chosen(result)
    rows = []
    for row in ranking.ordered(result):
        name, *cells = cells_of(row, ranking.accuracy_digits(result))
        cells.insert(0, markdown_text(name))
        rows.append([f"**{cell}**" for cell in cells] if row is chosen else cells)
    text = pipe_table(headings(result), rows, caption(result))
    if result.costs:
        costs = [cost_cells(row) for row in result.costs]
        text += "\n" + pipe_table(HEADINGS, costs, cost_caption(result))
    return text


def headings(result: StudyResult) -> list[str]:
    """Return the column headings with their units."""
    return [
        "supervision",
        "n",
        "test % ± std",
        ranking.level(result),
        f"gain over {printable(ranking.reference_name(result))}",
        "train %, given labels" if result.changed_labels else "train %",
        "parameters",
        "seconds per network",
        *(["test loss (nats)"] if any(row.loss is not None for row in result.rows) else []),
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
        *([] if row.loss is None else [estimate(row.loss, 3)]),
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
    if any(row.loss is not None for row in result.rows):
        parts.append(
            "Classes are the tokens of the vocabulary; accuracy is the share of tokens that are "
            "predicted, test loss the mean cross-entropy of a token."
        )
    if result.changed_labels:
        parts.append(
            f"{plural(result.changed_labels, 'training label')} changed on purpose: training accuracy "
            "is on the given labels; the report's section Confidence has the accuracy "
            "on the true labels."
        )
    if result.open_cells:
        parts.append(f"Open, not trained yet: {printable('; '.join(result.open_cells))}.")
    methods = [printable(method) for method in ranking.methods(result)]
    if methods:
        parts.append(f"Intervals: {'; '.join(methods)}.")
    parts += [printable(sentence) for sentence in _learning_rates(result)]
    if ranking.students(result):
        parts.append(_bold(result))
    return " ".join(parts)


def _bold(result: StudyResult) -> str:
    """Return what bold means, or why nothing is bold."""
    chosen = ranking.chosen(result)
    if chosen is not None:
        mean = percent(validation_means(result)[chosen.position], ranking.accuracy_digits(result))
        return f"Bold: highest mean validation accuracy among students ({mean} %)."
    if result.open_cells:
        return "Nothing is bold while networks are not trained."
    return (
        "Nothing is bold: without validation examples no student can be chosen, since test labels "
        "are not used for choosing."
    )


def _learning_rates(result: StudyResult) -> list[str]:
    """Return with which learning rates students were trained, and who selected them."""
    rows = [row for row in ranking.students(result) if row.learning_rate is not None]
    told = []
    own = {row.name: row.training for row in rows if row.training}
    if own:
        listed = [f"{name} ({_settings(training)})" for name, training in own.items()]
        told.append(f"Training of its own: {', '.join(listed)}.")
    rates = {row.learning_rate for row in rows}
    if (tuning := result.tuning) is not None:
        grid = ", ".join(f"{rate:g}" for rate in sorted(tuning.grid))
        chosen = [
            f"{one.supervision} {one.learning_rate:g}{' (edge of the grid)' if one.at_edge else ''}"
            for one in tuning.chosen
        ]
        told.append(
            f"Learning rate chosen on validation with seed {tuning.seed} out of {grid}: "
            f"{', '.join(chosen)}."
        )
    elif len(rows) > 1 and len(rates) == 1:
        told.append(
            f"All supervisions share the learning rate {rates.pop():g}, although τ² and α change "
            "the effective step size; tune selects a rate for each."
        )
    return told


def _settings(training: dict[str, Any]) -> str:
    """Write the keys of a training with their values: "epochs 40, schedule kind cosine"."""
    words = []
    for key, value in training.items():
        if isinstance(value, dict):
            words += [f"{key} {inner} {value[inner]}" for inner in value]
        else:
            words.append(f"{key} {value}")
    return ", ".join(words).replace("_", " ")


def _stacked(cells: list[str]) -> list[str]:
    """Return the columns for a terminal of 80: each interval stands under its number."""
    name, seeds, accuracy, interval, gain, train, parameters, time, *losses = cells
    return [
        name,
        seeds,
        accuracy if interval == DASH else f"{accuracy}\n{interval}",
        gain.replace(" [", "\n["),
        train.replace(" ", "\n"),
        parameters,
        time.replace(" ", "\n"),
        *(loss.replace(" [", "\n[").replace(" (", "\n(") for loss in losses),
    ]
