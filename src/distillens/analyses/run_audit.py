"""The audit of a finished run: its analyses of confidence, checkpoints and kernels, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distillens.analyses import confidence, kernels
from distillens.analyses.finished import finished_run
from distillens.analyses.over_training import OverTrainingSettings
from distillens.analyses.over_training import measure as measure_checkpoints
from distillens.errors import RecipeError, RunError
from distillens.measures.confidence.log_odds import Points
from distillens.progress import Progress, silent
from distillens.results.base import SCHEMA
from distillens.results.confidence import RunAudit

OVER_TRAINING = 2_000
"""Default number of examples of a split at which checkpoints are measured."""
KERNEL_EXAMPLES = 64
"""Default number of test examples on which kernels are compared."""


def audit_run(
    folder: str | Path,
    *,
    student: str | None = None,
    seed: int | None = None,
    other_teacher_run: str | Path | None = None,
    over_training: int = OVER_TRAINING,
    kernel_examples: int = KERNEL_EXAMPLES,
    resamples: int = 1000,
    trust_code: bool = False,
    progress: Progress = silent,
) -> tuple[RunAudit, tuple[dict[str, Points], ...]]:
    """Audit students of a finished run against its teacher, on train and test.

    Parameters
    ----------
    folder
        The run folder.
    student
        A supervision's name in the recipe, or its short form; None for all.
    seed
        A student's seed; None for the first seed of each supervision.
    other_teacher_run
        A run on the same data whose teacher is the same model with another seed.
    over_training
        Number of examples of each split at which checkpoints are measured; 0 leaves that out.
    kernel_examples
        Number of test examples on which kernels are compared; 0 leaves that out.
    resamples
        Number of bootstrap resamples.
    trust_code, progress
        As for `distillens.run`.

    Returns
    -------
    tuple
        The audit, and for each of its students the points of the confidence plot by split.

    Raises
    ------
    RunError
        The run is not finished, lacks checkpoints, or its data or the other run do not fit.
    RecipeError
        It has no such student or seed.
    CheckpointError
        A checkpoint is not the one that the run's numbers describe.
    """
    for name, count in (("over_training", over_training), ("kernel_examples", kernel_examples)):
        if count < 0 or count == 1:
            raise RecipeError(f"{name} is {count}; give 0 to leave it out, or 2 or more examples")
    run = finished_run(Path(folder), trust_code=trust_code, progress=progress)
    which: dict[str, Any] = {
        "supervision": student, "seeds": "first" if seed is None else (seed,),
    }  # fmt: skip
    found, points = confidence.measure(
        run,
        confidence.ConfidenceSettings(
            **which,
            resamples=resamples,
            other_teacher_run=None if other_teacher_run is None else Path(other_teacher_run),
        ),
        progress,
    )
    if not found.students:
        raise RunError(f"no student of {folder} can be audited: {found.notes[0]}")
    over = kernel = None
    if over_training:
        asked = OverTrainingSettings(**which, examples=over_training, resamples=resamples)
        over = measure_checkpoints(run, asked, progress)
    if kernel_examples:
        kernel = kernels.measure(
            run, kernels.KernelSettings(**which, examples=kernel_examples), progress
        )
    result = RunAudit(
        schema_version=SCHEMA,
        run=run.recipe.name,
        data_fingerprint=run.scene.splits.fingerprint,
        teacher_digest=run.teacher.cell.weights_digest,
        confidence=found,
        over_training=over,
        kernels=kernel,
    )
    return result, points
