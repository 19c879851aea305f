"""The command line. Every error that a user can act on is one line and exit status 2."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.table import Table

from distillens import __version__
from distillens.cli.audit import audit_command
from distillens.cli.check import check_command
from distillens.cli.compare import compare_command
from distillens.cli.complexity import complexity_command
from distillens.cli.eigenspace import eigenspace_command
from distillens.cli.measure import measure_command, runs_command
from distillens.cli.options import (
    Json,
    OutFolder,
    Overrides,
    RemovedArguments,
    RemovedStudent,
    RunFolder,
    Seed,
    Supervision,
    TrustCode,
    refuse_student,
)
from distillens.cli.report import report_command, table_command
from distillens.cli.terminal import (
    console,
    prepare_streams,
    show,
    show_json,
    show_line,
)
from distillens.errors import DistillensError, RecipeError
from distillens.files.paths import user_path

if TYPE_CHECKING:
    from distillens.study.recipe import Recipe

app = typer.Typer(
    help="Distil small networks from large ones, and see why a student turned out as it did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("run")
def run_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name of `recipes`.")
    ],
    overrides: Overrides = None,
    out: OutFolder = None,
    trust_code: TrustCode = False,
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
    as_json: Json = False,
) -> None:
    """Run a recipe: train, measure and report. The same command resumes an interrupted run."""
    from distillens.study.reading import check_places, read_recipe

    if as_json and not plan:
        raise RecipeError("--json needs --plan; leave it out, results.json contains the results")
    # Everything that does not need torch is checked before its import, which takes seconds.
    parsed = read_recipe(recipe, overrides or [], trust_code=trust_code)
    check_places(parsed)
    if plan:
        _show_plan(parsed, out, trust_code, workers, as_json)
        return
    from distillens.progress import terminal
    from distillens.runs.layout import run_folder
    from distillens.study.run_recipe import run

    folder = run_folder(out, parsed.name)

    start = partial(run, parsed, folder, trust_code=trust_code, progress=terminal(console))
    if workers == 1:
        start()
    else:
        from distillens.integrations.ray import ray_workers

        with ray_workers(workers) as spread:
            start(spread=spread)
    _show(folder)


app.command("check")(check_command)
app.command("table")(table_command)
app.command("complexity")(complexity_command)
app.command("report")(report_command)
app.command("audit")(audit_command)
app.command("compare")(compare_command)
app.command("measure")(measure_command)
app.command("runs")(runs_command)
app.command("eigenspace")(eigenspace_command)


@app.command("export")
def export_command(
    run: RunFolder,
    supervision: Supervision = None,
    seed: Seed = None,
    formats: Annotated[
        str, typer.Option("--format", help="Comma-separated formats: safetensors, torch, onnx.")
    ] = "safetensors,torch",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=user_path,
            help="By default exports/<study>-<student>-seed-<s>.",
        ),
    ] = None,
    trust_code: TrustCode = False,
    student: RemovedStudent = None,
) -> None:
    """Export a trained student for deployment, and check each file against the run.

    Without --supervision and --seed, the student with the highest validation accuracy is written.
    """
    refuse_student(student)
    from distillens.export.export import default_folder, export_run

    names = [name.strip() for name in formats.split(",") if name.strip()]
    done = export_run(
        run, student=supervision, seed=seed, formats=names, out=out, trust_code=trust_code
    )
    # Rich would parse brackets in a name as markup.
    lines = [f"{done.student}, seed {done.seed}, epoch {done.epoch}: {done.chosen_by}"]
    lines += [
        f"{file.name}  {file.size / 1000:,.0f} kB  outputs differ by at most {file.difference:.1g}"
        for file in done.files
    ]
    lines += [f"{name}  reads sentences" for name in done.tokenizers]
    lines += [f"note: {note}" for note in done.notes]
    lines.append(f"export: {out if out is not None else default_folder(done)}")
    for line in lines:
        show_line(line)


def _removed(name: str, instead: str) -> None:
    """Register a removed command of version 0.1, whose error names its replacement."""

    @app.command(name, hidden=True, context_settings={"ignore_unknown_options": True})
    def command(arguments: RemovedArguments = None) -> None:
        del arguments
        raise RecipeError(f"`distillens {name}` was replaced by `distillens {instead}`")


_removed("settings", "compare RUN...")
_removed("language", "run RECIPE")


@app.command("recipes")
def recipes_command() -> None:
    """List the recipes that come with distillens."""
    from distillens.study import packaged_recipes
    from distillens.study.reading import describe

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    for name, path in packaged_recipes().items():
        table.add_row(name, describe(path))
    show(table)


@app.command("theory")
def theory_command(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="flow, bias, risk, ridge or denoising.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", parser=user_path, help="Output folder.")
    ] = Path("theory"),
    as_json: Json = False,
) -> None:
    """Run a study of the theory lab; write its figure (SVG, PNG), arrays and numbers."""
    from distillens.report import lab_json, lab_table, write_lab
    from distillens.theory import run_study

    shown = run_study(study)
    paths = write_lab(shown, out)
    if as_json:
        show_json(lab_json(shown))
        return
    show(lab_table(shown))
    for path in paths:
        show_line(f"{path}")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _show_plan(
    recipe: Recipe, out: Path | None, trust_code: bool, workers: int, as_json: bool
) -> None:
    from distillens.report import plan_text
    from distillens.results.base import to_json
    from distillens.study.planning.estimate import plan_run

    found = plan_run(recipe, out, trust_code=trust_code, workers=workers)
    if as_json:
        show_json(to_json(found))
    else:
        show(plan_text(found))
    if found.problems:
        raise typer.Exit(2)


def _show(folder: Path) -> None:
    table_command(folder)
    report_command(folder)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; errors of distillens become one line on standard error."""
    prepare_streams()
    try:
        return app(args=arguments, standalone_mode=True)
    except DistillensError as error:
        _fail(error)
    except (RuntimeError, MemoryError) as error:
        # The error is torch's own, so torch is imported already.
        from distillens.forward.device_errors import translate

        advice = "use smaller data or batches, or another device"
        message = translate(error, "this command", advice)
        if message is None:
            raise
        _fail(message)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"distillens: {where}{error.strerror or error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def _fail(error: DistillensError) -> NoReturn:
    line = " ".join(str(error).split())
    print(f"distillens: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


if __name__ == "__main__":
    main()
