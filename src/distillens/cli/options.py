"""Arguments and options that several commands share, each with one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from distillens.errors import RecipeError
from distillens.files.paths import user_path


def path_option(text: str, metavar: str = "FOLDER") -> Any:
    """Return an option for a path, whose leading ``~`` is replaced by the home directory."""
    return typer.Option(metavar=metavar, parser=user_path, help=text)


def path_argument(text: str, metavar: str) -> Any:
    """Return an argument for a path, whose leading ``~`` is replaced by the home directory."""
    return typer.Argument(metavar=metavar, parser=user_path, help=text)


def removed_option(name: str, instead: str) -> Any:
    """Return a hidden option of version 0.1, whose use is an error that names its replacement."""

    def refuse(value: object) -> None:
        if value is not None:
            raise RecipeError(f"{name} was replaced by {instead}")

    return typer.Option(name, hidden=True, callback=refuse)


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name of `recipes`.")
]
RunFolder = Annotated[Path, path_argument("A run folder.", "RUN")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Override values of the recipe; keys are dotted."
    ),
]
Supervision = Annotated[
    str | None, typer.Option(help="Title of a supervision of the run, or its short form.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of a student of the run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Allow models that run the recipe's own code.")
]
Resamples = Annotated[int, typer.Option(help="Number of bootstrap resamples.")]
RemovedArguments = Annotated[list[str] | None, typer.Argument(hidden=True)]
RemovedStudent = Annotated[
    str | None, removed_option("--student", "--supervision, which takes the same names")
]
