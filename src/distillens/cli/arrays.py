"""`distillens audit` and `distillens complexity`: measurements of networks and arrays in files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distillens.cli.options import Json, RemovedArguments, Resamples, TrustCode, path_option
from distillens.cli.terminal import progress_bars, show, show_line, show_result
from distillens.errors import RecipeError, nearest
from distillens.files.paths import user_path

if TYPE_CHECKING:
    from distillens.files.tables import Rows

Texts = list[str] | None
"""The values of an option that may be repeated."""

_ROLES = {"reference": "one-hot student", "other-teacher": "other teacher"}
"""Names in the results of roles that have another name on the command line."""

_COLUMN = (
    "NAME applies to every file that has it, ROLE=NAME to one, such as teacher=f0 (f0 is first)."
)
_FILES = "An npy, npz, csv, tsv, parquet or safetensors file, or FILE::KEY; SPLIT=FILE for several."


def audit_command(
    removed: RemovedArguments = None,
    teacher: Annotated[Texts, typer.Option(help=f"The teacher's outputs. {_FILES}")] = None,
    student: Annotated[Texts, typer.Option(help="The student's outputs, in the same form.")] = None,
    labels: Annotated[
        Texts,
        typer.Option(help="True classes: integers from 0, or names in the header of the outputs."),
    ] = None,
    inputs: Annotated[
        Texts, typer.Option(help="Inputs; text is shown with the listed departures.")
    ] = None,
    mislabelled: Annotated[Texts, typer.Option(help="A mask, 1 where the label is wrong.")] = None,
    reference: Annotated[
        Texts, typer.Option(help="Outputs of a student trained on labels alone.")
    ] = None,
    other_teacher: Annotated[
        Texts, typer.Option(help="Outputs of a teacher of another seed.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="logits or probabilities; auto-detected and reported if omitted."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Accepted deviation of a row of rounded probabilities from a sum of 1. [0.001]"
        ),
    ] = None,
    index: Annotated[
        Texts, typer.Option(help=f"Column with the index of each row. {_COLUMN}")
    ] = None,
    drop: Annotated[Texts, typer.Option(help=f"Column to ignore. {_COLUMN}")] = None,
    keep: Annotated[
        Texts,
        typer.Option(
            help=f"Column that is a class although it looks like row numbers or labels. {_COLUMN}"
        ),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Whether a first row of integers in a csv file is a header; detected if omitted.",
        ),
    ] = None,
    as_json: Json = False,
    out: Annotated[
        Path | None, path_option("Folder for audit.json and the plotted points.")
    ] = None,
    resamples: Resamples = 1000,
) -> None:
    """Audit a student against its teacher, from arrays of their outputs."""
    if removed:
        raise RecipeError(
            "`distillens audit RUN` was replaced by `distillens measure RUN confidence`, and by the "
            "analyses over-training and kernels"
        )
    if not (teacher and student and labels):
        raise RecipeError(
            "give --teacher, --student and --labels; a finished run is audited by "
            "`distillens measure RUN confidence`"
        )
    files = {
        "teacher": teacher, "student": student, "labels": labels, "inputs": inputs,
        "mislabelled": mislabelled, "reference": reference, "other-teacher": other_teacher,
    }  # fmt: skip
    given = _read(files, {"--index": index, "--drop": drop, "--keep": keep}, header)
    from distillens.measures.confidence import SUM_TOLERANCE, audit_with_points
    from distillens.report import audit_text, write_audit

    result, points = audit_with_points(
        given,
        kind=kind,
        tolerance=SUM_TOLERANCE if tolerance is None else tolerance,
        resamples=resamples,
    )
    show_result(result, audit_text, as_json)
    if out is not None:
        arrays = {split: found.arrays() for split, found in points.items()}
        for path in write_audit(result, arrays, out):
            # With --json, standard output contains JSON only.
            typer.echo(f"written: {path}", err=as_json)


def _read(
    files: Mapping[str, Texts],
    options: Mapping[str, Texts],
    header: bool | None,
) -> dict[str, Rows | dict[str, Rows] | None]:
    """Read the files of each role, with the columns that options name.

    Raises
    ------
    RecipeError
        An option names no column, or several columns as the index of one file.
    """
    from distillens.files.arrays import read_splits
    from distillens.files.tables import Columns

    found: dict[str, Rows | dict[str, Rows] | None] = {}
    known: set[str] = set()
    given = [(option, text) for option, each in options.items() for text in each or ()]
    unused = dict.fromkeys(given)
    for role, places in files.items():
        found[_ROLES.get(role, role)] = None
        if not places:
            continue
        named = {pair: column for pair in given if (column := _column(role, pair[1], files))}
        index, drop, keep = (
            tuple(column for (option, _), column in named.items() if option == each)
            for each in options
        )
        if len(index) > 1:
            raise RecipeError(f"--index names {len(index)} columns for {role}; give one")
        columns = Columns(next(iter(index), None), drop, keep, header, strict=False)
        rows = found[_ROLES.get(role, role)] = read_splits(places, columns)
        for one in rows.values() if isinstance(rows, dict) else [rows]:
            # The only column of a file is its values.
            there = set(one.columns) if len(one.columns) > 1 else set()
            known |= there
            for pair in [pair for pair, column in named.items() if column in there]:
                unused.pop(pair, None)
    for option, text in unused:
        raise RecipeError(f"{option} {text}: no file has such a column{nearest(text, known)}")
    return found


def _column(role: str, text: str, roles: Iterable[str]) -> str | None:
    """Return the column that NAME or ROLE=NAME names for a role."""
    head, separator, rest = text.partition("=")
    if not (separator and head in roles):
        return text
    return rest if head == role else None


def complexity_command(
    removed: RemovedArguments = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the estimated time and memory only.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Model as in a recipe, e.g. '{name: lenet5, width: 8}'.")
    ] = None,
    weights: Annotated[
        Path | None, path_option("Weights of the model: safetensors or a state dict.", "FILE")
    ] = None,
    inputs: Annotated[
        Path | None,
        path_option("npy file of inputs (N, ...), preprocessed for the model.", "FILE"),
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
    teacher_weights: Annotated[Path | None, path_option("Weights of the teacher.", "FILE")] = None,
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
    most = None if max_memory is None else round(max_memory * 1e9)
    if plan:
        show_line(str(task.plan(most)))
        return
    result = task.measure(
        ridge=ridge, max_memory=most, progress=progress_bars(as_json), profiled=profile
    )
    from distillens.report import certified_table, profile_table, teacher_kernel_line

    show_result(result, certified_table, as_json)
    if result.profile is not None and not as_json:
        show(profile_table(result.profile))
    if result.teacher_kernel is not None and not as_json:
        show_line(teacher_kernel_line(result.teacher_kernel))


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
