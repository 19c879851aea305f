"""`distillens measure`, `eigenspace` and `compare`: analyses of finished runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distillens.cli import options, terminal
from distillens.cli.runs import report_command
from distillens.errors import RecipeError


def measure_command(
    run: options.RunFolder,
    analysis: Annotated[
        str,
        typer.Argument(
            metavar="ANALYSIS",
            help="Name of the analysis: complexity, confidence, kernels or over-training.",
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the analysis, as KEY=VALUE."),
    ] = None,
    supervision: options.Supervision = None,
    seed: options.Seed = None,
    data_path: Annotated[
        Path | None, options.path_option("Path of the data, if they have been moved.", "PATH")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the estimated time and memory without measuring.")
    ] = False,
    as_json: options.Json = False,
    trust_code: options.TrustCode = False,
) -> None:
    """Measure a finished run and store the result as a record; nothing else in the run changes."""
    from distillens.analyses.finished import finished_run
    from distillens.analyses.measure import measure
    from distillens.analyses.measure import plan as plan_of
    from distillens.analyses.registry import ANALYSES
    from distillens.report import record_tables, write_report
    from distillens.results.base import to_json
    from distillens.study.reading import override_key

    if plan and as_json:
        raise RecipeError("--plan prints text; give --plan or --json, not both")
    chosen = ANALYSES.get(analysis)
    values: dict[str, object] = {}
    for override in settings or []:
        override_key(values, override)
    opened = finished_run(
        run, data_path=data_path, trust_code=trust_code, progress=terminal.progress_bars(as_json)
    )
    if plan:
        terminal.show_line(plan_of(opened, analysis, values, supervision=supervision, seed=seed))
        return
    record = measure(opened, analysis, values, supervision=supervision, seed=seed)
    if as_json:
        terminal.show_json(to_json(record.content))
        write_report(run)
        return
    tables = record_tables(record)
    if tables is not None:
        terminal.show(*tables)
    elif chosen.lines is not None:
        terminal.show_line(*chosen.lines(record.result(chosen.result)))
    else:
        terminal.show_json(to_json(record.content))
    terminal.show_line(f"record: {record.folder}")
    report_command(run)


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
        options.path_argument("Run folders of one recipe with different seeds.", "RUN..."),
    ],
    supervision: options.Supervision = None,
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
    as_json: options.Json = False,
    out: Annotated[Path, options.path_option("Output folder.")] = Path("eigenspace"),
    trust_code: options.TrustCode = False,
    student: options.RemovedStudent = None,
    seed: Annotated[int | None, options.removed_option("--seed", "--pair-seed")] = None,
) -> None:
    """Compare how fast teacher and students learn along eigenvectors of a layer's inputs.

    The runs have one recipe with different seeds. Writes eigenspace.json, the trajectories as
    eigenspace.npz, and figures (SVG, PNG).
    """
    from distillens.analyses.eigenspace.dynamics import EigenspaceTask, measure_eigenspace
    from distillens.report import eigenspace_table, write_eigenspace

    low, dash, high = bottom.partition("-")
    if not (dash and low.isdigit() and high.isdigit()):
        raise RecipeError(f"bottom {bottom!r} is no range such as 20-60")
    task = EigenspaceTask(
        student=supervision,
        layer=layer,
        split=split.value,
        examples=examples,
        pairs=pairs,
        pair_seed=pair_seed,
        top=top,
        bottom=(int(low), int(high)),
        kernel=kernel.value,
    )
    result, arrays = measure_eigenspace(
        runs, task, trust_code=trust_code, progress=terminal.progress_bars(as_json)
    )
    paths = write_eigenspace(result, arrays, out)
    terminal.show_result(result, eigenspace_table, as_json)
    for path in paths:
        typer.echo(f"{path}", err=as_json)


def compare_command(
    runs: Annotated[list[Path], options.path_argument("Folders of finished runs.", "RUN...")],
    markdown: options.Markdown = False,
    as_json: options.Json = False,
    out: Annotated[
        Path | None, options.path_option("A folder for comparison.json and comparison.md.")
    ] = None,
    resamples: options.Resamples = 1000,
    trust_code: options.TrustCode = False,
) -> None:
    """Print one row per run and supervision: slopes, accuracies and the net gain of departures."""
    from distillens.analyses.compare import compare
    from distillens.report import (
        settings_blocks,
        settings_markdown,
        settings_table,
        write_comparison,
    )

    if markdown and as_json:
        raise RecipeError("give --markdown or --json, not both")
    result = compare(runs, resamples=resamples, trust_code=trust_code)
    for path in () if out is None else write_comparison(result, out):
        typer.echo(f"written: {path}", err=as_json)
    if markdown:
        terminal.show_line(settings_markdown(result).rstrip("\n"))
        return
    fits = terminal.smallest_width(settings_table(result)) <= terminal.console.width
    terminal.show_result(result, settings_table if fits else settings_blocks, as_json)
