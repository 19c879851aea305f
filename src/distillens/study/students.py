"""Train the students of a study: every supervision, every seed, and generations of students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distillens.results import Cell
from distillens.runs import NetworkFiles
from distillens.study.networks import Scene, read_cell, train_network, weights_digest
from distillens.study.teacher import StudyTeacher
from distillens.supervision import (
    CachedTeacher,
    CotrainedTeacher,
    LogitCache,
    OneHot,
    Setting,
    Supervision,
    Teacher,
    TeacherCheckpoint,
    build_supervision,
)
from distillens.training import sgd

APART = 10_000
"""Between the seeds of two generations, which must not start from the same weights."""


@dataclass(frozen=True)
class StudentTeachers:
    """The teachers of one student; fulfils `distillens.supervision.Teachers`."""

    scene: Scene
    teacher: StudyTeacher
    cache: LogitCache
    before: NetworkFiles | None
    """The finished student of the generation before."""

    def final(self) -> Teacher:
        """Return the finished teacher."""
        return self.teacher.final(self.cache)

    def trajectory(self) -> Sequence[TeacherCheckpoint]:
        """Return the teacher's checkpoints."""
        return self.teacher.trajectory(self.cache)

    def lowest_validation_loss(self) -> int:
        """Return the teacher's epoch with the lowest validation loss."""
        return self.teacher.lowest_validation_loss()

    def cotrained(self) -> Teacher:
        """Return a fresh teacher that will learn beside the student, on its own schedule."""
        model, training = self.teacher.model, self.teacher.training
        assert model is not None  # the recipe refuses a co-trained teacher without training
        assert training is not None
        recipe = self.scene.recipe
        module = self.scene.build(model, recipe.teacher.seed).to(self.scene.accelerator.device)
        steps = len(self.cache.batches)
        total = recipe.student.training.epochs * steps
        return CotrainedTeacher(
            module,
            sgd(module, training),
            OneHot(),
            lambda step: training.learning_rate * training.schedule.factor_at(step, steps, total),
            bfloat16=recipe.precision == "bfloat16",
        )

    def previous_generation(self) -> Teacher:
        """Return the student of the generation before."""
        assert self.before is not None
        files, recipe = self.before, self.scene.recipe.student
        last = recipe.training.epochs
        digest = weights_digest(files, last, read_cell(files).weights_digest)
        return CachedTeacher(self.cache, digest, lambda: self.scene.load(recipe.model, files, last))


def train_students(
    scene: Scene,
    teacher: StudyTeacher,
    done: Callable[[list[list[Cell]]], object] = lambda students: None,
) -> list[list[Cell]]:
    """Return the cells of every supervision of the recipe, one list each in the order of seeds.

    ``done`` is called with what there is after every network that is trained now.
    """
    recipe = scene.recipe
    students: list[list[Cell]] = [[] for _ in recipe.supervisions]
    # Seed by seed, so that a run which is cut short has whole rows to show; labels first, since
    # self-distillation starts from their student.
    order = sorted(
        range(len(recipe.supervisions)), key=lambda k: recipe.supervisions[k].kind != "one-hot"
    )
    for seed in recipe.seeds:
        for place in order:
            entry = recipe.supervisions[place]
            if seed in recipe.seeds_of(entry):
                files = scene.run.student(place, entry.title, seed)
                known = files.cell.is_file()
                students[place].append(_train_student(scene, teacher, files, entry, seed))
                if not known:
                    done(students)
    return students


def _train_student(
    scene: Scene, teacher: StudyTeacher, files: NetworkFiles, entry: Any, seed: int
) -> Cell:
    generations = entry.generations if entry.kind == "self-distillation" else 1
    before = _one_hot_student(scene, seed) if entry.kind == "self-distillation" else None
    cell = None
    for generation in range(1, generations + 1):
        last = generation == generations
        mine = files if last else files.generation(generation)
        number = f", generation {generation}" if generations > 1 else ""
        cell = train_network(
            scene,
            mine,
            scene.recipe.student.model,
            scene.recipe.student.training,
            lambda before=before: _supervision(scene, teacher, entry, seed, before),
            name=entry.title,
            seed=seed,
            start=seed + (generation * APART if before is not None else 0),
            title=f"{entry.title}{number}, seed {seed}",
        )
        before = mine
    assert cell is not None
    return cell


def _supervision(
    scene: Scene, teacher: StudyTeacher, entry: Any, seed: int, before: NetworkFiles | None
) -> Supervision:
    training = scene.recipe.student.training
    batches = scene.batches(training, seed)
    cache = LogitCache(
        teacher.cache_folder,
        batches,
        scene.recipe.precision,
        max_bytes=scene.recipe.cache_bytes,
        top_k=scene.top_k,
    )
    setting = Setting(scene.recipe.loss, training.epochs * len(batches), scene.trust_code)
    return build_supervision(entry, setting, StudentTeachers(scene, teacher, cache, before))


def _one_hot_student(scene: Scene, seed: int) -> NetworkFiles:
    place, entry = next(
        (place, entry)
        for place, entry in enumerate(scene.recipe.supervisions)
        if entry.kind == "one-hot" and seed in scene.recipe.seeds_of(entry)
    )
    return scene.run.student(place, entry.title, seed)
