"""Write a run's report from its numbers alone."""

from __future__ import annotations

from pathlib import Path

from distillens.files.atomic import write_atomically
from distillens.report.page import render
from distillens.results.base import from_json
from distillens.results.confidence import Confidence
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
    confidence = None
    if run.confidence.is_file():
        confidence = from_json(Confidence, run.confidence.read_bytes(), str(run.confidence))
    points = [
        {split: read_arrays(run.inside(path)) for split, path in student.points.items()}
        for student in (() if confidence is None else confidence.students)
    ]
    write_atomically(run.report, render(result, confidence, points))
    return run.report
