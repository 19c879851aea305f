"""`distillens audit` and `distillens settings`: does a student disobey, and does it pay?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.measure import Measurement

from distillens.commands.terminal import console, error_console, show, show_json
from distillens.errors import RecipeError
from distillens.paths import user_path

_FILES = "An npy, npz, csv, parquet or safetensors file, or FILE::KEY; SPLIT=FILE for several."


def audit_command(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", parser=user_path, help="A finished run; or none, with arrays."
        ),
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
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=user_path,
            help="A folder for audit.json and the plotted points.",
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 1000,
    seed: Annotated[
        int | None, typer.Option(help="Of a run: the student's; by default the first of each.")
    ] = None,
    other_teacher_run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            parser=user_path,
            help="Of a run: a run with a teacher of another seed.",
        ),
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
        progress=terminal(error_console if as_json else console),
    )
    if as_json:
        show_json(to_json(result))
    else:
        show(run_audit_text(result))
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
        show_json(to_json(result))
    else:
        show(audit_text(result))
    if out is None:
        return
    arrays = {split: found.arrays() for split, found in points.items()}
    for path in write_audit(result, arrays, out):
        # Standard output holds nothing but JSON where JSON was asked for.
        typer.echo(f"written: {path}", err=as_json)


def settings_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", parser=user_path, help="Finished runs.")
    ],
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown, for a text.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 1000,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Allow a model that runs the recipe's own code.")
    ] = False,
) -> None:
    """Print one line a run and supervision: slopes, accuracies, what disobeying brought."""
    from distillens.report import settings_blocks, settings_markdown, settings_table
    from distillens.results import to_json
    from distillens.study.settings import measure_settings

    if markdown and as_json:
        raise RecipeError("give --markdown or --json, not both")
    result = measure_settings(runs, resamples=resamples, trust_code=trust_code)
    if as_json:
        show_json(to_json(result))
    elif markdown:
        typer.echo(settings_markdown(result), nl=False)
    else:
        table = settings_table(result)
        unbounded = console.options.update(max_width=10_000)
        fits = Measurement.get(console, unbounded, table).minimum <= console.width
        show(table if fits else settings_blocks(result))
