"""Estimate time, memory and disk space of a run: a few training steps are timed, the rest is counted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from distillens.analyses.complexity import complexity_plan
from distillens.data import Batch, Batches
from distillens.errors import TrainingError
from distillens.forward.device_errors import peak_host_memory
from distillens.models import ModelRecipe
from distillens.results.check import PlannedWork, RunEstimate
from distillens.runs.records import read_records
from distillens.study.context import StudyContext
from distillens.study.networks import read_epochs
from distillens.study.normalisations import Role
from distillens.study.planning.blocks import Block, read_blocks
from distillens.study.planning.disk import PlannedNetwork, disk_use, planned_networks
from distillens.study.teacher import prepare_teacher
from distillens.supervision import OneHot
from distillens.training import TrainingRecipe, accelerator_for, fit, predict

WARM_UP = 3
"""Training steps before the clock starts: the first ones allocate memory and choose kernels."""

SECONDS = 1.0
"""Seconds for which steps are timed: at least five steps, at most one epoch."""

PREDICTED = 1024
"""Examples on which a teacher's forward pass is timed."""

EPOCHS_TRAINED = "epochs that the run trained"
STEPS_TIMED = "training steps timed now"
"""Basis of the estimated time of a training: epochs of its supervision, if the run holds any."""


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
    context: StudyContext, model: ModelRecipe, training: TrainingRecipe, role: Role
) -> float:
    """Train a fresh network on labels for about a second and return the seconds of a step.

    Nothing is written.

    Raises
    ------
    TrainingError
        The network cannot be trained with the settings of the recipe.
    """
    network = context.build(model, 0, role).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = context.batches(training, 0, role)

    def train(steps: int) -> float:
        history = fit(
            network,
            OneHot(),
            _FirstBatches(batches, steps),
            training.model_copy(update={"epochs": 1}),
            accelerator=accelerator_for(context.recipe.precision),
        )
        return history.seconds / steps

    try:
        first = train(min(WARM_UP, len(batches)))
        return train(min(max(5, round(SECONDS / first)), len(batches)))
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        raise TrainingError(f"{model.name} cannot be trained: {text}") from None


