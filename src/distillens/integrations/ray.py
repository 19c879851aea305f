"""Spread the students of a study over Ray tasks, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distillens.errors import RecipeError, RunError, one_line
from distillens.forward.device_errors import checked_device, limit_memory, peak_host_memory
from distillens.results.training import Cell, Trial
from distillens.runs.folder import latest_recipe
from distillens.runs.layout import Run
from distillens.runs.open import check_fingerprint
from distillens.study.context import StudyContext
from distillens.study.networks import epochs_done, read_epochs
from distillens.study.reading import read_recipe
from distillens.study.students import Done, Spread, Student, train_student
from distillens.study.teacher import StudyTeacher, prepare_teacher
from distillens.study.tuning import tuned
from distillens.training import accelerator_for, log_epoch

if TYPE_CHECKING:
    from ray import ObjectRef

LOOK_EVERY = 0.5
"""Seconds between two looks at how far the students are."""

GRACE = 30.0
"""Seconds that an interrupted task has to end by itself."""

STORE_BYTES = 100_000_000
"""Room for Ray's objects on this machine: a task takes names and returns a few numbers."""


@contextmanager
def ray_workers(count: int) -> Iterator[Spread]:
    """Start Ray, or join the cluster that ``RAY_ADDRESS`` names, for ``distillens.run(spread=...)``.

    At most ``count`` students are trained at once, each as a Ray task with its share of the cores and,
    where this process trains on a GPU, a GPU or a share of one (`share_of_a_task`). Every machine
    needs distillens, the data and the run folder under the same paths. A task whose machine is lost
    is begun again by Ray and goes on from its student's last checkpoint.

    Parameters
    ----------
    count
        Students at once.

    Raises
    ------
    RecipeError
        Ray is not installed, ``count`` is less than one, or this is a process of a launcher.
    RunError
        Ray cannot be started or reached.
    """
    if find_spec("ray") is None:
        raise RecipeError(
            "workers are Ray tasks, and Ray is not installed; pip install 'distillens[ray]', "
            "or leave --workers out"
        )
    if count < 1:
        raise RecipeError(f"workers must be at least 1, got {count}")
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise RecipeError(
            f"a launcher has started {processes} processes; workers are started from one, "
            "so use either the launcher or --workers"
        )
    import ray

    # Who has started Ray also stops it.
    mine = not ray.is_initialized()
    if mine:
        _start(count)
    try:
        yield partial(_spread, count)
    finally:
        if mine:
            ray.shutdown()


def _start(count: int) -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS")
    # Disable Ray's usage reports.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {
        "num_cpus": max(count, os.cpu_count() or 1),
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
    }
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            # Its notices while it starts are no concern of a study; warnings are, from then on.
            logging_level=logging.ERROR,
            **({} if address else own),
        )
        logging.getLogger("ray").setLevel(logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"at RAY_ADDRESS={address} cannot be reached" if address else "cannot be started"
        raise RunError(f"Ray {where}: {one_line(error)}") from None


class _Running:
    """A student in training, seen from here: its progress, and how many epochs were seen of what."""

    def __init__(self, context: StudyContext, student: Student, bar: ExitStack) -> None:
        self.student, self.bar, self._context = student, bar, context
        self._networks = student.networks(context)
        self._seen = {title: epochs_done(files) for title, files in self._networks.items()}
        total = student.training(context.recipe).epochs * len(self._networks)
        shown = context.progress(student.title(context.recipe), total, sum(self._seen.values()))
        self._advance = bar.enter_context(shown)

    def look(self) -> None:
        """Show and log the epochs that its files have more than before."""
        context = self._context
        for title, files in self._networks.items():
            for record in read_epochs(files)[self._seen[title] :]:
                self._seen[title] += 1
                self._advance(1)
                if context.recipe.trackers:
                    log_epoch(context.accelerator, context.tracked, title, record)


def _spread(
    count: int,
    context: StudyContext,
    teacher: StudyTeacher,
    students: Sequence[Student],
    done: Done,
) -> None:
    """Train students as tasks; fulfils `distillens.study.students.Spread`.

    A task finds the teacher in the run folder, where it was written.
    """
    import ray

    recipe = context.recipe
    train = _task(count, context)
    waiting = list(students)
    running: dict[ObjectRef, _Running] = {}
    for student in students:
        # Epochs that were logged before the run was resumed.
        context.tracked.taken += student.epochs_done(context)
    with ExitStack() as bars:
        try:
            while waiting or running:
                open_now = {*waiting, *(task.student for task in running.values())}
                free = [mine for mine in waiting if mine.origin(recipe) not in open_now]
                for student in free[: count - len(running)]:
                    waiting.remove(student)
                    begun = _Running(context, student, bars.enter_context(ExitStack()))
                    running[train(student)] = begun
                for reference in ray.wait(list(running), timeout=LOOK_EVERY)[0]:
                    cell = _received(reference, running[reference].student.title(recipe))
                    finished = running.pop(reference)
                    finished.look()
                    finished.bar.close()
                    done(finished.student, cell)
                for task in running.values():
                    task.look()
        finally:
            # No task may still be writing when the run is resumed.
            _end(list(running))


def _end(tasks: list[ObjectRef]) -> None:
    """Interrupt tasks and wait until none of them runs."""
    import ray

    for task in tasks:
        ray.cancel(task)
    if not tasks:
        return
    # Not by force at first: a task that ends just when its worker is killed makes Ray abort this
    # process, and the error that all are ended for would be lost.
    left = tasks
    try:
        left = ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)[1]
    finally:
        # Also after a second interruption, so that no task is left behind.
        for task in left:
            ray.cancel(task, force=True)
        if left:
            ray.wait(left, num_returns=len(left))


