"""`distillens eigenspace`: teacher and student along the eigenvectors of their inputs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distillens.cli.options import Json, RemovedStudent, Supervision, TrustCode, refuse_student
from distillens.cli.terminal import console, error_console, show, show_json
from distillens.errors import RecipeError
from distillens.files.paths import user_path


class Split(StrEnum):
    """Splits whose inputs can be used."""

    train = "train"
    validation = "validation"
    test = "test"


class KernelName(StrEnum):
    """Kernels whose eigenvectors predictions are projected on."""

    data = "data"
    ntk = "ntk"


def eigenspace_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            parser=user_path,
            help="Run folders of one recipe with different seeds.",
        ),
    ],
    supervision: Supervision = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Name of a Linear or Conv2d layer; by default the first trainable one."),
    ] = None,
    pairs: Annotated[
        int, typer.Option(help="Number of pairs of a top and a bottom eigenvector.")
    ] = 15,
    pair_seed: Annotated[
        int, typer.Option(help="Seed with which the pairs of eigenvectors are sampled.")
    ] = 0,
    top: Annotated[
        int, typer.Option(help="Number of leading ranks from which top eigenvectors are sampled.")
    ] = 15,
    bottom: Annotated[
        str,
        typer.Option(help="Inclusive rank range from which bottom eigenvectors are sampled."),
    ] = "20-60",
    split: Annotated[
        Split, typer.Option(help="Split on whose inputs the eigenvectors are computed.")
    ] = Split.train,
    examples: Annotated[
        int | None,
        typer.Option(help="Number of examples sampled from the split; all if omitted."),
    ] = None,
    kernel: Annotated[
        KernelName, typer.Option(help="Kernel on whose eigenvectors predictions are projected.")
    ] = KernelName.data,
    as_json: Json = False,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", parser=user_path, help="Output folder.")
    ] = Path("eigenspace"),
    trust_code: TrustCode = False,
    student: RemovedStudent = None,
    seed: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare how fast teacher and students learn along eigenvectors of a layer's inputs.

    The runs have one recipe with different seeds. Writes eigenspace.json, the trajectories as
    eigenspace.npz, and figures (SVG, PNG).
    """
    refuse_student(student)
    if seed is not None:
        raise RecipeError("--seed was replaced by --pair-seed")
    from distillens.analyses.eigenspace.dynamics import EigenspaceTask, measure_eigenspace
    from distillens.progress import terminal
    from distillens.report import eigenspace_table, write_eigenspace
    from distillens.results.base import to_json

    task = EigenspaceTask(
        student=supervision,
        layer=layer,
        split=split.value,
        examples=examples,
        pairs=pairs,
        pair_seed=pair_seed,
        top=top,
        bottom=_range(bottom),
        kernel=kernel.value,
    )
    result, arrays = measure_eigenspace(
        runs,
        task,
        trust_code=trust_code,
        progress=terminal(error_console if as_json else console),
    )
    paths = write_eigenspace(result, arrays, out)
    if as_json:
        show_json(to_json(result))
    else:
        show(eigenspace_table(result))
    for path in paths:
        typer.echo(f"{path}", err=as_json)


def _range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not (dash and low.isdigit() and high.isdigit()):
        raise RecipeError(f"bottom {text!r} is no range such as 20-60")
    return int(low), int(high)