@dataclass(frozen=True)
class Speeds:
    """Seconds of a training step, as timed now; None where none was timed."""

    teacher: float | None
    student: float | None

    def per_epoch(self, context: StudyContext, network: PlannedNetwork) -> float | None:
        """Return the seconds of an epoch of a network."""
        step = self.teacher if network.role == "teacher" else self.student
        if step is None:
            return None
        size, cotrained = network.training.batch_size, 0.0
        if network.role == "student":
            # A step takes time in proportion to its examples.
            step *= size / context.recipe.student.training.batch_size
            cotrained = (self.teacher or 0.0) if network.cotrained else 0.0
        return (step + cotrained) * -(-len(context.splits.train) // size)


def estimate_run(
    context: StudyContext, speeds: Speeds, modules: dict[Role, nn.Module]
) -> tuple[RunEstimate, tuple[PlannedWork, ...]]:
    """Return the time, memory and disk space that a recipe is expected to take.

    Parameters
    ----------
    context
        Context of the study.
    speeds
        Seconds of training steps.
    modules
        The student, and the teacher if its network is known.

    Returns
    -------
    The estimate of the whole run, and its parts with what the run folder holds of them.
    """
    networks = planned_networks(context)
    blocks = read_blocks(context, _teacher_training(context))
    if "teacher" not in modules:
        blocks = {block for block in blocks if block[0] == "student"}
    work = (
        *_trainings(context, networks, speeds),
        *_logits(context, blocks, modules),
        *_complexity(context),
    )
    disk = disk_use(context, networks, modules, len(blocks))
    estimate = RunEstimate(
        parts=tuple((part.name, part.seconds) for part in work),
        device=str(context.accelerator.device),
        memory=_peak_memory(context),
        checkpoints=disk.checkpoints,
        cache=disk.cache,
        free_disk=shutil.disk_usage(_existing(context.run.folder)).free,
        states=disk.states,
        outputs=disk.outputs,
        trials=disk.trials,
    )
    return estimate, work


def built_networks(context: StudyContext) -> dict[Role, nn.Module]:
    """Return a fresh student, and a fresh teacher where its network is known."""
    networks: dict[Role, nn.Module] = {"student": context.build(context.recipe.student.model, 0)}
    model = context.recipe.teacher.model
    if context.recipe.teacher.run is not None:
        model = prepare_teacher(context).model
    if model is not None:
        networks["teacher"] = context.build(model, 0, "teacher")
    return networks


def disk_problem(estimate: RunEstimate, there: int) -> str:
    """Return why a run does not fit on its disk; empty if it does. ``there`` bytes are written."""
    needed = estimate.most_disk - there
    if needed <= estimate.free_disk:
        return ""
    return (
        f"the run needs {needed / 1e9:.1f} GB of disk space and {estimate.free_disk / 1e9:.1f} GB are "
        f"free ({estimate.checkpoints / 1e9:.1f} GB are checkpoints, {estimate.cache / 1e9:.1f} GB "
        "teacher logits); choose another --out, a larger training.checkpoint_every, fewer epochs or "
        "seeds, or a smaller cache_gigabytes"
    )


def _teacher_training(context: StudyContext) -> TrainingRecipe | None:
    if context.recipe.teacher.run is not None:
        return prepare_teacher(context).training
    return context.recipe.teacher.training


def _trainings(
    context: StudyContext, networks: Sequence[PlannedNetwork], speeds: Speeds
) -> Iterator[PlannedWork]:
    """Yield the trainings, part by part; times of others are estimated from existing epochs."""
    records = [(network, read_epochs(network.files)) for network in networks]
    for name in dict.fromkeys(network.part for network in networks):
        mine = [(network, there) for network, there in records if network.part == name]
        seconds, left, sources = 0.0, 0.0, set[str]()
        for network, there in mine:
            # Networks of other seeds and learning rates take the same time.
            known = there or [r for other, e in records if other.title == network.title for r in e]
            sources.add(EPOCHS_TRAINED if known else STEPS_TIMED)
            epoch = fmean(r.seconds for r in known) if known else speeds.per_epoch(context, network)
            rest = 0 if network.files.cell.is_file() else network.training.epochs - len(there)
            seconds += sum(r.seconds for r in there) + rest * (epoch or 0.0)
            left += rest * (epoch or 0.0)
        yield PlannedWork(
            name=name,
            networks=len(mine),
            finished=sum(network.files.cell.is_file() for network, _ in mine),
            epochs=sum(network.training.epochs for network, _ in mine),
            epochs_done=sum(len(there) for _, there in mine),
            seconds=seconds,
            seconds_left=left,
            measured_from=" and ".join(sorted(sources)),
        )


def _logits(
    context: StudyContext, blocks: set[Block], modules: dict[Role, nn.Module]
) -> Iterator[PlannedWork]:
    names: tuple[tuple[Role, str], ...] = (
        ("teacher", "teacher logits"),
        ("student", "logits of students that teach"),
    )
    folder = context.run.cache
    if context.recipe.teacher.run is not None:
        folder = prepare_teacher(context).cache_folder
    there = len(list(folder.glob("*.npy")))
    for role, name in names:
        count = sum(block[0] == role for block in blocks)
        if not count:
            continue
        each = len(context.splits.train) * _seconds_per_example(context, modules[role], role)
        done = min(there, count)
        there -= done
        yield PlannedWork(
            name=name,
            networks=0,
            finished=0,
            epochs=0,
            epochs_done=0,
            seconds=count * each,
            seconds_left=(count - done) * each,
            measured_from=f"a forward pass of {min(PREDICTED, len(context.splits.train))} examples",
        )


def _complexity(context: StudyContext) -> Iterator[PlannedWork]:
    asked = context.recipe.complexity
    if asked is None:
        return
    plan, grams = complexity_plan(context, asked)
    seconds = grams * (plan.seconds or 0.0)
    settings = asked.model_dump(mode="json")
    records = read_records(context.run, "complexity")
    done = any(record.content.settings == settings for record in records)
    yield PlannedWork(
        name="complexity",
        networks=0,
        finished=0,
        epochs=0,
        epochs_done=0,
        seconds=seconds,
        seconds_left=0.0 if done else seconds,
        measured_from="the speed of matrix products on this machine",
    )


def _seconds_per_example(context: StudyContext, network: nn.Module, role: Role) -> float:
    examples = context.splits.train
    part = examples.take(slice(PREDICTED))
    device = context.accelerator.device
    network.to(device)
    began = time.perf_counter()
    predict(network, part, context.normalisation_of(role), device=device)
    return (time.perf_counter() - began) / len(part)


def _peak_memory(context: StudyContext) -> int:
    if context.accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(context.accelerator.device)
    return peak_host_memory()


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.exists())
