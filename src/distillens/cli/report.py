"""`distillens table` and `distillens report`: show the results of a run without importing torch."""

from __future__ import annotations

from typing import Annotated

import typer

from distillens.cli.options import RunFolder
from distillens.cli.terminal import show, show_line


def table_command(
    run: RunFolder,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Print a run's accuracy table."""
    from distillens.report import accuracy_table, cost_table, markdown_table
    from distillens.runs.open import OpenRun

    result = OpenRun.open(run, unfinished=True).result
    if markdown:
        show_line(markdown_table(result))
        return
    show(accuracy_table(result))
    if result.costs:
        show(cost_table(result))


def report_command(
    run: RunFolder,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also write the figures as SVG and PNG.")
    ] = False,
) -> None:
    """Rewrite report.html from the stored results of a run."""
    from distillens.report import write_figures, write_report

    lines = [f"report: {write_report(run)}"]
    if figures:
        lines += [f"figure: {path}" for path in write_figures(run)]
    for line in lines:
        show_line(line)
