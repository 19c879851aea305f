"""The study's teacher: trained here, read from a checkpoint, or known by its logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distillens.data import Examples
from distillens.errors import DataError, ModelError, RunError
from distillens.models import digest_file, load_weights
from distillens.results import Cell, from_json
from distillens.runs import read_arrays
from distillens.study.networks import (
    Scene,
    checkpoint_digest,
    evaluate,
    network_logits,
    train_network,
    write_cell,
)
from distillens.supervision import (
    CachedTeacher,
    LogitCache,
    OneHot,
    OnlineTeacher,
    RecordedTeacher,
    Teacher,
    TeacherCheckpoint,
)

TEACHER = "teacher"


@dataclass(frozen=True)
class StudyTeacher:
    """A finished teacher. ``epochs`` is None where its trajectory is not known."""

    scene: Scene
    cell: Cell
    epochs: int | None

    def logits(self, split: str) -> np.ndarray:
        """Return its logits on the un-augmented examples of a split, (N, C)."""
        return network_logits(self.scene.run.teacher)[split]

    def offline(self, cache: LogitCache) -> Teacher:
        """Return the finished teacher as students see it."""
        if self.scene.recipe.teacher.model is None:
            return RecordedTeacher(self.logits("train"), self.scene.splits.train.indices)
        return self._checkpoint(cache, self.epochs)

    def online(self, cache: LogitCache, student_steps: int) -> Teacher:
        """Return the teacher that follows its own training."""
        training = self.scene.recipe.teacher.training
        assert training is not None  # the recipe refuses online without it
        assert self.epochs is not None
        steps = -(-len(self.scene.splits.train) // training.batch_size)
        checkpoints = [
            TeacherCheckpoint(epoch * steps, lambda epoch=epoch: self._checkpoint(cache, epoch))
            for epoch in range(1, self.epochs + 1)
        ]
        return OnlineTeacher(checkpoints, student_steps)

    def epoch_followed(self, epoch: int, student_epochs: int) -> int:
        """Return the teacher's epoch that an online student follows after its own epoch."""
        assert self.epochs is not None
        checkpoints = [
            TeacherCheckpoint(done, lambda: RecordedTeacher(np.zeros((1, 1))))
            for done in range(1, self.epochs + 1)
        ]
        return OnlineTeacher(checkpoints, student_epochs).place(epoch) + 1

    def _checkpoint(self, cache: LogitCache, epoch: int | None) -> Teacher:
        scene, recipe = self.scene, self.scene.recipe.teacher
        model = recipe.model
        assert model is not None
        if epoch is not None:
            files = scene.run.teacher
            digest = checkpoint_digest(files, epoch)
            return CachedTeacher(cache, digest, lambda: scene.load(model, files, epoch))

        def load_given():
            network = scene.build(model, 0)
            load_weights(Path(recipe.checkpoint or ""), network)
            return network.to(scene.accelerator.device).eval()

        return CachedTeacher(cache, self.cell.weights_digest, load_given)


def prepare_teacher(scene: Scene) -> StudyTeacher:
    """Train, read or check the teacher that the recipe asks for.

    Raises
    ------
    ModelError, CheckpointError, DataError
        A given teacher does not fit the examples or the classes.
    """
    recipe, files = scene.recipe.teacher, scene.run.teacher
    if recipe.training is not None:
        assert recipe.model is not None
        loss = recipe.loss
        cell = train_network(
            scene,
            files,
            recipe.model,
            recipe.training,
            lambda: OneHot(loss),
            name=TEACHER,
            seed=recipe.seed,
            title=f"teacher ({recipe.model.name})",
        )
        return StudyTeacher(scene, cell, recipe.training.epochs)
    source = Path(recipe.checkpoint or recipe.logits or "")
    if not source.is_file():
        raise DataError(f"no file {source}; teacher.checkpoint or teacher.logits must name one")
    digest = digest_file(source)
    if files.cell.is_file():
        cell = from_json(Cell, files.cell.read_bytes(), str(files.cell))
        if cell.weights_digest != digest:
            raise RunError(
                f"{source} is not the teacher that this run was made with; choose another --out"
            )
        return StudyTeacher(scene, cell, None)
    if recipe.model is not None:
        network = scene.build(recipe.model, 0)
        load_weights(source, network)
        network.to(scene.accelerator.device).eval()
        cell = evaluate(
            scene, files, network, name=TEACHER, seed=recipe.seed, epochs=0, seconds=0.0,
            digest=digest,
        )  # fmt: skip
    else:
        logits = _given_logits(scene, source)
        cell = write_cell(
            scene, files, logits, name=TEACHER, seed=recipe.seed, epochs=0, seconds=0.0,
            digest=digest, parameters=0,
        )  # fmt: skip
    return StudyTeacher(scene, cell, None)


def _given_logits(scene: Scene, path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path)
    splits = scene.splits
    wanted: dict[str, tuple[str, Examples]] = {
        "train": ("train", splits.train),
        "test": ("test", splits.test),
    }
    if splits.validation is not None:
        wanted["validation"] = ("train", splits.validation)
    found = {}
    for split, (key, examples) in wanted.items():
        if key not in arrays:
            raise DataError(
                f"{path} has the arrays {sorted(arrays)}; a teacher's logits need train and test"
            )
        array = arrays[key]
        if array.ndim != 2 or array.shape[1] != scene.outputs:
            raise ModelError(
                f"{path}[{key}] has shape {array.shape}; the task needs (N, {scene.outputs})"
            )
        index = examples.indices.numpy()
        if index.max() >= len(array):
            raise DataError(
                f"{path}[{key}] has {len(array)} rows, but the source's example "
                f"{index.max()} is used; give a row for every example of the source"
            )
        if not np.isfinite(array[index]).all():
            raise DataError(f"{path}[{key}] holds a NaN or an infinity")
        found[split] = array[index].astype(np.float32)
    return found
