"""Blocks of logits that the students of a run read: a teacher on the training examples of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from distillens.study.context import StudyContext
from distillens.study.normalisations import Role
from distillens.supervision import SupervisionEntry, parts_of
from distillens.supervision.recipe import Schedules
from distillens.training import TrainingRecipe

Block = tuple[Role, Hashable, int]
"""Logits of a network in an epoch: role (teacher or student), network and epoch."""


def read_blocks(context: StudyContext, training: TrainingRecipe | None) -> set[Block]:
    """Return the blocks of logits that students read.

    Students, seeds and temperatures share blocks. Without augmentation the logits of a network serve
    every epoch. The epoch of lowest validation loss, which is not known beforehand, counts as one
    of its own.

    Parameters
    ----------
    context
        Context of the study.
    training
        The teacher's; None where its trajectory is not known.
    """
    recipe = context.recipe
    changes = recipe.data.augmentation.changes
    blocks: set[Block] = set()
    for entry in recipe.supervisions:
        mine = recipe.training_of(entry)
        for part in parts_of(entry):
            if "previous student" in part.needs():
                found = [
                    (seed, entry.title, generation)
                    for seed in recipe.seeds_of(entry)
                    for generation in range(part.students())
                ]
                seen = range(mine.epochs) if changes else (0,)
                blocks |= {("student", network, epoch) for network in found for epoch in seen}
            if not part.needs() & {"final teacher", "trajectory"}:
                continue
            epochs_read = _epochs_read(part, context, mine, training)
            for epoch in range(mine.epochs):
                seen_at = epoch if changes else 0
                blocks |= {("teacher", network, seen_at) for network in epochs_read(epoch)}
    return blocks


def _epochs_read(
    part: SupervisionEntry,
    context: StudyContext,
    mine: TrainingRecipe,
    training: TrainingRecipe | None,
) -> Callable[[int], Iterable[Hashable]]:
    """Return which of the teacher's epochs a student reads in an epoch of its own."""
    if training is None:
        return lambda epoch: ("given",)
    kept = tuple(training.kept_epochs[1:])
    return part.teacher_epochs(
        Schedules(mine.epochs, _steps(context, mine), kept, _steps(context, training))
    )


def _steps(context: StudyContext, training: TrainingRecipe) -> int:
    return -(-len(context.splits.train) // training.batch_size)
