"""The over-training analysis: every checkpoint of students of a run against the final teacher.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923 (the deviation plot at checkpoints, loss
switching). Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from distillens.analyses.finished import SPLITS, FinishedRun, FinishedStudent, as_outputs
from distillens.analyses.registry import Analysis, Measured, register_analysis
from distillens.analyses.selection import RANDOM_SEED, first_seeds
from distillens.errors import CheckpointError, RunError
from distillens.measures.confidence import CheckpointMeter
from distillens.results.base import SCHEMA
from distillens.results.confidence import (
    OverTraining,
    StudentOverTraining,
    Switch,
    TrajectoryPoint,
)
from distillens.study.networks import network_logits, weights_digest
from distillens.supervision.kinds.builtin import SwitchedRecipe
from distillens.training import predict

_STORED_TOLERANCE = 1e-2
"""Tolerance between outputs of a checkpoint and stored logits, which a GPU may compute in TF32."""


class OverTrainingSettings(BaseModel):
    """Settings of the over-training analysis."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: int = Field(default=2_000, ge=2)
    """Number of examples of each split, sampled at random if the split has more."""
    resamples: int = Field(default=1000, ge=100)
    """Number of bootstrap resamples."""


def measure_over_training(
    run: FinishedRun, students: Sequence[FinishedStudent], settings: OverTrainingSettings
) -> Measured:
    """Measure the confidence of students at their checkpoints.

    Raises
    ------
    RunError
        The run lacks the last checkpoint of a student.
    CheckpointError
        A checkpoint is not the one that the run's numbers describe.
    """
    found = tuple(_over_training(run, student, settings) for student in students)
    return Measured(OverTraining(SCHEMA, found))


def _over_training(
    run: FinishedRun,
    student: FinishedStudent,
    settings: OverTrainingSettings,
) -> StudentOverTraining:
    files, context = student.files, run.context
    last, epochs = student.cell.epochs, files.epochs()
    if last not in epochs:
        raise RunError(
            f"{files.folder} has no checkpoint of epoch {last} (it has {len(epochs)} others); "
            "leave out the analysis over training, or run the recipe in another --out"
        )
    weights_digest(files, last, student.cell.weights_digest)
    rows, meters = _meters(run, settings)
    points: list[TrajectoryPoint] = []
    title = f"over training: {student.entry.title}, seed {student.cell.seed}"
    with context.progress(title, len(epochs)) as advance:
        for epoch in epochs:
            network = context.load(run.recipe.student.model, files, epoch)
            for split, meter in meters.items():
                outputs = predict(
                    network,
                    getattr(context.splits, split).take(rows[split]),
                    context.normalisation_of("student"),
                    device=context.accelerator.device,
                )
                if epoch == last:
                    _check_stored(student, outputs, network_logits(files)[split][rows[split]])
                points.append(meter.measure(epoch, as_outputs(outputs, run.student_kind)))
            advance(1)
    missing = sorted(set(run.recipe.training_of(student.entry).kept_epochs) - set(epochs))
    named = ", ".join(map(str, missing))
    notes = (f"checkpoints of epochs {named} are missing and were left out",) if missing else ()
    switch = _switch(run, student)
    changes = () if switch is None else tuple(
        change for meter in meters.values() for change in meter.changes(switch)
    )  # fmt: skip
    return StudentOverTraining(
        student.entry.title,
        student.entry.kind,
        student.cell.seed,
        {split: len(chosen) for split, chosen in rows.items()},
        tuple(points),
        switch,
        changes,
        notes,
    )


def _meters(
    run: FinishedRun, settings: OverTrainingSettings
) -> tuple[dict[str, NDArray], dict[str, CheckpointMeter]]:
    """Return the rows of the sampled examples of each split, and what measures them."""
    rng = np.random.default_rng(RANDOM_SEED)
    rows, meters = {}, {}
    for split in SPLITS:
        count = len(getattr(run.context.splits, split))
        chosen = np.sort(rng.permutation(count)[: settings.examples])
        given_N, true_N = run.given_labels(split)[chosen], run.true_labels(split)[chosen]
        rows[split] = chosen
        meters[split] = CheckpointMeter(
            split,
            run.teacher.logits(split)[chosen],
            true_N,
            given_N if (given_N != true_N).any() else None,
            run.student_kind,
            settings.resamples,
            RANDOM_SEED,
        )
    return rows, meters


def _check_stored(student: FinishedStudent, found: NDArray, stored: NDArray) -> None:
    apart = float(np.abs(found - stored).max()) / max(1.0, float(np.abs(stored).max()))
    if not apart <= _STORED_TOLERANCE:
        raise CheckpointError(
            f"the last checkpoint of {student.files.folder} gives other outputs than the run stored "
            f"(by {apart:.2g} of the largest); one of the two was changed, so run it again"
        )


def _switch(run: FinishedRun, student: FinishedStudent) -> Switch | None:
    entry, training = student.entry, run.recipe.training_of(student.entry)
    if not isinstance(entry, SwitchedRecipe):
        return None
    each = len(run.context.batches(training, 0))
    step = entry.step(training.epochs * each)
    return Switch(entry.first.title, entry.then.title, step / each, (step + entry.window) / each)


register_analysis(
    Analysis(
        name="over-training",
        summary="Confidence of students at their checkpoints, against the final teacher.",
        settings=OverTrainingSettings,
        result=OverTraining,
        measure=measure_over_training,
        choose=first_seeds,
    )
)
