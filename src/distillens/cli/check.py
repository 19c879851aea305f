"""`distillens check`: find the problems of a recipe before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distillens.cli.terminal import show, show_json
from distillens.files.paths import user_path


def check_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name of `recipes`.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Override values of the recipe; keys are dotted."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=user_path,
            help="Run folder that the run would use; by default runs/<name of the recipe>.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Allow models that run the recipe's own code.")
    ] = False,
) -> None:
    """Check data, classes, networks, time, memory and disk space of a recipe without training.

    The exit status is 2 if a problem was found.
    """
    from distillens.report import check_text
    from distillens.results.base import to_json
    from distillens.study.planning.check import check

    result = check(recipe, out, overrides=overrides or [], trust_code=trust_code)
    if as_json:
        show_json(to_json(result))
    else:
        show(check_text(result))
    if result.problems:
        raise typer.Exit(2)
