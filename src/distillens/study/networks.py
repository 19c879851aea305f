"""Train the networks of a study: one cell per network, skipped if it is finished."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distillens.errors import CheckpointError, DivergenceError
from distillens.files.atomic import write_atomically
from distillens.models import (
    ModelRecipe,
    count_parameters,
    digest_file,
)
from distillens.results.base import from_json, to_json
from distillens.results.training import Cell, Trial
from distillens.runs.layout import NetworkFiles
from distillens.runs.read import stored_arrays
from distillens.study.context import StudyContext
from distillens.study.normalisations import Role
from distillens.supervision import Supervision
from distillens.training import (
    EpochRecord,
    History,
    Hook,
    Training,
    TrainingRecipe,
    accelerator_for,
    fit_together,
    is_sharded,
    log_epoch,
    read_history,
    tracking,
)


def train_network(
    context: StudyContext,
    files: NetworkFiles,
    model: ModelRecipe,
    training: TrainingRecipe,
    supervision: Callable[[], Supervision],
    *,
    name: str,
    seed: int,
    title: str,
    start: int | None = None,
    role: Role = "student",
) -> Cell:
    """Train a network, or resume its training, and return its numbers.

    ``seed`` names the cell and sets the order of the examples; ``start`` sets the initial weights
    and the random numbers of dropout, by default the same.
    """

    measure = _measure(context, files, training, name, seed, role)
    start = seed if start is None else start
    _train(context, files, model, training, supervision, measure, (seed, start), title, role)
    return read_cell(files)


@dataclass(frozen=True)
class OneOfSeveral:
    """A student that is trained at the same time as others of its seed; see `train_network`."""

    files: NetworkFiles
    training: TrainingRecipe
    supervision: Callable[[], Supervision]
    name: str
    title: str


def train_networks(
    context: StudyContext,
    model: ModelRecipe,
    several: Sequence[OneOfSeveral],
    seed: int,
    done: Callable[[int, Cell], object],
) -> None:
    """Train students at the same time on the batches of one seed, or resume their training.

    They have one batch size. ``done`` is called with the place of each and its numbers when it is
    finished.
    """

    def prepared(place: int, one: OneOfSeveral) -> Training:
        finish = _measure(context, one.files, one.training, one.name, seed, "student")

        def measure(network: nn.Module, history: History) -> None:
            finish(network, history)
            done(place, read_cell(one.files))

        hooks = []
        if context.recipe.trackers:
            # Epochs that were logged before the run was resumed.
            context.tracked.take(epochs_done(one.files))
            hooks = [_next_step(context, one.title)]
        return _prepared(
            context,
            one.files,
            model,
            one.training,
            one.supervision,
            measure,
            seed,
            one.title,
            hooks,
        )

    trainings = [prepared(place, one) for place, one in enumerate(several)]
    source = context.source(several[0].training, seed)
    fit_together(trainings, source, progress=context.progress)


def _next_step(context: StudyContext, title: str) -> Hook:
    # Steps of networks that are trained at the same time are counted as their epochs end.
    return lambda record, model: log_epoch(
        context.accelerator, title, record, context.tracked.take(1) + 1
    )


def epochs_done(files: NetworkFiles) -> int:
    """Return how many epochs the history of a network has."""
    return files.history.read_text().count("\n") if files.history.is_file() else 0


def _measure(
    context: StudyContext,
    files: NetworkFiles,
    training: TrainingRecipe,
    name: str,
    seed: int,
    role: Role,
) -> Callable[[nn.Module, History], None]:
    """Return a function that writes the outputs and the cell of a trained network."""
    return lambda network, history: write_cell(
        context,
        files,
        predict_splits(context, network, role),
        name=name,
        seed=seed,
        epochs=training.epochs,
        seconds=history.seconds,
        digest=history.digest or "",
        parameters=count_parameters(network),
    )


def train_trial(
    context: StudyContext,
    files: NetworkFiles,
    model: ModelRecipe,
    training: TrainingRecipe,
    supervision: Callable[[], Supervision],
    *,
    name: str,
    seed: int,
    title: str,
    start: int | None = None,
) -> Trial:
    """Train a network that tries a learning rate, or resume its training.

    It is measured on the validation split alone; test examples are not used. A training that
    diverges is a trial without accuracy. Parameters are those of `train_network`.
    """
    trial = Trial(name, seed, training.learning_rate, training.epochs, 0.0, None, None, "")

    def measure(network: nn.Module, history: History) -> None:
        examples, task = context.splits.validation, context.task
        assert examples is not None  # the recipe refuses tune without validation examples
        stored = task.predict(context, network, examples, "student")
        measured = replace(
            trial,
            seconds=history.seconds,
            validation_accuracy=task.accuracy(stored, examples),
            validation_loss=task.loss(stored, examples, context.recipe.loss),
            weights_digest=history.digest or "",
        )
        write_atomically(files.cell, to_json(measured))

    start = seed if start is None else start
    try:
        _train(context, files, model, training, supervision, measure, (seed, start), title)
    except DivergenceError as error:
        # Losses are those of a process: another one may not have seen that they diverged.
        if context.accelerator.num_processes > 1:
            raise
        write_atomically(files.cell, to_json(replace(trial, failure=str(error))))
    return read_trial(files)


def _train(
    context: StudyContext,
    files: NetworkFiles,
    model: ModelRecipe,
    training: TrainingRecipe,
    supervision: Callable[[], Supervision],
    measure: Callable[[nn.Module, History], None],
    seeds: tuple[int, int],
    title: str,
    role: Role = "student",
) -> None:
    """Train a network unless its cell exists; ``measure`` writes the cell on the main process."""
    seed, start = seeds
    # Every process must see the same state of the folder before one of them changes it.
    context.accelerator.wait_for_everyone()
    before = context.tracked.take(training.epochs)
    if files.cell.is_file():
        return
    hooks = [tracking(context.accelerator, title, before)] if context.recipe.trackers else []
    prepared = _prepared(
        context, files, model, training, supervision, measure, start, title, hooks, role
    )
    fit_together([prepared], context.source(training, seed, role), progress=context.progress)
    context.accelerator.wait_for_everyone()


def _prepared(
    context: StudyContext,
    files: NetworkFiles,
    model: ModelRecipe,
    training: TrainingRecipe,
    supervision: Callable[[], Supervision],
    measure: Callable[[nn.Module, History], None],
    start: int,
    title: str,
    hooks: Sequence[Hook],
    role: Role = "student",
) -> Training:
    """Return a training that ends with ``measure`` on the main process."""
    network = context.build(model, start, role).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if context.accelerator.num_processes > 1 and context.accelerator.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)

    def finished(history: History) -> None:
        if context.main:
            # A sharded network runs on all processes or not at all: one process reads it whole.
            sharded = is_sharded(context.accelerator)
            whole = context.load(model, files, training.epochs, role) if sharded else network
            measure(whole, history)

    return Training(
        network,
        supervision(),
        training,
        files,
        # One accelerator per network, because it keeps references to everything that it prepared.
        accelerator_for(context.recipe.precision),
        tuple(hooks),
        title,
        seed=start,
        finished=finished,
    )


def read_epochs(files: NetworkFiles) -> list[EpochRecord]:
    """Return the epochs that a network's folder holds; none where there is no folder."""
    done = files.history.read_text(encoding="utf-8").count("\n") if files.history.is_file() else 0
    return read_history(files.history, done)


