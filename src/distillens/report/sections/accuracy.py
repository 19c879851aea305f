"""The first part of the page: the accuracy table with a picture of the intervals."""

from __future__ import annotations

import math

from distillens.report.backends.html import Safe, element, join, table
from distillens.report.sections import ranking
from distillens.report.tables.accuracy import caption, cells_of, headings
from distillens.report.tables.costs import HEADINGS, cost_caption, cost_cells
from distillens.report.tables.text import fixed, number, percent, plural, seconds
from distillens.results.training import Row, StudyResult

_WIDTH, _HEIGHT = 180, 22


def accuracy_part(result: StudyResult, colours: dict[str, str]) -> Safe:
    """Return the section with the accuracy table, or a note if there is none."""
    title = element("h2", "Accuracy")
    if not result.rows:
        words = "This run has no accuracies: no network finished its training."
        return element("section", title, element("p", words, class_="missing"), id="accuracy")
    rows = ranking.ordered(result)
    digits = ranking.accuracy_digits(result)
    low, high = _scale(result)
    heads = headings(result)
    heads.insert(4, f"test %, from {fixed(low, 0)} to {fixed(high, 0)}")
    body = []
    for row in rows:
        name, *cells = cells_of(row, digits)
        cells.insert(3, _strip(row, result, colours[row.name], low, high))
        body.append([join(swatch(colours[row.name]), name), *cells])
    strong = [index for index, row in enumerate(rows) if row is ranking.chosen(result)]
    reading = (
        "How to read it: the dot is the mean, the bar its interval, each tick one seed. "
        "A gain whose interval includes 0 may be due to chance."
    )
    return element(
        "section",
        title,
        table(heads, body, f"{caption(result)} {reading}", strong),
        _costs(result),
        _networks(result, digits),
        _trials(result, digits),
        id="accuracy",
    )


def swatch(colour: str) -> Safe:
    """Return the small square in front of a name, in its supervision's colour."""
    return element("span", class_="swatch", style=f"background:{colour}")


def _scale(result: StudyResult) -> tuple[float, float]:
    """Return the ends of the pictures' common scale in percent, whole numbers around all values."""
    values = [row.accuracy.value for row in result.rows]
    values += [cell.test_accuracy for cell in result.cells]
    for row in result.rows:
        if row.accuracy.interval is not None:
            values += [row.accuracy.interval.low, row.accuracy.interval.high]
    inside = [100 * min(1.0, max(0.0, value)) for value in values if math.isfinite(value)]
    if not inside:
        return 0.0, 100.0
    low, high = float(math.floor(min(inside))), float(math.ceil(max(inside)))
    return (low, high) if high > low else (low - 1, high + 1)


def _strip(row: Row, result: StudyResult, colour: str, low: float, high: float) -> Safe:
    def place(share: float) -> str:
        inside = min(1.0, max(0.0, (100 * share - low) / (high - low)))
        return f"{8 + inside * (_WIDTH - 16):.1f}"

    middle = str(_HEIGHT // 2)
    marks = [
        element("line", x1="8", x2=str(_WIDTH - 8), y1=middle, y2=middle, class_="track"),
        *(
            element(
                "line",
                x1=place(cell.test_accuracy),
                x2=place(cell.test_accuracy),
                y1="4",
                y2=str(_HEIGHT - 4),
                stroke=colour,
                stroke_opacity="0.55",
            )
            for cell in result.cells
            if cell.position == row.position and math.isfinite(cell.test_accuracy)
        ),
    ]
    interval = row.accuracy.interval
    if interval is not None and math.isfinite(interval.high - interval.low):
        marks.append(
            element(
                "line",
                x1=place(interval.low),
                x2=place(interval.high),
                y1=middle,
                y2=middle,
                stroke=colour,
                stroke_width="4",
                stroke_opacity="0.8",
            )
        )
    if math.isfinite(row.accuracy.value):
        marks.append(element("circle", cx=place(row.accuracy.value), cy=middle, r="5", fill=colour))
    label = f"{row.name}: mean {number(100 * row.accuracy.value)} %"
    return element(
        "svg",
        *marks,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        width=str(_WIDTH),
        height=str(_HEIGHT),
        role="img",
        aria_label=label,
    )


def _costs(result: StudyResult) -> Safe:
    if not result.costs:
        return Safe("")
    rows = [cost_cells(row) for row in result.costs]
    return table(list(HEADINGS), rows, cost_caption(result))


def _networks(result: StudyResult, digits: int) -> Safe:
    if not result.cells:
        return Safe("")
    heads = [
        "supervision",
        "seed",
        "test %",
        "validation %",
        "train %",
        "test examples",
        "epochs",
        "seconds",
        "weights",
    ]
    body = [
        [
            cell.supervision,
            str(cell.seed),
            percent(cell.test_accuracy, digits),
            percent(cell.validation_accuracy, digits),
            percent(cell.train_accuracy, digits),
            f"{cell.test_count:,}",
            str(cell.epochs),
            seconds(cell.seconds),
            element("code", cell.weights_digest[:12]),
        ]
        for cell in result.cells
    ]
    return element(
        "details",
        element("summary", f"Each of the {plural(len(result.cells), 'network')}"),
        table(heads, body),
    )


def _trials(result: StudyResult, digits: int) -> Safe:
    """Return the table of the trainings by which learning rates were selected."""
    tuning = result.tuning
    if tuning is None:
        return Safe("")
    heads = ["supervision", "learning rate", "validation %", "validation loss", "epochs", "seconds"]
    selected = {(one.supervision, one.learning_rate) for one in tuning.chosen}
    body = [
        [
            trial.supervision,
            f"{trial.learning_rate:g}",
            "diverged" if trial.failure else percent(trial.validation_accuracy, digits),
            number(trial.validation_loss),
            str(trial.epochs),
            seconds(trial.seconds),
        ]
        for trial in tuning.trials
    ]
    strong = [
        index
        for index, trial in enumerate(tuning.trials)
        if (trial.supervision, trial.learning_rate) in selected
    ]
    trials = plural(len(tuning.trials), "training")
    return element(
        "details",
        element("summary", f"The {trials} that selected learning rates (seed {tuning.seed})"),
        table(heads, body, "Bold: the learning rate selected for the supervision.", strong),
    )
