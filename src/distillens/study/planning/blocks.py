"""Which blocks of logits the students of a run read: a teacher on all training examples of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from distillens.study.networks import Scene
from distillens.study.normalisations import Role
from distillens.supervision import OnlineTeacher, TeacherCheckpoint, pace_of, parts_of
from distillens.supervision.build import averaged_places, periodic
from distillens.training import TrainingRecipe

Block = tuple[Role, Hashable, int]
"""Whose logits: a teacher's or a student's; of which network; in which epoch."""


def read_blocks(scene: Scene, training: TrainingRecipe | None) -> set[Block]:
    """Return the blocks of logits that students read.

    Students, seeds and temperatures share blocks. Without augmentation the logits of a network serve
    every epoch. The epoch of lowest validation loss, which is not known beforehand, counts as one
    of its own.

    Parameters
    ----------
    scene
        What the networks share.
    training
        The teacher's; None where its trajectory is not known.
    """
    recipe = scene.recipe
    changes = recipe.data.augmentation.changes
    blocks: set[Block] = set()
    for entry in recipe.supervisions:
        mine = recipe.training_of(entry)
        for part in parts_of(entry):
            if part.kind == "self-distillation":
                found = [
                    (seed, entry.title, generation)
                    for seed in recipe.seeds_of(entry)
                    for generation in range(part.generations)
                ]
                seen = range(mine.epochs) if changes else (0,)
                blocks |= {("student", network, epoch) for network in found for epoch in seen}
            elif part.kind in ("offline", "online"):
                teachers = _teachers(part, scene, mine, training)
                for epoch in range(mine.epochs):
                    seen_at = epoch if changes else 0
                    blocks |= {("teacher", network, seen_at) for network in teachers(epoch)}
    return blocks


def _teachers(
    part: Any, scene: Scene, mine: TrainingRecipe, training: TrainingRecipe | None
) -> Callable[[int], Iterator[Hashable]]:
    """Return which of the teacher's epochs a student reads in an epoch of its own."""
    if training is None:
        return lambda epoch: iter(("given",))
    kept = training.kept_epochs[1:]

    def averaged(last: int) -> Iterator[Hashable]:
        return (kept[place] for place in averaged_places(kept.index(last), part.average))

    if part.kind == "offline":
        if part.early_stop == "validation":
            return lambda epoch: iter(("validation",))
        return lambda epoch: averaged(part.early_stop or kept[-1])
    path = _online_path(part, scene, kept, training)
    steps = _steps(scene, mine)
    online = OnlineTeacher(path, mine.epochs * steps, pace=pace_of(part.pace))

    def followed(epoch: int) -> Iterator[Hashable]:
        first, last = online.place(epoch * steps), online.place((epoch + 1) * steps - 1)
        for point in path[first : last + 1]:
            assert point.epoch is not None
            yield from averaged(point.epoch)

    return followed


def _online_path(
    part: Any, scene: Scene, kept: Sequence[int], training: TrainingRecipe
) -> list[TeacherCheckpoint]:
    steps = _steps(scene, training)

    def never() -> Any:
        raise AssertionError("nobody loads a checkpoint that is only counted")

    return periodic([TeacherCheckpoint(e * steps, never, e) for e in kept], part.period)


def _steps(scene: Scene, training: TrainingRecipe) -> int:
    return -(-len(scene.splits.train) // training.batch_size)
