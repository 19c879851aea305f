"""The settings table, for the terminal and as Markdown: one line per run and supervision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from distillens.files.atomic import write_atomically
from distillens.report.tables.grid import Grid, grid_of, markdown_text, pipe_table, terminal_table
from distillens.report.tables.text import estimate, number, plural, printable, slope
from distillens.results.base import to_json
from distillens.results.comparison import Settings, SettingSplit

_COLUMNS: dict[str, Callable[..., str]] = {
    "data": lambda setting, _: setting.data,
    "teacher → student": lambda setting, _: f"{setting.teacher} → {setting.student}",
    "supervision": lambda setting, _: setting.supervision,
    "seeds": lambda setting, _: str(len(setting.seeds)),
    "split": lambda _, split: split.split,
    "slope low": lambda _, split: slope(split.slope_low),
    "slope all": lambda _, split: slope(split.slope_all),
    "low, underfit %": lambda _, split: estimate(split.underfit, 1, 100),
    "teacher %": lambda setting, _: estimate(setting.teacher_accuracy, 1, 100),
    "one-hot %": lambda setting, _: estimate(setting.one_hot_accuracy, 1, 100),
    "student %": lambda setting, _: estimate(setting.accuracy, 1, 100),
    "net gain, points": lambda _, split: estimate(split.net_gain, 2, signed=True),
    "McNemar p": lambda _, split: number(split.p_value, 2),
    "exaggeration": lambda _, split: _verdict(split),
}


def _grid(settings: Settings) -> Grid:
    """Return one row per setting and split."""
    pairs = [(setting, split) for setting in settings.settings for split in setting.splits]
    return grid_of(pairs, _COLUMNS, _caption(settings))


def settings_table(settings: Settings) -> Table:
    """Return the settings for the terminal, one row per split."""
    grid = _grid(settings)
    return terminal_table(grid, caption=grid.caption, left=range(3))


def settings_blocks(settings: Settings) -> Table:
    """Return the settings for a narrow terminal, a line a number: no number is ever cut."""
    grid = _grid(settings)
    table = Table.grid(padding=(0, 2))
    table.caption, table.caption_justify = Text(grid.caption), "left"
    for row in grid.rows:
        for heading, cell in zip(grid.headings, row, strict=True):
            table.add_row(Text(heading), Text(printable(cell)))
        table.add_row()
    return table


def settings_markdown(settings: Settings) -> str:
    """Return the settings as Markdown, one row per split, the caption as a paragraph below."""
    grid = _grid(settings)
    rows = [[markdown_text(cell) for cell in row] for row in grid.rows]
    return pipe_table(grid.headings, rows, grid.caption, left=3)


def _verdict(split: SettingSplit) -> str:
    counts = Counter(split.verdicts)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{verdict} ({count})" for verdict, count in counts.most_common())


def _caption(settings: Settings) -> str:
    parts = [
        "Accuracy on test at the last epoch. Means over seeds; intervals are 95 % over examples and, "
        "from two seeds on, Student's t over seeds, in quadrature. p: the largest of the seeds'. "
        "Exaggeration: the audit's verdict, compared with the one-hot student if the run has one.",
    ]
    without = [one for one in settings.settings if not one.references]
    if without:
        parts.append(
            f"{plural(len(without), 'setting')} without a reference: {without[0].supervision}"
            f"{' and others' if len(without) > 1 else ''}."
        )
    return " ".join([*parts, *(f"{note[0].upper()}{note[1:]}." for note in settings.notes)])


def write_comparison(result: Settings, folder: Path) -> tuple[Path, ...]:
    """Write ``comparison.json`` and ``comparison.md`` into a folder and return the paths.

    Raises
    ------
    RunError
        The folder cannot be written.
    """
    paths = (folder / "comparison.json", folder / "comparison.md")
    for path, content in zip(paths, (to_json(result), settings_markdown(result)), strict=True):
        write_atomically(path, content)
    return paths