def share_of_a_task(
    count: int, machines: Sequence[Mapping[str, float]], *, on_gpus: bool
) -> tuple[int, float]:
    """Return how many cores and what share of a GPU each of ``count`` tasks is given.

    Cores are shared out evenly. The share of a GPU is 0 where students train on CPUs. Otherwise a task
    trains on one GPU; where there are fewer GPUs than tasks, each GPU is given to equally many tasks,
    or to one less.

    Parameters
    ----------
    count
        Tasks at the same time.
    machines
        Ray's resources of each machine: ``CPU``, ``GPU`` and ``memory`` in bytes.
    on_gpus
        Whether students train on GPUs.

    Raises
    ------
    RunError
        Students train on GPUs, and Ray knows of none.
    """
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    # A task runs on one machine, and may not ask for more than the largest has.
    share = max(1, min(sum(cores) // count, max(cores)))
    if not on_gpus:
        return share, 0.0
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    if not gpus:
        raise RunError(
            "this process trains on a GPU, but Ray knows of none, so its tasks would train on CPUs; "
            "start Ray where it finds the GPUs, or set ACCELERATE_USE_CPU=true"
        )
    together = -(-count // gpus)
    # Ray counts ten-thousandths of a GPU; rounded down, so that all of them fit.
    return share, (1.0 if together == 1 else (10_000 // together) / 10_000)


def check_memory(count: int, needed: int, machines: Sequence[Mapping[str, float]]) -> None:
    """Refuse more tasks than the machines have memory for.

    Parameters
    ----------
    count
        Tasks at the same time.
    needed
        Bytes that this process has taken, which has loaded the same data and networks as a task.
    machines
        Ray's resources of each machine.

    Raises
    ------
    RunError
        The tasks do not fit in memory; the message names the number that does.
    """
    rooms = [machine["memory"] for machine in machines if "memory" in machine]
    fit = sum(int(room // needed) for room in rooms)
    if rooms and fit < count:
        raise RunError(
            f"{count} workers need about {count * needed / 1e9:.1f} GB of memory, {needed / 1e9:.1f} GB "
            f"each as this process does, and Ray has {sum(rooms) / 1e9:.1f} GB free; "
            + (f"use --workers {fit}" if fit > 1 else "leave --workers out")
        )


def _task(count: int, context: StudyContext) -> Callable[[Student], ObjectRef]:
    """Return a function that submits a student to Ray with the resources of one task."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, gpus = share_of_a_task(
        count, machines, on_gpus=context.accelerator.device.type == "cuda"
    )
    check_memory(count, peak_host_memory(), machines)
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else cores
    remote = ray.remote(_train).options(num_cpus=cores, num_gpus=gpus)
    folder, here = context.run.folder.resolve(), Path.cwd()
    together = round(1 / gpus) if gpus else 0
    return lambda student: remote.remote(
        here, folder, student, context.trust_code, threads, together
    )


def _train(
    here: Path, folder: Path, student: Student, trust_code: bool, threads: int, together: int
) -> Cell | Trial:
    """Train a student; runs in a Ray worker, on a GPU that ``together`` tasks are given, or on none."""
    # Paths in a recipe count from where the command was given.
    if here.is_dir():
        os.chdir(here)
    torch.set_num_threads(threads)
    if together:
        # Ray shows the task its GPU alone, by CUDA_VISIBLE_DEVICES.
        device = checked_device("cuda", f"a worker on {socket.gethostname()}")
        limit_memory(device, together)
    else:
        # Some versions of Ray show all GPUs to a task that asked for none.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return train_in_worker(folder, student, trust_code=trust_code)


def train_in_worker(folder: Path, student: Student, *, trust_code: bool = False) -> Cell | Trial:
    """Train a student of a run whose teacher is finished, and write its folder.

    The recipe and the teacher are read from the folder, and the data from the path in the recipe.
    Results are written by the process that holds the run.

    Raises
    ------
    RunError
        The folder or its teacher is missing, or the data differ from those of the run.
    DistillensError
        As `distillens.run` for this student.
    """
    run, host = Run(folder), socket.gethostname()
    if not run.data.is_file():
        raise RunError(
            f"{folder} is no run on {host}; the run folder must lie on a file system "
            "that all workers share"
        )
    recipe = tuned(read_recipe(latest_recipe(run), trust_code=trust_code), run)
    context = StudyContext.of(recipe, run, accelerator_for(recipe.precision), trust_code)
    check_fingerprint(run, context.splits.fingerprint, f"on {host}")
    if recipe.teacher.run is None and not run.teacher.cell.is_file():
        raise RunError(f"the teacher of {folder} is not finished; run its recipe first")
    return train_student(context, prepare_teacher(context), student)


def _received(reference: ObjectRef, title: str) -> Cell | Trial:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Ray wraps what was raised in its own text of many lines.
        raise error.cause from error
    except RayError as error:
        raise RunError(
            f"Ray lost the task of {title}: {one_line(error)}; "
            "the same command again goes on from its last checkpoint"
        ) from None
