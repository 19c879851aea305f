"""Train one student of a run in a process that does not hold the run."""

from __future__ import annotations

import socket
from pathlib import Path

from distillens.errors import RunError
from distillens.results.training import Cell, Trial
from distillens.runs.folder import latest_recipe
from distillens.runs.layout import Run
from distillens.runs.open import check_fingerprint
from distillens.runs.read import read_data
from distillens.study.context import StudyContext
from distillens.study.reading import read_recipe
from distillens.study.students import Student, train_student
from distillens.study.teacher import prepare_teacher
from distillens.study.tuning import tuned
from distillens.training import accelerator_for


def train_in_worker(folder: Path, student: Student, *, trust_code: bool = False) -> Cell | Trial:
    """Train a student of a run whose teacher is finished, and write its folder.

    The recipe and the teacher are read from the folder, and the data from the path in the recipe.
    Results are written by the process that holds the run.

    Raises
    ------
    RunError
        The folder or its teacher is missing, or the data differ from those of the run.
    DistillensError
        As `distillens.run` for this student.
    """
    run, host = Run(folder), socket.gethostname()
    if not run.data.is_file():
        raise RunError(
            f"{folder} is no run on {host}; the run folder must lie on a file system "
            "that all workers share"
        )
    recipe = tuned(read_recipe(latest_recipe(run), trust_code=trust_code), run)
    context = StudyContext.of(recipe, run, accelerator_for(recipe.precision), trust_code)
    there = str(read_data(run)["fingerprint"])
    check_fingerprint(run, there, context.splits.fingerprint, f"on {host}")
    if recipe.teacher.run is None and not run.teacher.cell.is_file():
        raise RunError(f"the teacher of {folder} is not finished; run its recipe first")
    return train_student(context, prepare_teacher(context), student)
