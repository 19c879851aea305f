"""Plan a run: expected time, memory and disk space, and the work that its folder contains already.

A few training steps are timed; the rest is counted.
"""

from __future__ import annotations

import heapq
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from distillens.analyses.complexity import complexity_plan
from distillens.data import Batch, Batches
from distillens.errors import TrainingError, one_line
from distillens.forward.device_errors import peak_host_memory
from distillens.models import ModelRecipe
from distillens.results.check import PlannedWork, RunEstimate, RunPlan
from distillens.runs.folder import check_folder
from distillens.runs.layout import Run, run_folder
from distillens.runs.records import read_records
from distillens.study.context import StudyContext
from distillens.study.networks import read_epochs
from distillens.study.normalisations import Role
from distillens.study.planning.disk import (
    Block,
    PlannedNetwork,
    bytes_there,
    disk_use,
    planned_networks,
    read_blocks,
)
from distillens.study.reading import as_of_today
from distillens.study.recipe import Recipe, StudentRecipe, TeacherRecipe
from distillens.study.teacher import TEACHER, find_teacher, prepare_teacher
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


def plan_run(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    trust_code: bool = False,
    workers: int = 1,
) -> RunPlan:
    """Return the work that `distillens.run` would do with a recipe, and its cost; nothing is written.

    Times are estimates. If the folder contains epochs of a supervision, the times of its other
    epochs are estimated from them; otherwise a few training steps are timed now.

    Parameters
    ----------
    recipe
        The recipe.
    out
        The run folder; by default ``runs/<name of the recipe>``.
    trust_code
        Allow ``module:function`` models, which run code that the recipe names.
    workers
        Number of students trained in parallel, each by a separate process.

    Raises
    ------
    DistillensError
        As `distillens.run` before training.
    """
    recipe.refuse_unavailable("plan")
    folder = run_folder(out, recipe.name)
    check_folder(folder, recipe.as_written_in(folder), as_of_today)
    run = Run(folder)
    context = StudyContext.of(recipe, run, accelerator_for(recipe.precision), trust_code)
    context.build(recipe.student.model, 0)
    find_teacher(context)
    networks = planned_networks(context)
    estimate, work = estimate_run(context, networks, time_steps(context, networks))
    spread = {network.part for network in networks} - {TEACHER}
    at_once = [part for part in work if part.name in spread]
    alone = [part for part in work if part.name not in spread]
    there = bytes_there(folder)
    problem = disk_problem(estimate, there)
    return RunPlan(
        recipe=recipe.name,
        folder=str(folder),
        begun=run.has_trained,
        device=estimate.device,
        threads=torch.get_num_threads(),
        workers=workers,
        work=work,
        seconds=sum(part.seconds for part in alone)
        + side_by_side([(part.seconds, part.networks) for part in at_once], workers),
        seconds_left=sum(part.seconds_left for part in alone)
        + side_by_side(
            [(part.seconds_left, part.networks - part.finished) for part in at_once], workers
        ),
        estimate=estimate,
        disk_there=there,
        problems=(problem,) if problem else (),
    )


def side_by_side(parts: Sequence[tuple[float, int]], workers: int) -> float:
    """Return the seconds that parts of equally long trainings take with parallel workers.

    Parameters
    ----------
    parts
        Seconds of each part and its number of trainings, which begin in this order.
    workers
        Number of workers; each takes the next training when it is free.
    """
    ends = [0.0] * workers
    for seconds, count in parts:
        for _ in range(count):
            heapq.heapreplace(ends, ends[0] + seconds / count)
    return max(ends)


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
        raise TrainingError(f"{model.name} cannot be trained: {one_line(error)[:200]}") from None


def time_steps(context: StudyContext, networks: Sequence[PlannedNetwork]) -> dict[Role, float]:
    """Return the seconds of a training step by role, timed now.

    Roles are left out if the run holds epochs of all supervisions that train such a network.
    """
    recipe = context.recipe
    known = {network.title for network in networks if read_epochs(network.files)}
    unknown = [network for network in networks if network.title not in known]
    roles = {network.role for network in unknown}
    if any(network.cotrained for network in unknown):
        roles.add("teacher")
    parts: dict[Role, TeacherRecipe | StudentRecipe] = {
        "teacher": recipe.teacher,
        "student": recipe.student,
    }
    return {
        role: seconds_per_step(context, part.model, part.training, role)
        for role, part in parts.items()
        if role in roles and part.model is not None and part.training is not None
    }


