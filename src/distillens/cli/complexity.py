"""`distillens complexity`: supervision complexity of targets for a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distillens.cli.options import Json, RemovedArguments, TrustCode
from distillens.cli.terminal import console, error_console, show, show_json, show_line
from distillens.errors import RecipeError
from distillens.files.paths import user_path

if TYPE_CHECKING:
    from distillens.analyses.array_task import ArrayTask
    from distillens.results.complexity import GramProfile, KernelComplexity, TeacherKernel


def complexity_command(
    removed: RemovedArguments = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the estimated time and memory only.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Model as in a recipe, e.g. '{name: lenet5, width: 8}'.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=user_path,
            help="Weights of the model: safetensors or a state dict.",
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=user_path,
            help="npy file of inputs (N, ...), preprocessed for the model.",
        ),
    ] = None,
    vocabulary: Annotated[
        list[int] | None,
        typer.Option(help="Vocabulary size if the inputs are tokens; repeat for each tokenizer."),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE.npy: labels (N,) or targets; can be repeated."),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of outputs of the model.")
    ] = None,
    output: Annotated[str, typer.Option(help="Index of a logit, or A-B for a difference.")] = "0",
    ridge: Annotated[float, typer.Option(help="Ridge, as a share of the mean diagonal.")] = 0.0,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher in the form of --model, whose kernel is compared.")
    ] = None,
    teacher_weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=user_path, help="Weights of the teacher."),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            help="Compute spectrum, references and bounds; about a minute for 4,096 examples."
        ),
    ] = True,
    max_memory: Annotated[
        float | None,
        typer.Option(
            help="Memory limit in gigabytes (10^9 bytes); by default 75 % of free memory."
        ),
    ] = None,
    as_json: Json = False,
    trust_code: TrustCode = False,
) -> None:
    """Measure the supervision complexity of targets for a model, from files."""
    if removed:
        raise RecipeError(
            "`distillens complexity RUN` was replaced by `distillens measure RUN complexity`, which "
            "takes the same KEY=VALUE settings"
        )
    if plan and as_json:
        raise RecipeError("--plan prints text; give --plan or --json, not both")
    from distillens.analyses.array_task import read_task

    if weights is None or inputs is None or not targets or classes is None or model is None:
        raise RecipeError(
            "give --model, --weights, --inputs, --classes and at least one --targets; a finished run is "
            "measured by `distillens measure RUN complexity`"
        )
    if max_memory is not None and max_memory <= 0:
        raise RecipeError(f"--max-memory is {max_memory:g}; give gigabytes above 0")
    task = read_task(
        model,
        weights,
        inputs,
        _named_files(targets),
        classes=classes,
        outputs=_logits(output),
        vocabularies=tuple(vocabulary or ()),
        teacher=teacher,
        teacher_weights=teacher_weights,
        trust_code=trust_code,
    )
    _measure_task(task, ridge, max_memory, profile, plan, as_json)


def _measure_task(
    task: ArrayTask,
    ridge: float,
    max_memory: float | None,
    profile: bool,
    plan: bool,
    as_json: bool,
) -> None:
    from distillens.progress import terminal

    most = None if max_memory is None else round(max_memory * 1e9)
    if plan:
        show_line(str(task.plan(most)))
        return
    # With --json, standard output contains JSON only.
    progress = terminal(error_console if as_json else console)
    found = task.measure(ridge=ridge, max_memory=most, progress=progress, profiled=profile)
    _show_certified(found, as_json)


def _named_files(entries: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or not name or name in found:
            raise RecipeError(f"targets {entry!r} are not of the form NAME=FILE, each name once")
        found[name] = user_path(path)
    return found


def _logits(text: str) -> int | tuple[int, int]:
    parts = text.split("-")
    if not all(part.isdigit() for part in parts) or len(parts) > 2:
        raise RecipeError(f"output {text!r} is neither a logit such as 3 nor a difference as 3-5")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _show_certified(result: KernelComplexity, as_json: bool) -> None:
    from distillens.report import certified_table
    from distillens.results.base import to_json

    if as_json:
        show_json(to_json(result))
    else:
        show(certified_table(result))
        _show_profile(result.profile, result.teacher_kernel)


def _show_profile(profile: GramProfile | None, teacher: TeacherKernel | None) -> None:
    from distillens.report import profile_table, teacher_kernel_line

    if profile is not None:
        show(profile_table(profile))
    if teacher is not None:
        show_line(teacher_kernel_line(teacher))
