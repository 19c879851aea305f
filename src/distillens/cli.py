"""The command line. Every error that a user can act on is one line and exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from distillens import __version__
from distillens.commands.eigenspace import eigenspace_command
from distillens.errors import DistillensError, RecipeError

if TYPE_CHECKING:
    from distillens.results import GramProfile, KernelComplexity, StudyResult, TeacherKernel
    from distillens.study.remeasure import ArrayTask

app = typer.Typer(
    help="Distil small networks from large ones, and see why a student turned out as it did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command("run")
def run_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name of `recipes`.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Change the recipe, with dotted keys."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; by default runs/<name of the recipe>.")
    ] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Allow models that run the recipe's own code.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Train N students at once, as Ray tasks (extra `ray`)."
        ),
    ] = 1,
) -> None:
    """Carry out a recipe: train, measure, show. The same command again goes on where it was."""
    from distillens.study import read_recipe, run

    parsed = read_recipe(recipe, overrides or [], trust_code=trust_code)
    folder = out if out is not None else _default_folder(parsed.name)
    from distillens.progress import terminal

    start = partial(run, parsed, folder, trust_code=trust_code, progress=terminal(console))
    if workers == 1:
        start()
    else:
        from distillens.integrations.ray import ray_workers

        with ray_workers(workers) as spread:
            start(spread=spread)
    _show(folder)


@app.command("table")
def table_command(
    run: RunFolder,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown, for a text.")] = False,
) -> None:
    """Print a run's accuracy table."""
    from distillens.report import accuracy_table, cost_table, markdown_table
    from distillens.runs import find_run, read_result

    result = read_result(find_run(run))
    if markdown:
        typer.echo(markdown_table(result))
        return
    console.print(accuracy_table(result))
    if result.costs:
        console.print(cost_table(result))


