"""`distillens run`, `check` and `recipes`: the commands that take a recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from distillens.cli import options, terminal
from distillens.cli.runs import report_command, table_command
from distillens.errors import RecipeError


def run_command(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    out: Annotated[
        Path | None, options.path_option("The run folder; by default runs/<name of the recipe>.")
    ] = None,
    trust_code: options.TrustCode = False,
    workers: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Train N students in parallel as Ray tasks (extra `ray`)."
        ),
    ] = 1,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print the remaining work with time, memory and disk space, without training.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Run a recipe: train, measure and report. The same command resumes an interrupted run."""
    from distillens.study.reading import check_places, read_recipe

    if as_json and not plan:
        raise RecipeError("--json needs --plan; leave it out, results.json contains the results")
    # Everything that does not need torch is checked before its import, which takes seconds.
    parsed = read_recipe(recipe, overrides or [], trust_code=trust_code)
    check_places(parsed)
    if plan:
        from distillens.report import plan_text
        from distillens.study.planning.estimate import plan_run

        found = plan_run(parsed, out, trust_code=trust_code, workers=workers)
        terminal.show_result(found, plan_text, as_json)
        if found.problems:
            raise typer.Exit(2)
        return
    from distillens.runs.layout import run_folder
    from distillens.study.run_recipe import run

    folder = run_folder(out, parsed.name)
    start = partial(run, parsed, folder, trust_code=trust_code, progress=terminal.progress_bars())
    if workers == 1:
        start()
    else:
        from distillens.integrations.ray import ray_workers

        with ray_workers(workers) as spread:
            start(spread=spread)
    table_command(folder)
    report_command(folder)


def check_command(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    out: Annotated[
        Path | None,
        options.path_option(
            "Run folder that the run would use; by default runs/<name of the recipe>."
        ),
    ] = None,
    as_json: options.Json = False,
    trust_code: options.TrustCode = False,
) -> None:
    """Check data, classes, networks, time, memory and disk space of a recipe without training.

    The exit status is 2 if a problem was found.
    """
    from distillens.report import check_text
    from distillens.study.planning.check import check

    result = check(recipe, out, overrides=overrides or [], trust_code=trust_code)
    terminal.show_result(result, check_text, as_json)
    if result.problems:
        raise typer.Exit(2)


def recipes_command() -> None:
    """List the recipes that come with distillens."""
    from distillens.study import packaged_recipes
    from distillens.study.reading import describe

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    for name, path in packaged_recipes().items():
        table.add_row(name, describe(path))
    terminal.show(table)
