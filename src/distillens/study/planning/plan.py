"""Plan a run: expected time, memory and disk space, and the work that its folder contains already."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

import torch

from distillens.results.check import RunPlan
from distillens.runs.folder import check_folder
from distillens.runs.layout import Run, run_folder
from distillens.study.context import StudyContext
from distillens.study.planning.disk import bytes_there, planned_networks
from distillens.study.planning.estimate import disk_problem, estimate_run, time_steps
from distillens.study.reading import as_of_today
from distillens.study.recipe import Recipe
from distillens.study.teacher import TEACHER, find_teacher
from distillens.training import accelerator_for


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
