"""The study's teacher: trained here or in another run, a checkpoint, or an array of logits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from distillens.errors import RunError
from distillens.files.atomic import write_atomically
from distillens.models import ModelRecipe
from distillens.results.training import Cell
from distillens.runs.folder import find_run
from distillens.runs.layout import NetworkFiles
from distillens.runs.open import check_fingerprint
from distillens.runs.read import read_json
from distillens.study.context import StudyContext
from distillens.study.given_teacher import (
    GivenTeacher,
    given_digest,
    load_checkpoint,
    read_given_teacher,
)
from distillens.study.networks import (
    Network,
    read_cell,
    train_network,
    weights_digest,
    write_cell,
)
from distillens.study.reading import read_recipe
from distillens.study.recipe import trajectory_problem
from distillens.study.task import TeacherSource
from distillens.supervision import (
    OneHot,
    OnlineTeacher,
    RecordedTeacher,
    Teacher,
    TeacherCheckpoint,
    parts_of,
)
from distillens.training import TrainingRecipe

TEACHER = "teacher"


@dataclass(frozen=True)
class StudyTeacher:
    """A finished teacher.

    ``training`` is None where its trajectory is not known, ``model`` where only its logits are.
    ``cache_folder`` contains its logits on augmented images.
    """

    context: StudyContext
    cell: Cell
    files: NetworkFiles
    cache_folder: Path
    model: ModelRecipe | None = None
    training: TrainingRecipe | None = None

    @property
    def epochs(self) -> int | None:
        """Number of epochs of its trajectory."""
        return self.training.epochs if self.training else None

    def logits(self, split: str) -> np.ndarray:
        """Return its logits on the un-augmented examples of a split, (N, C), as audits compare them."""
        return self.context.task.logits(self.context, self.files, self.network, split)

    def at(self, epoch: int) -> nn.Module:
        """Return the network after an epoch of its training."""
        assert self.model is not None
        return self.context.load(self.model, self.files, epoch, "teacher")

    def network(self) -> nn.Module | None:
        """Return the finished network; None where only its logits are known."""
        if self.model is None:
            return None
        return self.at(self.epochs) if self.epochs is not None else self._given()

    def final(self, source: TeacherSource) -> Teacher:
        """Return the finished teacher in the form that students use."""
        if self.model is None:
            return RecordedTeacher(self.logits("train"), self.context.splits.train.indices)
        if self.epochs is not None:
            return self._checkpoint(source, self.epochs)
        return source(self.cell.weights_digest, self._given)

    def trajectory(self, source: TeacherSource) -> list[TeacherCheckpoint]:
        """Return the checkpoints of its training."""
        assert self.training is not None  # the recipe refuses what needs a trajectory without one
        steps = -(-len(self.context.splits.train) // self.training.batch_size)
        return [
            TeacherCheckpoint(epoch * steps, partial(self._checkpoint, source, epoch), epoch)
            for epoch in self.training.kept_epochs[1:]
        ]

    def epoch_followed(self, epoch: int, student_epochs: int) -> int:
        """Return the teacher's epoch that a student follows after its own, online at pace 1."""
        assert self.training is not None
        nothing, kept = RecordedTeacher(np.zeros((1, 1))), self.training.kept_epochs[1:]
        path = [TeacherCheckpoint(done, lambda: nothing, done) for done in kept]
        return kept[OnlineTeacher(path, student_epochs).place(epoch)]

    def lowest_validation_loss(self) -> int:
        """Return the kept epoch with the lowest validation loss; losses are measured once and kept."""
        path, examples = self.files.validation, self.context.splits.validation
        assert self.training is not None
        kept = self.training.kept_epochs[1:]
        assert examples is not None  # the recipe refuses early stopping without validation
        if self.context.main and not path.is_file():
            context, task = self.context, self.context.task
            outputs = (task.predict(context, self.at(one), examples, "teacher") for one in kept)
            losses = [task.loss(stored, examples, "cross-entropy") for stored in outputs]
            write_atomically(path, json.dumps(losses) + "\n")
        self.context.accelerator.wait_for_everyone()
        losses = read_json(path)
        if not (
            isinstance(losses, list)
            and len(losses) == len(kept)
            and all(isinstance(loss, float) for loss in losses)
        ):
            raise RunError(f"{path} is damaged; delete it to have the losses measured again")
        return kept[int(np.argmin(losses))]

    def _checkpoint(self, source: TeacherSource, epoch: int) -> Teacher:
        expected = self.cell.weights_digest if epoch == self.epochs else None
        digest = weights_digest(self.files, epoch, expected)
        return source(digest, lambda: self.at(epoch))

    def _given(self) -> nn.Module:
        assert self.model is not None
        network = self.context.build(self.model, 0, "teacher")
        load_checkpoint(self.context.recipe.teacher, network)
        return network.to(self.context.accelerator.device).eval()


