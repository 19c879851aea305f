"""Write a run's report from its numbers alone."""

from __future__ import annotations

from pathlib import Path

from distillens.files.atomic import write_atomically
from distillens.report.page import render
from distillens.runs.folder import find_run
from distillens.runs.read import read_arrays, read_result


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a finished run folder and return its path.

    Raises
    ------
    RunError
        The folder is no finished run, or its files are damaged.
    """
    run = find_run(Path(folder))
    result = read_result(run)
    points = {
        deviation.points: read_arrays(run.inside(deviation.points))
        for deviation in result.deviations
        if deviation.points is not None
    }
    write_atomically(run.report, render(result, points))
    return run.report
