"""The networks that a run trains, the logits that they read, and the disk space of both."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from distillens.models.weights import state_bytes
from distillens.runs.layout import NetworkFiles
from distillens.study.context import StudyContext
from distillens.study.normalisations import Role
from distillens.study.students import Student
from distillens.study.teacher import TEACHER
from distillens.supervision import SupervisionEntry, parts_of
from distillens.supervision.recipe import Schedules
from distillens.training import TrainingRecipe

TRIALS = "selecting learning rates"

STATE_BYTES, TENSOR_BYTES = 15_000, 250
"""Bytes of a training state without its tensors: random states and metadata of tensors."""

NPY_BYTES = 128
"""Bytes of the header of a block of logits."""

POINT_BYTES, AUDIT_BYTES = 10, 85_000
"""Bytes of an example in the points of a confidence plot (two numbers and two bytes), and of the audit
of a student in the record of the confidence analysis."""

REPORT_BYTES, NETWORK_BYTES = 1_100_000, 7_000
"""Bytes of the report, 0.9 MB of which draw its figures, and of each network in the JSON files."""


@dataclass(frozen=True)
class PlannedNetwork:
    """A network that a run trains."""

    part: str
    """Part of the work that it belongs to."""
    title: str
    """Title of its supervision; networks of one title take the same time for an epoch."""
    files: NetworkFiles
    training: TrainingRecipe
    role: Role
    trial: bool = False
    cotrained: bool = False
    """Whether a teacher is trained at the same time."""


Block = tuple[Role, Hashable, int]
"""Logits of a network in an epoch: role (teacher or student), network and epoch."""


def planned_networks(context: StudyContext) -> list[PlannedNetwork]:
    """Return the networks that a run trains: the teacher, trials of learning rates, students."""
    recipe, found = context.recipe, []
    if recipe.teacher.training is not None:
        training = recipe.teacher.training
        found.append(PlannedNetwork(TEACHER, TEACHER, context.run.teacher, training, "teacher"))
    places = range(len(recipe.supervisions))
    rates = () if recipe.tune is None else recipe.tune.learning_rate
    students = [Student(place, recipe.tuning_seed, rate) for place in places for rate in rates]
    students += [
        Student(place, seed)
        for place in places
        for seed in recipe.seeds_of(recipe.supervisions[place])
    ]
    for student in students:
        entry, trial = recipe.supervisions[student.place], student.rate is not None
        training, cotrained = student.training(recipe), "co-trained teacher" in entry.needs()
        part = TRIALS if trial else entry.title
        found += [
            PlannedNetwork(part, entry.title, files, training, "student", trial, cotrained)
            for files in student.networks(context).values()
        ]
    return found


def disk_use(
    context: StudyContext,
    networks: Sequence[PlannedNetwork],
    modules: dict[Role, nn.Module],
    blocks: int,
) -> dict[str, int]:
    """Return the bytes on disk of a run, under the names of `distillens.results.check.RunEstimate`.

    Parameters
    ----------
    context
        Context of the study.
    networks
        Networks that the run trains.
    modules
        The teacher, if its network is known, and the student.
    blocks
        Number of cached blocks of logits.
    """
    recipe, splits = context.recipe, context.splits
    weights = {role: len(state_bytes(module)) for role, module in modules.items()}
    found = {"checkpoints": 0, "states": 0, "trials": 0}
    for each in networks:
        files = weights[each.role] * len(each.training.kept_epochs)
        state = _state_bytes(modules[each.role], each.training)
        teacher = recipe.teacher.training
        if each.cotrained and teacher is not None:
            state += weights["teacher"] + _state_bytes(modules["teacher"], teacher)
        if each.trial:
            found["trials"] += files + state
        else:
            found["checkpoints"] += files
            found["states"] += state
    train, test = len(splits.train), len(splits.test)
    rows = train + test + (len(splits.validation) if splits.validation else 0)
    width = context.outputs if context.top_k is None else 2 * context.top_k + 1
    cells = max(1, sum(not each.trial for each in networks))
    students = sum(len(recipe.seeds_of(entry)) for entry in recipe.supervisions)
    points = students * ((train + test) * POINT_BYTES + AUDIT_BYTES) if recipe.deviation else 0
    outputs = cells * (rows * context.outputs * 4 + NETWORK_BYTES) + points + REPORT_BYTES
    # Where it is trained here the teacher is one of the networks.
    if recipe.teacher.training is None and recipe.teacher.run is None:
        outputs += rows * context.outputs * 4
    cache = min(recipe.cache_bytes, blocks * (train * width * 4 + NPY_BYTES))
    return {**found, "cache": cache, "outputs": outputs}


def bytes_there(folder: Path) -> int:
    """Return the bytes of the files in a folder; 0 where there is no folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _state_bytes(module: nn.Module, training: TrainingRecipe) -> int:
    """Return the bytes of a training state: the moments that an optimizer keeps of each weight."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    moments = 2 if training.optimizer != "sgd" else int(training.momentum > 0)
    return STATE_BYTES + moments * sum(each.nbytes + TENSOR_BYTES for each in trained)


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
