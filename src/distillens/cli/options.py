"""Arguments and options that several commands share, each with one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distillens.errors import RecipeError
from distillens.files.paths import user_path

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", parser=user_path, help="A run folder.")]
Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", parser=user_path, help="Folders of finished runs.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Override values of the recipe; keys are dotted."
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        parser=user_path,
        help="The run folder; by default runs/<name of the recipe>.",
    ),
]
Supervision = Annotated[
    str | None, typer.Option(help="Title of a supervision of the run, or its short form.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of a student of the run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Allow models that run the recipe's own code.")
]
Resamples = Annotated[int, typer.Option(help="Number of bootstrap resamples.")]
RemovedArguments = Annotated[list[str] | None, typer.Argument(hidden=True)]
RemovedStudent = Annotated[str | None, typer.Option("--student", hidden=True)]


def refuse_student(value: str | None) -> None:
    """Refuse ``--student``, which version 0.1 had for the supervision of a run.

    Raises
    ------
    RecipeError
        The option was given.
    """
    if value is not None:
        raise RecipeError("--student was replaced by --supervision, which takes the same names")