@app.command("complexity")
def complexity_command(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A finished run; or none, with --model.")
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
        Path | None, typer.Option(help="Its weights: safetensors or a state dict.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="An npy of inputs (N, ...), as the model takes them.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE.npy: labels (N,) or targets; may be given several times."),
    ] = None,
    classes: Annotated[int | None, typer.Option(help="The model's outputs.")] = None,
    output: Annotated[str, typer.Option(help="A logit, or A-B for a difference of two.")] = "0",
    ridge: Annotated[float, typer.Option(help="Share of the mean diagonal to add to it.")] = 0.0,
    teacher: Annotated[
        str | None, typer.Option(help="A teacher like --model, to compare its kernel.")
    ] = None,
    teacher_weights: Annotated[Path | None, typer.Option(help="The teacher's weights.")] = None,
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
    if (run is None) == (model is None):
        raise RecipeError("give either a run or --model with --weights, --inputs and --targets")
    if run is not None:
        _measure_run(run, overrides or [], plan, as_json, trust_code)
        return
    from distillens.study.remeasure import read_task

    if weights is None or inputs is None or not targets or classes is None or model is None:
        raise RecipeError("--model needs --weights, --inputs, --classes and at least one --targets")
    task = read_task(
        model,
        weights,
        inputs,
        _named_files(targets),
        classes=classes,
        outputs=_logits(output),
        teacher=teacher,
        teacher_weights=teacher_weights,
        trust_code=trust_code,
    )
    _measure_task(task, ridge, max_memory, profile, plan, as_json)


def _measure_run(
    run: Path, overrides: list[str], plan: bool, as_json: bool, trust_code: bool
) -> None:
    from distillens.progress import terminal
    from distillens.study.remeasure import measure_run, plan_run

    if plan:
        one, count = plan_run(run, overrides, trust_code=trust_code)
        typer.echo(f"{count} Grams, each:\n{one}")
        return
    result = measure_run(run, overrides, trust_code=trust_code, progress=terminal(console))
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
        typer.echo(str(task.plan(most)))
        return
    # The JSON stands alone on the output.
    progress = terminal(Console(stderr=True)) if as_json else terminal(console)
    _show_certified(task.measure(ridge, most, progress, profiled=profile), as_json)


def _named_files(entries: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or not name or name in found:
            raise RecipeError(f"targets {entry!r} are not of the form NAME=FILE, each name once")
        found[name] = Path(path)
    return found


def _logits(text: str) -> int | tuple[int, int]:
    parts = text.split("-")
    if not all(part.isdigit() for part in parts) or len(parts) > 2:
        raise RecipeError(f"output {text!r} is neither a logit such as 3 nor a difference as 3-5")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _show_curves(run: Path, result: StudyResult, as_json: bool) -> None:
    from distillens.report import curves_table, temperature_table
    from distillens.results import to_json

    for curves in result.complexity:
        if as_json:
            typer.echo(to_json(curves))
        else:
            console.print(curves_table(curves))
            if curves.temperatures:
                console.print(temperature_table(curves))
            _show_profile(curves.profile, curves.teacher_kernel)
    if not as_json:
        report_command(run)


def _show_certified(result: KernelComplexity, as_json: bool) -> None:
    from distillens.report import certified_table
    from distillens.results import to_json

    if as_json:
        typer.echo(to_json(result))
    else:
        console.print(certified_table(result))
        _show_profile(result.profile, result.teacher_kernel)


def _show_profile(profile: GramProfile | None, teacher: TeacherKernel | None) -> None:
    from distillens.report import profile_table, teacher_kernel_line

    if profile is not None:
        console.print(profile_table(profile))
    if teacher is not None:
        console.print(teacher_kernel_line(teacher), highlight=False, markup=False)


@app.command("report")
def report_command(
    run: RunFolder,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also its complexity figures, as SVG and PNG.")
    ] = False,
) -> None:
    """Write a run's report.html again, from its numbers."""
    from distillens.report import write_figures, write_report

    lines = [f"report: {write_report(run)}"]
    if figures:
        lines += [f"figure: {path}" for path in write_figures(run)]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


@app.command("export")
def export_command(
    run: RunFolder,
    student: Annotated[
        str | None,
        typer.Option(help="A supervision of the run; by default the best on validation."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="By default the best on validation.")] = None,
    formats: Annotated[
        str, typer.Option("--format", help="Some of safetensors, torch and onnx, with commas.")
    ] = "safetensors,torch",
    out: Annotated[
        Path | None, typer.Option(help="By default exports/<study>-<student>-seed-<s>.")
    ] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Allow a model that runs the recipe's own code.")
    ] = False,
) -> None:
    """Write a trained student as files to ship, and check what they say against the run."""
    from distillens.study.export import default_folder, export_run

    names = [name.strip() for name in formats.split(",") if name.strip()]
    done = export_run(
        run, student=student, seed=seed, formats=names, out=out, trust_code=trust_code
    )
    # A name may hold brackets, which rich would read as markup.
    lines = [f"{done.student}, seed {done.seed}, epoch {done.epoch}: {done.chosen_by}"]
    lines += [
        f"{file.name}  {file.size / 1000:,.0f} kB  outputs differ by at most {file.difference:.1g}"
        for file in done.files
    ]
    lines += [f"note: {note}" for note in done.notes]
    lines.append(f"export: {out if out is not None else default_folder(done)}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


_FILES = "An npy, npz, csv, parquet or safetensors file, or FILE::KEY; SPLIT=FILE for several."


@app.command("audit")
def audit_command(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A finished run; or none, with arrays."),
    ] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help=f"The teacher's outputs. {_FILES}")
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(help="The student's outputs, alike; of a run: a supervision, by default all."),
    ] = None,
    labels: Annotated[list[str] | None, typer.Option(help="True classes, from 0.")] = None,
    inputs: Annotated[
        list[str] | None, typer.Option(help="Inputs; text is shown with the telling examples.")
    ] = None,
    mislabelled: Annotated[
        list[str] | None, typer.Option(help="A mask, 1 where the label is wrong.")
    ] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="Outputs of a student trained on labels alone.")
    ] = None,
    other_teacher: Annotated[
        list[str] | None, typer.Option(help="Outputs of a teacher of another seed.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="logits or probabilities; by default detected, and said.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="A folder for audit.json and the plotted points.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 1000,
    seed: Annotated[
        int | None, typer.Option(help="Of a run: the student's; by default the first of each.")
    ] = None,
    other_teacher_run: Annotated[
        Path | None, typer.Option(help="Of a run: a run with a teacher of another seed.")
    ] = None,
    over_training: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Of a run: examples of a split at each checkpoint; 0 for none. [2000]"
        ),
    ] = None,
    kernel_examples: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Of a run: test examples to compare kernels on; 0 for none. [64]"
        ),
    ] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Allow a model that runs the recipe's own code.")
    ] = False,
) -> None:
    """Audit students of a run, or one from arrays: do they disobey their teacher, and does it pay?"""
    arrays = {
        "--teacher": teacher, "--labels": labels, "--inputs": inputs, "--mislabelled": mislabelled,
        "--reference": reference, "--other-teacher": other_teacher, "--kind": kind,
    }  # fmt: skip
    of_run = {
        "--seed": seed, "--other-teacher-run": other_teacher_run, "--over-training": over_training,
        "--kernel-examples": kernel_examples,
    }  # fmt: skip
    if run is None:
        _refuse_given(of_run, "is for the audit of a run; name the run, or leave it out")
        if not (teacher and student and labels):
            raise RecipeError("give a run, or --teacher, --student and --labels")
        _audit_arrays(
            {
                "teacher": teacher, "student": student, "labels": labels, "inputs": inputs,
                "mislabelled": mislabelled, "one-hot student": reference,
                "other teacher": other_teacher,
            },
            kind, resamples, as_json, out,
        )  # fmt: skip
        return
    _refuse_given(arrays, "is for the audit of arrays; leave it out where a run is given")
    if student is not None and len(student) > 1:
        raise RecipeError("give --student once, or leave it out to audit all students of the run")
    from distillens.progress import terminal
    from distillens.report import run_audit_text, write_run_audit
    from distillens.results import to_json
    from distillens.study.audit_run import KERNEL_EXAMPLES, OVER_TRAINING, audit_run

    result, points = audit_run(
        run,
        student=student[0] if student else None,
        seed=seed,
        other_teacher_run=other_teacher_run,
        over_training=OVER_TRAINING if over_training is None else over_training,
        kernel_examples=KERNEL_EXAMPLES if kernel_examples is None else kernel_examples,
        resamples=resamples,
        trust_code=trust_code,
        # The JSON stands alone on the output.
        progress=terminal(Console(stderr=True)) if as_json else terminal(console),
    )
    if as_json:
        typer.echo(to_json(result), nl=False)
    else:
        console.print(run_audit_text(result))
    if out is not None:
        plotted = [{split: one.arrays() for split, one in each.items()} for each in points]
        for path in write_run_audit(result, plotted, out):
            typer.echo(f"written: {path}", err=as_json)


