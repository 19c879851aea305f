"""What carrying out a recipe will take: a few training steps are timed, the rest is counted."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distillens.check_results import RunEstimate
from distillens.data import Batch, Batches
from distillens.errors import TrainingError
from distillens.models import ModelRecipe
from distillens.study.complexity import complexity_plan
from distillens.study.networks import Scene
from distillens.study.normalisations import Role
from distillens.study.students import Student
from distillens.supervision import OneHot
from distillens.supervision.recipe import parts_of
from distillens.training import TrainingRecipe, accelerator_for, fit, predict

WARM_UP = 3
"""Training steps before the clock starts: the first ones allocate memory and choose kernels."""

SECONDS = 1.0
"""Steps are timed for about so long, for at least five steps and at most one epoch."""

PREDICTED = 1024
"""Examples on which a teacher's forward pass is timed."""


@dataclass(frozen=True)
class _FirstBatches:
    """The first batches of an epoch, as an epoch of their own."""

    batches: Batches
    steps: int

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        return islice(self.batches.epoch(epoch), self.steps)


def seconds_per_step(
    scene: Scene, model: ModelRecipe, training: TrainingRecipe, role: Role
) -> float:
    """Train a fresh network on labels for about a second and return the seconds of a step.

    Nothing is written.

    Raises
    ------
    TrainingError
        The network cannot be trained as the recipe says.
    """
    network = scene.build(model, 0, role).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = scene.batches(training, 0, role)

    def train(steps: int) -> float:
        history = fit(
            network,
            OneHot(),
            _FirstBatches(batches, steps),
            training.model_copy(update={"epochs": 1}),
            accelerator=accelerator_for(scene.recipe.precision),
        )
        return history.seconds / steps

    try:
        first = train(min(WARM_UP, len(batches)))
        return train(min(max(5, round(SECONDS / first)), len(batches)))
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        raise TrainingError(f"{model.name} cannot be trained: {text}") from None


def estimate_run(
    scene: Scene, teacher_step: float | None, student_step: float, teacher: nn.Module | None
) -> RunEstimate:
    """Return the time, memory and disk space that a recipe is expected to take.

    Parameters
    ----------
    scene
        What the networks share.
    teacher_step, student_step
        Seconds of a training step; None for a teacher that is not trained here.
    teacher
        The teacher's network; None where only its logits are known.
    """
    recipe = scene.recipe
    parts: list[tuple[str, float]] = []
    checkpoints = cache = 0
    trials, batch_size = 0.0, recipe.student.training.batch_size
    if teacher_step is not None and recipe.teacher.training is not None and teacher is not None:
        training = recipe.teacher.training
        each = -(-len(scene.splits.train) // training.batch_size)
        parts.append(("teacher", teacher_step * each * training.epochs))
        checkpoints += _state_size(teacher) * (training.epochs + 1)
    student_bytes = _state_size(scene.build(recipe.student.model, 0))
    for place, entry in enumerate(recipe.supervisions):
        networks = sum(len(Student(place, seed).networks(scene)) for seed in recipe.seeds_of(entry))
        training = recipe.training_of(entry)
        steps = training.epochs * -(-len(scene.splits.train) // training.batch_size)
        extra = (teacher_step or 0.0) if _trains_teacher(entry) else 0.0
        # A step takes time in proportion to its examples.
        each = steps * (student_step * training.batch_size / batch_size + extra)
        parts.append((entry.title, networks * each))
        if recipe.tune is not None:
            generations = networks // len(recipe.seeds_of(entry))
            trials += len(recipe.tune.learning_rate) * generations * each
        checkpoints += networks * (training.epochs + 1) * student_bytes
    if trials:
        parts.append(("selecting learning rates", trials))
    blocks = teacher_passes(scene)
    if blocks and teacher is not None:
        rows = len(scene.splits.train)
        parts.append(("teacher logits", blocks * rows * _seconds_per_example(scene, teacher)))
        width = scene.outputs if scene.top_k is None else 2 * scene.top_k
        cache = min(recipe.cache_bytes, blocks * rows * width * 4)
    if recipe.complexity is not None:
        plan, grams = complexity_plan(scene)
        if plan.seconds is not None:
            parts.append(("complexity", grams * plan.seconds))
    return RunEstimate(
        parts=tuple(parts),
        device=str(scene.accelerator.device),
        memory=_peak_memory(scene),
        checkpoints=checkpoints,
        cache=cache,
        free_disk=shutil.disk_usage(_existing(scene.run.folder)).free,
    )


def teacher_passes(scene: Scene) -> int:
    """Return how often a teacher runs over all training examples, so that its logits are known.

    Students, seeds and temperatures share logits. Without augmentation those of one checkpoint serve
    every epoch.
    """
    recipe = scene.recipe
    changes = recipe.data.augmentation.changes
    blocks: set[tuple[Any, ...]] = set()
    for entry in recipe.supervisions:
        epochs = recipe.training_of(entry).epochs
        for part in parts_of(entry):
            if part.kind == "offline":
                which = ("offline", part.early_stop, part.average)
                seen: range | tuple[int, ...] = range(epochs) if changes else (0,)
            elif part.kind == "online":
                which = ("online", part.pace, part.period, part.average)
                seen = range(epochs)
            else:
                continue
            blocks |= {(*which, epoch) for epoch in seen}
    return len(blocks)


def _trains_teacher(entry: Any) -> bool:
    return any(part.kind == "co-trained" for part in parts_of(entry))


def _state_size(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def _seconds_per_example(scene: Scene, network: nn.Module) -> float:
    examples = scene.splits.train
    part = examples.take(slice(PREDICTED))
    device = scene.accelerator.device
    network.to(device)
    began = time.perf_counter()
    predict(network, part, scene.normalisation_of("teacher"), device=device)
    return (time.perf_counter() - began) / len(part)


def _peak_memory(scene: Scene) -> int:
    if scene.accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(scene.accelerator.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.exists())
