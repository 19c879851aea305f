"""`distillens measure` and `distillens runs`: analyses of finished runs, and their records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from distillens.cli.options import Json, RunFolder, Seed, Supervision, TrustCode
from distillens.cli.report import report_command
from distillens.cli.terminal import console, error_console, show, show_json, show_line
from distillens.errors import RecipeError, RunError
from distillens.files.paths import user_path


def measure_command(
    run: RunFolder,
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
    supervision: Supervision = None,
    seed: Seed = None,
    data_path: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", parser=user_path, help="Path of the data, if they have been moved."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the estimated time and memory without measuring.")
    ] = False,
    as_json: Json = False,
    trust_code: TrustCode = False,
) -> None:
    """Measure a finished run and store the result as a record; nothing else in the run changes."""
    from distillens.analyses.finished import finished_run
    from distillens.analyses.measure import measure
    from distillens.analyses.measure import plan as plan_of
    from distillens.analyses.registry import ANALYSES
    from distillens.progress import terminal
    from distillens.report import record_tables
    from distillens.results.base import to_json
    from distillens.study.reading import override_key

    if plan and as_json:
        raise RecipeError("--plan prints text; give --plan or --json, not both")
    chosen = ANALYSES.get(analysis)
    values: dict[str, object] = {}
    for override in settings or []:
        override_key(values, override)
    opened = finished_run(
        run,
        data_path=data_path,
        trust_code=trust_code,
        progress=terminal(error_console if as_json else console),
    )
    if plan:
        show_line(plan_of(opened, analysis, values, supervision=supervision, seed=seed))
        return
    record = measure(opened, analysis, values, supervision=supervision, seed=seed)
    if as_json:
        show_json(to_json(record.content))
        write_page(run)
        return
    tables = record_tables(record)
    if tables is not None:
        show(*tables)
    elif chosen.lines is not None:
        for line in chosen.lines(record.result(chosen.result)):
            show_line(line)
    else:
        show_json(to_json(record.content))
    show_line(f"record: {record.folder}")
    report_command(run)


def write_page(run: Path) -> None:
    """Rewrite the report of a run without printing anything."""
    from distillens.report import write_report

    write_report(run)


def runs_command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="[FOLDER]", parser=user_path, help="Folder that contains the runs."),
    ] = Path("runs"),
    delete: Annotated[
        Path | None,
        typer.Option(
            metavar="RECORD",
            parser=user_path,
            help="Delete a record, named as listed: RUN/analyses/NAME.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs with the records of their analyses, or delete a record."""
    from distillens.runs.layout import Run
    from distillens.runs.records import delete_record

    if delete is not None:
        deleted = delete_record(Run(delete.parent.parent), delete.name)
        if as_json:
            show_json(_json({"deleted": str(deleted)}))
        else:
            show_line(f"deleted: {deleted}")
        return
    found = [path.parent for path in sorted(folder.glob("*/recipe.yaml"))]
    if (folder / "recipe.yaml").is_file():
        found = [folder]
    if not found:
        raise RunError(f"no run in {folder}; give the folder that holds the runs")
    listed = [_described(path) for path in found]
    if as_json:
        show_json(_json({"runs": listed}))
        return
    table = Table(box=None, pad_edge=False, title_justify="left")
    for name in ("run", "networks", "records"):
        table.add_column(name, overflow="fold")
    for one in listed:
        records = "\n".join(str(record["path"]) for record in one["records"]) or "–"
        table.add_row(str(one["run"]), str(one["networks"]), records)
    show(table)


def _described(folder: Path) -> dict[str, Any]:
    """Return the lines listed for a run, or the reason why it cannot be read."""
    from distillens.errors import DistillensError
    from distillens.runs.open import OpenRun

    try:
        run = OpenRun.open(folder, unfinished=True)
    except DistillensError as error:
        return {"run": str(folder), "networks": f"cannot be read: {error}", "records": []}
    trained, still = len(run.result.cells), len(run.result.open_cells)
    words = f"{trained} trained" + (f", {still} open" if still else "")
    records = [
        {
            "path": str(one.folder),
            "analysis": one.content.analysis,
            "settings": one.content.settings,
            "finished": one.content.provenance.finished,
        }
        for one in run.records()
    ]
    return {"run": str(folder), "networks": words, "records": records}


def _json(content: object) -> str:
    import json

    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
