"""`distillens audit`: the confidence of a student and its teacher, from arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distillens.cli.options import Json, RemovedArguments, Resamples
from distillens.cli.terminal import show, show_json
from distillens.errors import RecipeError, nearest
from distillens.files.paths import user_path

if TYPE_CHECKING:
    from distillens.files.arrays import Rows

_ROLES = {"reference": "one-hot student", "other-teacher": "other teacher"}
"""Names in the results of roles that have another name on the command line."""

_COLUMN = (
    "NAME applies to every file that has it, ROLE=NAME to one, such as teacher=f0 (f0 is first)."
)
_FILES = "An npy, npz, csv, tsv, parquet or safetensors file, or FILE::KEY; SPLIT=FILE for several."


def audit_command(
    removed: RemovedArguments = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help=f"The teacher's outputs. {_FILES}")
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(help="The student's outputs, in the same form."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="True classes: integers from 0, or names in the header of the outputs."),
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option(help="Inputs; text is shown with the listed departures.")
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
        list[str] | None, typer.Option(help=f"Column with the index of each row. {_COLUMN}")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help=f"Column to ignore. {_COLUMN}")] = None,
    keep: Annotated[
        list[str] | None,
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
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=user_path,
            help="Folder for audit.json and the plotted points.",
        ),
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
    _audit_arrays(given, kind, tolerance, resamples, as_json, out)


def _read(
    files: Mapping[str, list[str] | None],
    options: Mapping[str, list[str] | None],
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
    used: set[str] = set()
    for role, places in files.items():
        if not places:
            found[_ROLES.get(role, role)] = None
            continue
        named = {name: _columns_of(role, each or [], files) for name, each in options.items()}
        if len(named["--index"]) > 1:
            raise RecipeError(f"--index names {len(named['--index'])} columns for {role}; give one")
        rows = read_splits(
            places,
            Columns(
                next(iter(named["--index"].values()), None),
                tuple(named["--drop"].values()),
                tuple(named["--keep"].values()),
                header,
                strict=False,
            ),
        )
        found[_ROLES.get(role, role)] = rows
        for one in rows.values() if isinstance(rows, dict) else [rows]:
            # The only column of a file is its values.
            columns = set(one.columns) if len(one.columns) > 1 else set()
            known |= columns
            each_written = [pair for each in named.values() for pair in each.items()]
            used |= {written for written, name in each_written if name in columns}
    for name, each in options.items():
        for written in each or []:
            if written not in used:
                raise RecipeError(
                    f"{name} {written}: no file has such a column{nearest(written, known)}"
                )
    return found


def _columns_of(role: str, written: Sequence[str], roles: Iterable[str]) -> dict[str, str]:
    """Return the columns that an option names for a role, keyed by the text given: NAME or ROLE=NAME."""
    found = {}
    for one in written:
        head, separator, rest = one.partition("=")
        if separator and head in roles:
            if head == role:
                found[one] = rest
        else:
            found[one] = one
    return found


def _audit_arrays(
    given: Mapping[str, Rows | dict[str, Rows] | None],
    kind: str | None,
    tolerance: float | None,
    resamples: int,
    as_json: bool,
    out: Path | None,
) -> None:
    from distillens.measures.confidence import SUM_TOLERANCE, audit_with_points
    from distillens.report import audit_text, write_audit
    from distillens.results.base import to_json

    result, points = audit_with_points(
        given,
        kind=kind,
        tolerance=SUM_TOLERANCE if tolerance is None else tolerance,
        resamples=resamples,
    )
    if as_json:
        show_json(to_json(result))
    else:
        show(audit_text(result))
    if out is None:
        return
    arrays = {split: found.arrays() for split, found in points.items()}
    for path in write_audit(result, arrays, out):
        # With --json, standard output contains JSON only.
        typer.echo(f"written: {path}", err=as_json)
