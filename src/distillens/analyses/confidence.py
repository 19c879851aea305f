"""The confidence analysis: audits of the students of a finished run, on train and test.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923. Shapes: N examples, C classes.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

from numpy.typing import NDArray
from pydantic import Field

from distillens.analyses.finished import SPLITS, FinishedRun, FinishedStudent, described
from distillens.analyses.selection import RANDOM_SEED, StudentSettings
from distillens.errors import MeasureError, RunError
from distillens.files.atomic import write_atomically
from distillens.measures.confidence import audit_with_points
from distillens.measures.confidence.log_odds import Points
from distillens.models import ModelRecipe
from distillens.progress import Progress, silent
from distillens.results.base import SCHEMA, to_json
from distillens.results.confidence import Confidence, StudentAudit
from distillens.runs.folder import find_run
from distillens.runs.layout import Run
from distillens.runs.read import read_data, read_result
from distillens.study.networks import network_logits, read_cell, write_arrays
from distillens.study.reading import read_recipe


class ConfidenceSettings(StudentSettings):
    """Settings of the confidence analysis."""

    seeds: tuple[int, ...] | Literal["first", "all"] = "all"
    resamples: int = Field(default=1000, ge=100)
    """Number of bootstrap resamples."""
    listed_departures: int = Field(default=10, ge=0)
    """Number of departures from the teacher that are listed of each outcome."""
    other_teacher_run: Path | None = None
    """A run on the same data whose teacher is the same model with another seed, as a reference."""


def measure(
    context: FinishedRun, settings: ConfidenceSettings | None = None, progress: Progress = silent
) -> tuple[Confidence, tuple[dict[str, Points], ...]]:
    """Audit students against their teacher at the last epoch.

    References are the student trained on labels with the same seed, if the run has one, and the
    teacher of another run. Predictions are judged by the true labels, also if the recipe changed some
    of them. A student that cannot be audited is left out and named in the notes.

    Returns
    -------
    tuple
        The result, and for each of its students the points of the confidence plot by split.

    Raises
    ------
    RecipeError
        The run has no such student or seed.
    RunError
        The other run does not fit.
    """
    began = time.perf_counter()
    settings = ConfidenceSettings() if settings is None else settings
    chosen = settings.chosen(context)
    other_name, other = None, None
    if settings.other_teacher_run is not None:
        other_name, other = _other_teacher(context, settings.other_teacher_run)
    students, plotted, failures = [], [], []
    with progress("confidence of students and teacher", len(chosen)) as advance:
        for student in chosen:
            try:
                audit, points = _audit(context, student, other, settings)
            except MeasureError as error:
                failures.append(f"{student.entry.title}, seed {student.cell.seed}: {error}")
            else:
                students.append(audit)
                plotted.append(points)
            advance(1)
    result = Confidence(
        SCHEMA, other_name, tuple(students), time.perf_counter() - began, tuple(failures)
    )
    return result, tuple(plotted)


def write_confidence(
    run: Run, result: Confidence, points: tuple[dict[str, Points], ...]
) -> Confidence:
    """Write a result and its points into a run folder; return it with the paths of the points."""
    students = []
    for place, (student, by_split) in enumerate(zip(result.students, points, strict=True)):
        paths = {
            split: run.points(place, student.student, student.seed or 0, split)
            for split in by_split
        }
        for split, found in by_split.items():
            arrays = found.arrays()
            single = {key: arrays[key].astype("float32") for key in ("x", "y")}
            write_arrays(paths[split], {**arrays, **single})
        named = {split: run.relative(path) for split, path in paths.items()}
        students.append(replace(student, points=named))
    written = replace(result, students=tuple(students))
    write_atomically(run.confidence, to_json(written))
    return written


def _audit(
    run: FinishedRun,
    student: FinishedStudent,
    other: dict[str, NDArray] | None,
    settings: ConfidenceSettings,
) -> tuple[StudentAudit, dict[str, Points]]:
    audit, points = audit_with_points(
        run.roles(student, other),
        kind=run.kinds(),
        resamples=settings.resamples,
        bootstrap_seed=RANDOM_SEED,
        telling=settings.listed_departures,
    )
    title, kind = student.entry.title, student.entry.kind
    return StudentAudit(title, kind, student.cell.seed, audit, run.notes()), points


def _other_teacher(run: FinishedRun, folder: Path) -> tuple[str, dict[str, NDArray]]:
    """Return the name of another run and the logits of its teacher on the same examples."""
    other = find_run(folder)
    recipe = read_recipe(other.recipe, trust_code=run.scene.trust_code)
    if recipe.teacher.training is None or not other.teacher.cell.is_file():
        raise RunError(f"{folder} has no trained teacher of its own; name the run that trained it")
    found, here = read_data(other)["fingerprint"], run.scene.splits.fingerprint
    if found != here:
        raise RunError(
            f"the teacher of {folder} saw other data: fingerprint {str(found)[:12]}, here "
            f"{here[:12]}; give a run with the same data recipe"
        )
    if _values(recipe.teacher.model) != _values(run.teacher.model):
        raise RunError(
            f"the teacher of {folder} is {_words(recipe.teacher.model)}, this run's "
            f"{_words(run.teacher.model)}; as a reference it must differ in its seed alone"
        )
    if read_cell(other.teacher).weights_digest == run.teacher.cell.weights_digest:
        raise RunError(
            f"the teacher of {folder} is this run's own teacher; give a run with another teacher.seed"
        )
    logits = network_logits(other.teacher)
    return read_result(other).name, {split: logits[split] for split in SPLITS}


def _values(model: ModelRecipe | None) -> dict[str, object] | None:
    return None if model is None else model.model_dump()


def _words(model: ModelRecipe | None) -> str:
    return "known by its logits alone" if model is None else described(model)
