"""`distillens compare`: the students of several runs in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.measure import Measurement

from distillens.cli.options import Json, Resamples, Runs, TrustCode
from distillens.cli.terminal import console, show, show_json, show_line
from distillens.errors import RecipeError
from distillens.files.paths import user_path


def compare_command(
    runs: Runs,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=user_path,
            help="A folder for comparison.json and comparison.md.",
        ),
    ] = None,
    resamples: Resamples = 1000,
    trust_code: TrustCode = False,
) -> None:
    """Print one row per run and supervision: slopes, accuracies and the net gain of departures."""
    from distillens.analyses.compare import compare
    from distillens.report import (
        settings_blocks,
        settings_markdown,
        settings_table,
        write_comparison,
    )
    from distillens.results.base import to_json

    if markdown and as_json:
        raise RecipeError("give --markdown or --json, not both")
    result = compare(runs, resamples=resamples, trust_code=trust_code)
    if out is not None:
        for path in write_comparison(result, out):
            typer.echo(f"written: {path}", err=as_json)
    if as_json:
        show_json(to_json(result))
    elif markdown:
        show_line(settings_markdown(result).rstrip("\n"))
    else:
        table = settings_table(result)
        unbounded = console.options.update(max_width=10_000)
        fits = Measurement.get(console, unbounded, table).minimum <= console.width
        show(table if fits else settings_blocks(result))