def read_cell(files: NetworkFiles) -> Cell:
    """Return the numbers of a finished network."""
    text = files.cell.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None  # Reported below, with the advice for damaged files.
    if isinstance(content, dict):
        # Version 0.1 did not write the position, which the name of the folder holds.
        text = json.dumps({"position": files.position, **content})
    return from_json(Cell, text, str(files.cell))


def read_trial(files: NetworkFiles) -> Trial:
    """Return the result of a finished trial of a learning rate."""
    return from_json(Trial, files.cell.read_bytes(), str(files.cell))


def weights_digest(files: NetworkFiles, epoch: int, expected: str | None = None) -> str:
    """Return the digest of a checkpoint that is about to teach.

    ``expected`` is the digest in the network's numbers, known for its last epoch.

    Raises
    ------
    CheckpointError
        The checkpoint is missing or has another digest.
    """
    path = files.weights(epoch)
    digest = digest_file(path) if path.is_file() else None
    if digest is None or expected not in (None, digest):
        raise CheckpointError(
            f"{path} is missing or not what {files.cell.name} describes; "
            f"delete {files.folder} to train it again"
        )
    return digest


def predict_splits(context: StudyContext, network: nn.Module, role: Role) -> dict[str, np.ndarray]:
    """Return what a run stores of a network's outputs on the un-augmented examples of every split."""
    return {
        split: context.task.predict(context, network, examples, role)
        for split in ("train", "validation", "test")
        if (examples := getattr(context.splits, split)) is not None
    }


def write_cell(
    context: StudyContext,
    files: NetworkFiles,
    stored: Mapping[str, np.ndarray],
    *,
    name: str,
    seed: int,
    epochs: int,
    seconds: float,
    digest: str,
    parameters: int,
) -> None:
    """Write outputs by split and numbers; the numbers come last and mark a network as finished."""
    splits, task = context.splits, context.task
    shares = {
        split: task.accuracy(values, getattr(splits, split)) for split, values in stored.items()
    }
    cell = Cell(
        supervision=name,
        seed=seed,
        parameters=parameters,
        epochs=epochs,
        seconds=seconds,
        train_accuracy=shares["train"],
        test_accuracy=shares["test"],
        test_count=task.count(splits.test),
        validation_accuracy=shares.get("validation"),
        weights_digest=digest,
        position=files.position,
    )
    write_arrays(task.file(files), stored)
    write_atomically(files.cell, to_json(cell))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def network_logits(files: NetworkFiles) -> dict[str, np.ndarray]:
    """Return a finished network's logits by split."""
    return stored_arrays(files.logits, files)
