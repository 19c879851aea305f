"""The settings table, for the terminal and as Markdown: one line per run and supervision."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from distillens.files.atomic import write_atomically
from distillens.report.tables.accuracy import markdown_line, markdown_text
from distillens.report.tables.text import DASH, estimate, number, plural, printable, slope
from distillens.results.base import to_json
from distillens.results.comparison import Setting, Settings, SettingSplit

_HEADINGS = (
    "data", "teacher → student", "supervision", "seeds", "split", "slope low", "slope all",
    "low, underfit %", "teacher %", "one-hot %", "student %", "net gain, points", "McNemar p",
    "exaggeration",
)  # fmt: skip


def settings_table(settings: Settings) -> Table:
    """Return the settings for the terminal, one row per split."""
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False,
        caption=Text(_caption(settings)), caption_justify="left",
    )  # fmt: skip
    for place, heading in enumerate(_HEADINGS):
        table.add_column(Text(heading), justify="left" if place < 3 else "right")
    for setting in settings.settings:
        for split in setting.splits:
            table.add_row(*(Text(printable(cell)) for cell in _cells(setting, split)))
    return table


def settings_blocks(settings: Settings) -> Table:
    """Return the settings for a narrow terminal, a line a number: no number is ever cut."""
    table = Table.grid(padding=(0, 2))
    table.caption, table.caption_justify = Text(_caption(settings)), "left"
    for setting in settings.settings:
        for split in setting.splits:
            for heading, cell in zip(_HEADINGS, _cells(setting, split), strict=True):
                table.add_row(Text(heading), Text(printable(cell)))
            table.add_row()
    return table


def settings_markdown(settings: Settings) -> str:
    """Return the settings as Markdown, one row per split, the caption as a paragraph below."""
    lines = [markdown_line(list(_HEADINGS))]
    lines.append(markdown_line([":--"] * 3 + ["--:"] * (len(_HEADINGS) - 3)))
    for setting in settings.settings:
        for split in setting.splits:
            lines.append(markdown_line([markdown_text(cell) for cell in _cells(setting, split)]))
    return "\n".join([*lines, "", markdown_text(_caption(settings)), ""])


def _cells(setting: Setting, split: SettingSplit) -> list[str]:
    one_hot = setting.one_hot_accuracy
    return [
        setting.data,
        f"{setting.teacher} → {setting.student}",
        setting.supervision,
        str(len(setting.seeds)),
        split.split,
        slope(split.slope_low),
        slope(split.slope_all),
        estimate(split.underfit, 1, 100),
        estimate(setting.teacher_accuracy, 1, 100),
        DASH if one_hot is None else estimate(one_hot, 1, 100),
        estimate(setting.accuracy, 1, 100),
        estimate(split.net_gain, 2, signed=True),
        number(split.p_value, 2),
        _verdict(split),
    ]


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
