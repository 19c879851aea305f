"""The confidence analysis: audits of the students of a finished run, on train and test.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923. Shapes: N examples, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from distillens.analyses.finished import SPLITS, FinishedRun, FinishedStudent, described
from distillens.analyses.registry import Analysis, Measured, register_analysis
from distillens.analyses.selection import RANDOM_SEED, all_seeds
from distillens.errors import MeasureError, RunError
from distillens.measures.confidence import audit_with_points
from distillens.measures.confidence.log_odds import Points
from distillens.models import ModelRecipe
from distillens.results.base import SCHEMA
from distillens.results.confidence import Confidence, StudentAudit
from distillens.runs.folder import find_run
from distillens.runs.open import check_fingerprint
from distillens.study.networks import read_cell
from distillens.study.reading import read_recipe


class ConfidenceSettings(BaseModel):
    """Settings of the confidence analysis."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resamples: int = Field(default=1000, ge=100)
    """Number of bootstrap resamples."""
    listed_departures: int = Field(default=10, ge=0)
    """Number of departures from the teacher that are listed of each outcome."""
    other_teacher_run: Path | None = None
    """A run on the same data whose teacher is the same model with another seed, as a reference."""


def measure_confidence(
    run: FinishedRun, students: Sequence[FinishedStudent], settings: ConfidenceSettings
) -> Measured:
    """Audit students against their teacher at the last epoch.

    References are the student trained on labels with the same seed, if the run has one, and the
    teacher of another run. Predictions are judged by the true labels, also if the recipe changed some
    of them. A student that cannot be audited is left out and named in the notes.

    Returns
    -------
    Measured
        A `Confidence`, and for each student and split the points of the confidence plot.

    Raises
    ------
    RunError
        The other run does not fit.
    """
    began = time.perf_counter()
    other_name, other = None, None
    if settings.other_teacher_run is not None:
        other_name, other = _other_teacher(run, settings.other_teacher_run)
    found: list[StudentAudit] = []
    arrays: dict[str, dict[str, NDArray]] = {}
    failures = []
    with run.context.progress("confidence of students and teacher", len(students)) as advance:
        for student in students:
            try:
                audit, points = _audit(run, student, other, settings)
            except MeasureError as error:
                failures.append(f"{student.entry.title}, seed {student.cell.seed}: {error}")
            else:
                stem = f"points-{student.id.supervision:02d}-seed-{student.id.seed}"
                names = {split: f"{stem}-{split}" for split in points}
                arrays |= {names[split]: _single(one.arrays()) for split, one in points.items()}
                found.append(replace(audit, points=names))
            advance(1)
    seconds = time.perf_counter() - began
    result = Confidence(SCHEMA, other_name, tuple(found), seconds, tuple(failures))
    return Measured(result, arrays)


def _single(arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """Return the arrays of a plot with its coordinates in single precision."""
    return {**arrays, **{key: arrays[key].astype("float32") for key in ("x", "y")}}


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
        listed_departures=settings.listed_departures,
    )
    title, kind = student.entry.title, student.entry.kind
    return StudentAudit(title, kind, student.cell.seed, audit, run.notes()), points


def _other_teacher(run: FinishedRun, folder: Path) -> tuple[str, dict[str, NDArray]]:
    """Return the name of another run and the logits of its teacher on the same examples."""
    other = find_run(folder)
    recipe = read_recipe(other.recipe, trust_code=run.context.trust_code)
    if recipe.teacher.training is None or not other.teacher.cell.is_file():
        raise RunError(f"{folder} has no trained teacher of its own; name the run that trained it")
    check_fingerprint(other, run.context.splits.fingerprint, "of this run")
    if _values(recipe.teacher.model) != _values(run.teacher.model):
        raise RunError(
            f"the teacher of {folder} is {_words(recipe.teacher.model)}, this run's "
            f"{_words(run.teacher.model)}; as a reference it must differ in its seed alone"
        )
    if read_cell(other.teacher).weights_digest == run.teacher.cell.weights_digest:
        raise RunError(
            f"the teacher of {folder} is this run's own teacher; give a run with another teacher.seed"
        )
    context, model, epochs = run.context, recipe.teacher.model, recipe.teacher.training.epochs

    def network() -> nn.Module | None:
        return None if model is None else context.load(model, other.teacher, epochs, "teacher")

    logits = context.task.logits
    return recipe.name, {split: logits(context, other.teacher, network, split) for split in SPLITS}


def _values(model: ModelRecipe | None) -> dict[str, object] | None:
    return None if model is None else model.model_dump()


def _words(model: ModelRecipe | None) -> str:
    return "known by its logits alone" if model is None else described(model)


register_analysis(
    Analysis(
        name="confidence",
        summary="Confidence of students and teacher: exaggeration, fidelity, calibration, departures.",
        settings=ConfidenceSettings,
        result=Confidence,
        measure=measure_confidence,
        choose=all_seeds,
    )
)
