"""`distillens complexity`: how hard targets are for a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distillens.cli.report import report_command
from distillens.cli.terminal import console, error_console, show, show_json, show_line
from distillens.errors import RecipeError
from distillens.files.paths import user_path

if TYPE_CHECKING:
    from distillens.analyses.remeasure import ArrayTask
    from distillens.results.complexity import GramProfile, KernelComplexity, TeacherKernel
    from distillens.results.training import StudyResult


def complexity_command(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", parser=user_path, help="A finished run; or none, with --model."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Of the recipe's complexity part."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print time and memory, and compute nothing.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="A model as in a recipe, e.g. '{name: lenet5, width: 8}'.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=user_path, help="Its weights: safetensors or a state dict."
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=user_path,
            help="An npy of inputs (N, ...), as the model takes them.",
        ),
    ] = None,
    vocabulary: Annotated[
        list[int] | None,
        typer.Option(
            help="The inputs are tokens: their tokenizer's size; once for each tokenizer."
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE.npy: labels (N,) or targets; may be given several times."),
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="The model's outputs.")] = None,
    output: Annotated[str, typer.Option(help="A logit, or A-B for a difference of two.")] = "0",
    ridge: Annotated[float, typer.Option(help="Share of the mean diagonal to add to it.")] = 0.0,
    teacher: Annotated[
        str | None, typer.Option(help="A teacher like --model, to compare its kernel.")
    ] = None,
    teacher_weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=user_path, help="The teacher's weights."),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(help="Spectrum, references, bounds: about a minute for 4,096 examples."),
    ] = True,
    max_memory: Annotated[
        float | None, typer.Option(help="Gigabytes; by default three quarters of what is free.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Allow a model that runs the recipe's own code.")
    ] = False,
) -> None:
    """Measure how hard targets are: of a finished run again, or of a model and arrays."""
    if run is not None and model is not None:
        raise RecipeError(
            f"{str(run)!r} stands where a run or its KEY=VALUE go, which --model does not take; "
            "give either a run or --model"
        )
    if run is None and model is None:
        raise RecipeError("give either a run or --model with --weights, --inputs and --targets")
    if run is not None:
        of_model = {
            "--weights": weights, "--inputs": inputs, "--vocabulary": vocabulary,
            "--targets": targets, "--classes": classes, "--teacher": teacher,
            "--teacher-weights": teacher_weights, "--max-memory": max_memory,
        }  # fmt: skip
        for name, value in of_model.items():
            if value is not None:
                raise RecipeError(f"{name} goes with --model; leave it out where a run is given")
        _measure_run(run, overrides or [], plan, as_json, trust_code)
        return
    from distillens.analyses.remeasure import read_task

    if weights is None or inputs is None or not targets or classes is None or model is None:
        raise RecipeError("--model needs --weights, --inputs, --classes and at least one --targets")
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


def _measure_run(
    run: Path, overrides: list[str], plan: bool, as_json: bool, trust_code: bool
) -> None:
    from distillens.analyses.remeasure import measure_run, plan_run
    from distillens.progress import terminal

    if plan:
        one, count = plan_run(run, overrides, trust_code=trust_code)
        show_line(f"{count} Grams, each:\n{one}")
        return
    # The JSON stands alone on the output.
    progress = terminal(error_console if as_json else console)
    result = measure_run(run, overrides, trust_code=trust_code, progress=progress)
    _show_curves(run, result, as_json)


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
    # The JSON stands alone on the output.
    progress = terminal(error_console if as_json else console)
    _show_certified(task.measure(ridge, most, progress, profiled=profile), as_json)


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


def _show_curves(run: Path, result: StudyResult, as_json: bool) -> None:
    from distillens.report import curves_table, temperature_table
    from distillens.results.base import to_json

    for curves in result.complexity:
        if as_json:
            show_json(to_json(curves))
        else:
            show(curves_table(curves))
            if curves.temperatures:
                show(temperature_table(curves))
            _show_profile(curves.profile, curves.teacher_kernel)
    if not as_json:
        report_command(run)


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
