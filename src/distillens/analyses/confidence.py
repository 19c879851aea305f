"""The confidence analysis: audits of the students of a finished run, on train and test.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923. Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from distillens.analyses.finished import SPLITS, FinishedRun, FinishedStudent, described
from distillens.analyses.listed_inputs import listed_inputs
from distillens.analyses.registry import Analysis, Measured, register_analysis
from distillens.analyses.selection import RANDOM_SEED, all_seeds
from distillens.errors import MeasureError, RunError
from distillens.measures.confidence import audit_with_points
from distillens.results.base import SCHEMA
from distillens.results.confidence import LISTED_INPUTS, Confidence, StudentAudit
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
        A `Confidence`, for each student and split the points of the confidence plot, and the inputs
        of the departures that are listed for the first seed of each supervision.

    Raises
    ------
    RunError
        The other run does not fit.
    """
    other_name, other = None, None
    if settings.other_teacher_run is not None:
        other_name, other = _other_teacher(run, settings.other_teacher_run)
    found: list[StudentAudit] = []
    arrays: dict[str, dict[str, NDArray]] = {}
    failures = []
    with run.context.progress("confidence of students and teacher", len(students)) as advance:
        for student in students:
            entry, seed = student.entry, student.cell.seed
            try:
                audit, points = audit_with_points(
                    run.roles(student, other),
                    kind=run.kinds(),
                    resamples=settings.resamples,
                    bootstrap_seed=RANDOM_SEED,
                    listed_departures=settings.listed_departures,
                )
            except MeasureError as error:
                failures.append(f"{entry.title}, seed {seed}: {error}")
            else:
                stem = f"points-{student.id.supervision:02d}-seed-{student.id.seed}"
                names = {split: f"{stem}-{split}" for split in points}
                for split, one in points.items():
                    single = {"x": one.x_N.astype("float32"), "y": one.y_N.astype("float32")}
                    arrays[names[split]] = {**one.arrays(), **single}
                found.append(StudentAudit(entry.title, entry.kind, seed, audit, run.notes(), names))
            advance(1)
    if inputs := listed_inputs(run, found):
        arrays[LISTED_INPUTS] = inputs
    return Measured(Confidence(SCHEMA, other_name, tuple(found), tuple(failures)), arrays)


def _other_teacher(run: FinishedRun, folder: Path) -> tuple[str, dict[str, NDArray]]:
    """Return the name of another run and the logits of its teacher on the same examples."""
    other = find_run(folder)
    recipe = read_recipe(other.recipe, trust_code=run.context.trust_code)
    if recipe.teacher.training is None or not other.teacher.cell.is_file():
        raise RunError(f"{folder} has no trained teacher of its own; name the run that trained it")
    check_fingerprint(other, run.context.splits.fingerprint, "of this run")
    if recipe.teacher.model != run.teacher.model:
        raise RunError(
            f"the teacher of {folder} is {described(recipe.teacher.model)}, this run's "
            f"{described(run.teacher.model)}; as a reference it must differ in its seed alone"
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