def find_teacher(context: StudyContext) -> GivenTeacher | None:
    """Read a teacher that exists before the run; nothing is written.

    A failure leaves no run folder behind, so that the corrected recipe can use the same one. Returns
    a teacher that is given as a checkpoint or as logits, unless the run holds its logits already.

    Raises
    ------
    ModelError, CheckpointError, DataError, RunError
        The teacher does not fit the examples or the classes, or is no better than a constant prediction.
    """
    recipe = context.recipe.teacher
    if recipe.run is not None:
        _of_another_run(context, Path(recipe.run))
    if context.run.teacher.cell.is_file():
        return None
    if recipe.training is not None:
        assert recipe.model is not None
        context.build(recipe.model, 0, "teacher")
    return read_given_teacher(context)


def prepare_teacher(context: StudyContext, given: GivenTeacher | None = None) -> StudyTeacher:
    """Train, find or load the teacher of the recipe.

    ``given`` is what :func:`find_teacher` returned; None where the run holds the teacher's logits.

    Raises
    ------
    CheckpointError, DataError, RunError
        The teacher of another run does not fit, or a file is not the one that the run was made with.
    """
    recipe, files = context.recipe.teacher, context.run.teacher
    if recipe.run is not None:
        return _of_another_run(context, Path(recipe.run))
    if recipe.training is not None:
        assert recipe.model is not None
        title, seed = f"teacher ({recipe.model.name})", recipe.seed
        network = Network(
            files, recipe.model, recipe.training, OneHot, TEACHER, title, seed, seed, "teacher"
        )
        cell = train_network(context, network)
        return StudyTeacher(context, cell, files, context.run.cache, recipe.model, recipe.training)
    if context.main and given is not None:
        if given.note:
            write_atomically(files.loading, given.note + "\n")
        write_cell(
            context, files, given.logits, supervision=TEACHER, seed=recipe.seed, epochs=0, seconds=0.0,
            weights_digest=given.digest, parameters=given.parameters,
        )  # fmt: skip
    context.accelerator.wait_for_everyone()
    cell = read_cell(files)
    if given is None and cell.weights_digest != given_digest(context):
        source = recipe.checkpoint.path if recipe.checkpoint is not None else recipe.logits
        raise RunError(
            f"{source} is not the teacher that {context.run.folder} was made with; choose another --out"
        )
    return StudyTeacher(context, cell, files, context.run.cache, recipe.model, None)


def _of_another_run(context: StudyContext, folder: Path) -> StudyTeacher:
    """Take the teacher that another run trained on the same examples, and share its cache."""
    other = find_run(folder)
    theirs = read_recipe(other.recipe, trust_code=context.trust_code).teacher
    if theirs.training is None or theirs.model is None:
        raise RunError(f"{folder} trained no teacher; name the run that did")
    if not other.teacher.cell.is_file():
        raise RunError(f"the teacher of {folder} is not finished; run its recipe first")
    check_fingerprint(other, context.splits.fingerprint, "of this recipe")
    for entry in (part for whole in context.recipe.supervisions for part in parts_of(whole)):
        if problem := trajectory_problem(entry, theirs.training):
            raise RunError(f"{problem}; see the teacher of {folder}")
    files = other.teacher
    cell = read_cell(files)
    return StudyTeacher(context, cell, files, other.cache, theirs.model, theirs.training)
