"""Write a run's report from its numbers alone."""

from __future__ import annotations

from pathlib import Path

from distillens.files.atomic import write_atomically
from distillens.report.contents import Contents
from distillens.report.page import render
from distillens.runs.open import OpenRun


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a finished run folder and return its path.

    Raises
    ------
    RunError
        The folder is no finished run, or its files are damaged.
    """
    run = OpenRun.open(folder, unfinished=True)
    contents = Contents.of(run)
    write_atomically(run.files.report, render(contents))
    return run.files.report