def estimate_run(
    context: StudyContext, networks: Sequence[PlannedNetwork], steps: Mapping[Role, float]
) -> tuple[RunEstimate, tuple[PlannedWork, ...]]:
    """Return the time, memory and disk space that a recipe is expected to take.

    Parameters
    ----------
    context
        Context of the study.
    networks
        The networks that the run trains.
    steps
        Seconds of training steps by role, as timed now.

    Returns
    -------
    The estimate of the whole run, and its parts with what the run folder holds of them.
    """
    recipe, cache = context.recipe.teacher, context.run.cache
    model, training = recipe.model, recipe.training
    if recipe.run is not None:
        teacher = prepare_teacher(context)
        model, training, cache = teacher.model, teacher.training, teacher.cache_folder
    modules: dict[Role, nn.Module] = {"student": context.build(context.recipe.student.model, 0)}
    if model is not None:
        modules["teacher"] = context.build(model, 0, "teacher")
    blocks = {block for block in read_blocks(context, training) if block[0] in modules}
    work = (
        *_trainings(context, networks, steps),
        *_logits(context, blocks, modules, cache),
        *_complexity(context),
    )
    folder = context.run.folder.resolve()
    disk = next(place for place in (folder, *folder.parents) if place.exists())
    estimate = RunEstimate(
        parts=tuple((part.name, part.seconds) for part in work),
        device=str(context.accelerator.device),
        memory=_peak_memory(context),
        free_disk=shutil.disk_usage(disk).free,
        **disk_use(context, networks, modules, len(blocks)),
    )
    return estimate, work


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


def _trainings(
    context: StudyContext, networks: Sequence[PlannedNetwork], steps: Mapping[Role, float]
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
            epoch = (
                fmean(r.seconds for r in known)
                if known
                else _seconds_of_epoch(context, network, steps)
            )
            rest = 0 if network.files.cell.is_file() else network.training.epochs - len(there)
            seconds += sum(r.seconds for r in there) + rest * epoch
            left += rest * epoch
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


def _seconds_of_epoch(
    context: StudyContext, network: PlannedNetwork, steps: Mapping[Role, float]
) -> float:
    step, size = steps.get(network.role, 0.0), network.training.batch_size
    if network.role == "student":
        # A step takes time in proportion to its examples.
        step *= size / context.recipe.student.training.batch_size
        step += steps.get("teacher", 0.0) if network.cotrained else 0.0
    return step * -(-len(context.splits.train) // size)


def _logits(
    context: StudyContext, blocks: set[Block], modules: dict[Role, nn.Module], folder: Path
) -> Iterator[PlannedWork]:
    names: tuple[tuple[Role, str], ...] = (
        ("teacher", "teacher logits"),
        ("student", "logits of students that teach"),
    )
    train, device = context.splits.train, context.accelerator.device
    part = train.take(slice(PREDICTED))
    there = len(list(folder.glob("*.npy")))
    for role, name in names:
        count = sum(block[0] == role for block in blocks)
        if not count:
            continue
        network = modules[role].to(device)
        began = time.perf_counter()
        predict(network, part, context.normalisation_of(role), device=device)
        each = (time.perf_counter() - began) * len(train) / len(part)
        done = min(there, count)
        there -= done
        yield PlannedWork(
            name=name,
            seconds=count * each,
            seconds_left=(count - done) * each,
            measured_from=f"a forward pass of {len(part)} examples",
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
        seconds=seconds,
        seconds_left=0.0 if done else seconds,
        measured_from="the speed of matrix products on this machine",
    )


def _peak_memory(context: StudyContext) -> int:
    if context.accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(context.accelerator.device)
    return peak_host_memory()