def _refuse_given(options: Mapping[str, object], why: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise RecipeError(f"{name} {why}")


def _audit_arrays(
    roles: Mapping[str, list[str] | None],
    kind: str | None,
    resamples: int,
    as_json: bool,
    out: Path | None,
) -> None:
    from distillens.array_files import read_splits
    from distillens.measures.auditing import audit_with_points
    from distillens.report import audit_text, write_audit
    from distillens.results import to_json

    given = {role: read_splits(files) if files else None for role, files in roles.items()}
    result, points = audit_with_points(given, kind=kind, resamples=resamples)
    if as_json:
        typer.echo(to_json(result), nl=False)
    else:
        console.print(audit_text(result))
    if out is None:
        return
    arrays = {split: found.arrays() for split, found in points.items()}
    for path in write_audit(result, arrays, out):
        # Standard output holds nothing but JSON where JSON was asked for.
        typer.echo(f"written: {path}", err=as_json)


@app.command("settings")
def settings_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown, for a text.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 1000,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Allow a model that runs the recipe's own code.")
    ] = False,
) -> None:
    """Print one line a run and supervision: slopes, accuracies, what disobeying brought."""
    from distillens.report import settings_markdown, settings_table
    from distillens.results import to_json
    from distillens.study.settings import measure_settings

    if markdown and as_json:
        raise RecipeError("give --markdown or --json, not both")
    result = measure_settings(runs, resamples=resamples, trust_code=trust_code)
    if as_json:
        typer.echo(to_json(result), nl=False)
    elif markdown:
        typer.echo(settings_markdown(result), nl=False)
    else:
        console.print(settings_table(result))


@app.command("language")
def language_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file of kind language, or a name.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Change the recipe, with dotted keys."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; by default runs/<name of the recipe>.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Distil language models: next tokens of sentences, audited token by token."""
    from distillens.progress import terminal
    from distillens.report import language_table
    from distillens.results import to_json
    from distillens.study.language import read_language_recipe, run_language

    parsed = read_language_recipe(recipe, overrides or [])
    folder = out if out is not None else _default_folder(parsed.name)
    progress = terminal(Console(stderr=True)) if as_json else terminal(console)
    result = run_language(parsed, folder, progress=progress)
    if as_json:
        typer.echo(to_json(result), nl=False)
    else:
        console.print(language_table(result))


@app.command("recipes")
def recipes_command() -> None:
    """List the recipes that come with distillens."""
    from distillens.study import shipped_recipes
    from distillens.study.reading import describe

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    for name, path in shipped_recipes().items():
        table.add_row(name, describe(path))
    console.print(table)


@app.command("theory")
def theory_command(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="flow, bias, risk, ridge or denoising.")
    ],
    out: Annotated[Path, typer.Option(help="Where its files go.")] = Path("theory"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON, not as a table.")
    ] = False,
) -> None:
    """Carry out a study of the theory lab; write its picture (SVG, PNG), arrays and numbers."""
    from distillens.report import lab_json, lab_table, write_lab
    from distillens.theory import run_study

    shown = run_study(study)
    paths = write_lab(shown, out)
    if as_json:
        typer.echo(lab_json(shown), nl=False)
        return
    console.print(lab_table(shown))
    for path in paths:
        console.print(f"{path}", soft_wrap=True, highlight=False, markup=False)


app.command("eigenspace")(eigenspace_command)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _default_folder(name: str) -> Path:
    from distillens.runs import slug

    return Path("runs") / slug(name)


def _show(folder: Path) -> None:
    table_command(folder)
    report_command(folder)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; errors of distillens become one line on standard error."""
    try:
        return app(args=arguments, standalone_mode=True)
    except DistillensError as error:
        line = " ".join(str(error).split())
        print(f"distillens: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"distillens: {where}{error.strerror or error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
