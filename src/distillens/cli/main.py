"""The command line. Every error that a user can act on is one line and exit status 2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from distillens import __version__
from distillens.cli import arrays, measure, options, recipes, runs, terminal
from distillens.errors import DistillensError, RecipeError

app = typer.Typer(
    help="Distil small networks from large ones, and see why a student turned out as it did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("run")(recipes.run_command)
app.command("check")(recipes.check_command)
app.command("table")(runs.table_command)
app.command("complexity")(arrays.complexity_command)
app.command("report")(runs.report_command)
app.command("audit")(arrays.audit_command)
app.command("compare")(measure.compare_command)
app.command("measure")(measure.measure_command)
app.command("runs")(runs.runs_command)
app.command("eigenspace")(measure.eigenspace_command)
app.command("export")(runs.export_command)
app.command("recipes")(recipes.recipes_command)


def _removed(name: str, instead: str) -> None:
    """Register a removed command of version 0.1, whose error names its replacement."""

    @app.command(name, hidden=True, context_settings={"ignore_unknown_options": True})
    def command(arguments: options.RemovedArguments = None) -> None:
        del arguments
        raise RecipeError(f"`distillens {name}` was replaced by `distillens {instead}`")


_removed("settings", "compare RUN...")
_removed("language", "run RECIPE")


@app.command("theory")
def theory_command(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="flow, bias, risk, ridge or denoising.")
    ],
    out: Annotated[Path, options.path_option("Output folder.")] = Path("theory"),
    as_json: options.Json = False,
) -> None:
    """Run a study of the theory lab; write its figure (SVG, PNG), arrays and numbers."""
    from distillens.report import lab_json, lab_table, write_lab
    from distillens.theory import run_study

    shown = run_study(study)
    paths = write_lab(shown, out)
    if as_json:
        terminal.show_json(lab_json(shown))
        return
    terminal.show(lab_table(shown))
    terminal.show_line(*map(str, paths))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; errors of distillens become one line on standard error."""
    terminal.prepare_streams()
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
