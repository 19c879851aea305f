"""`distillens table`, `report`, `runs` and `export`: the commands that read run folders.

All but `export` show stored results without importing torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from distillens.cli import options, terminal
from distillens.errors import DistillensError, RunError


def table_command(run: options.RunFolder, markdown: options.Markdown = False) -> None:
    """Print a run's accuracy table."""
    from distillens.report import accuracy_table, cost_table, markdown_table
    from distillens.runs.open import OpenRun

    result = OpenRun.open(run, unfinished=True).result
    if markdown:
        terminal.show_line(markdown_table(result))
        return
    terminal.show(accuracy_table(result))
    if result.costs:
        terminal.show(cost_table(result))


def report_command(
    run: options.RunFolder,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also write the figures as SVG and PNG.")
    ] = False,
) -> None:
    """Rewrite report.html from the stored results of a run."""
    from distillens.report import write_figures, write_report

    terminal.show_line(f"report: {write_report(run)}")
    if figures:
        terminal.show_line(*(f"figure: {path}" for path in write_figures(run)))


def runs_command(
    folder: Annotated[
        Path, options.path_argument("Folder that contains the runs.", "[FOLDER]")
    ] = Path("runs"),
    delete: Annotated[
        Path | None,
        options.path_option("Delete a record, named as listed: RUN/analyses/NAME.", "RECORD"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List runs with the records of their analyses, or delete a record."""
    from distillens.results.base import to_json
    from distillens.runs.layout import Run
    from distillens.runs.records import delete_record

    if delete is not None:
        deleted = str(delete_record(Run(delete.parent.parent), delete.name))
        if as_json:
            terminal.show_json(to_json({"deleted": deleted}))
        else:
            terminal.show_line(f"deleted: {deleted}")
        return
    found = [path.parent for path in sorted(folder.glob("*/recipe.yaml"))]
    if (folder / "recipe.yaml").is_file():
        found = [folder]
    if not found:
        raise RunError(f"no run in {folder}; give the folder that holds the runs")
    listed = [_described(path) for path in found]
    if as_json:
        terminal.show_json(to_json({"runs": listed}))
        return
    table = Table(box=None, pad_edge=False, title_justify="left")
    for name in ("run", "networks", "records"):
        table.add_column(name, overflow="fold")
    for one in listed:
        records = "\n".join(record["path"] for record in one["records"]) or "–"
        table.add_row(one["run"], one["networks"], records)
    terminal.show(table)


def _described(folder: Path) -> dict[str, Any]:
    """Return the lines listed for a run, or the reason why it cannot be read."""
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


def export_command(
    run: options.RunFolder,
    supervision: options.Supervision = None,
    seed: options.Seed = None,
    formats: Annotated[
        str, typer.Option("--format", help="Comma-separated formats: safetensors, torch, onnx.")
    ] = "safetensors,torch",
    out: Annotated[
        Path | None, options.path_option("By default exports/<study>-<student>-seed-<s>.")
    ] = None,
    trust_code: options.TrustCode = False,
    student: options.RemovedStudent = None,
) -> None:
    """Export a trained student for deployment, and check each file against the run.

    Without --supervision and --seed, the student with the highest validation accuracy is written.
    """
    from distillens.export.export import default_folder, export_run

    names = [name.strip() for name in formats.split(",") if name.strip()]
    done = export_run(
        run, student=supervision, seed=seed, formats=names, out=out, trust_code=trust_code
    )
    # Rich would parse brackets in a name as markup.
    terminal.show_line(f"{done.student}, seed {done.seed}, epoch {done.epoch}: {done.chosen_by}")
    for file in done.files:
        size = f"{file.size / 1000:,.0f} kB"
        terminal.show_line(f"{file.name}  {size}  outputs differ by at most {file.difference:.1g}")
    terminal.show_line(*(f"{name}  reads sentences" for name in done.tokenizers))
    terminal.show_line(*(f"note: {note}" for note in done.notes))
    terminal.show_line(f"export: {out if out is not None else default_folder(done)}")
