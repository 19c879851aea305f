"""Train the networks of a study: one cell per network, skipped if it is finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from distillens.errors import CheckpointError, DivergenceError
from distillens.files.atomic import write_atomically
from distillens.files.npz import write_npz
from distillens.models import ModelRecipe, count_parameters, digest_file
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
    Training,
    TrainingRecipe,
    accelerator_for,
    fit_together,
    is_sharded,
    log_epoch,
    read_history,
)


@dataclass(frozen=True)
class Network:
    """A network of a study: its files and how it is trained.

    Attributes
    ----------
    files
        Its files.
    model, training, supervision
        What is trained and how; ``supervision`` is called when the training begins.
    name, title
        The name in its numbers, and the one in progress displays and trackers.
    seed
        Seed of its numbers and of the order of the examples.
    start
        Seed of the initial weights and of the random numbers of dropout.
    role
        Role whose inputs it takes.
    """

    files: NetworkFiles
    model: ModelRecipe
    training: TrainingRecipe
    supervision: Callable[[], Supervision]
    name: str
    title: str
    seed: int
    start: int
    role: Role = "student"


def train_network(context: StudyContext, network: Network) -> Cell:
    """Train a network, or resume its training, and return its numbers."""
    train_networks(context, [network], lambda place, cell: None)
    return read_cell(network.files)


def train_networks(
    context: StudyContext, networks: Sequence[Network], done: Callable[[int, Cell], object]
) -> None:
    """Train networks at the same time on the batches of one seed, or resume their training.

    They have one batch size. ``done`` is called with the place of each and its numbers when it is
    finished.
    """

    def measured(place: int, module: nn.Module, history: History) -> None:
        network = networks[place]
        write_cell(
            context,
            network.files,
            predict_splits(context, module, network.role),
            supervision=network.name,
            seed=network.seed,
            parameters=count_parameters(module),
            epochs=network.training.epochs,
            seconds=history.seconds,
            weights_digest=history.digest or "",
        )
        done(place, read_cell(network.files))

    _train(context, networks, measured)


def train_trial(context: StudyContext, network: Network) -> Trial:
    """Train a network that tries a learning rate, or resume its training.

    It is measured on the validation split alone; test examples are not used. A training that
    diverges is a trial without accuracy.
    """
    training = network.training
    trial = Trial(
        network.name, network.seed, training.learning_rate, training.epochs, 0.0, None, None, ""
    )

    def measured(place: int, module: nn.Module, history: History) -> None:
        examples, task = context.splits.validation, context.task
        assert examples is not None  # the recipe refuses tune without validation examples
        stored = task.predict(context, module, examples, "student")
        found = replace(
            trial,
            seconds=history.seconds,
            validation_accuracy=task.accuracy(stored, examples),
            validation_loss=task.loss(stored, examples, context.recipe.loss),
            weights_digest=history.digest or "",
        )
        write_atomically(network.files.cell, to_json(found))

    try:
        _train(context, [network], measured)
    except DivergenceError as error:
        # Losses are those of a process: another one may not have seen that they diverged.
        if context.accelerator.num_processes > 1:
            raise
        write_atomically(network.files.cell, to_json(replace(trial, failure=str(error))))
    return read_trial(network.files)


def _train(
    context: StudyContext,
    networks: Sequence[Network],
    measured: Callable[[int, nn.Module, History], None],
) -> None:
    """Train the networks without a cell; ``measured`` writes the cell on the main process."""
    # Every process must see the same state of the folder before one of them changes it.
    context.accelerator.wait_for_everyone()
    for network in networks:
        # Epochs that were logged before the run was resumed.
        context.tracked.taken += epochs_done(network.files)
    trainings = [
        _prepared(context, network, partial(measured, place))
        for place, network in enumerate(networks)
        if not network.files.cell.is_file()
    ]
    if not trainings:
        return
    first = networks[0]
    batches = context.task.source(context.batches(first.training, first.seed, first.role))
    fit_together(trainings, batches, progress=context.progress)
    context.accelerator.wait_for_everyone()


def _prepared(
    context: StudyContext, network: Network, measured: Callable[[nn.Module, History], None]
) -> Training:
    """Return a training that ends with ``measured`` on the main process."""
    accelerator, training = context.accelerator, network.training
    module = context.build(network.model, network.start, network.role)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)

    def finished(history: History) -> None:
        if not context.main:
            return
        # A sharded network runs on all processes or not at all: one process reads it whole.
        whole = (
            context.load(network.model, network.files, training.epochs, network.role)
            if is_sharded(accelerator)
            else module
        )
        measured(whole, history)

    def log(record: EpochRecord, model: nn.Module) -> None:
        log_epoch(accelerator, context.tracked, network.title, record)

    return Training(
        module,
        network.supervision(),
        training,
        network.files,
        # One accelerator per network, because it keeps references to everything that it prepared.
        accelerator_for(context.recipe.precision),
        (log,) if context.recipe.trackers else (),
        network.title,
        seed=network.start,
        finished=finished,
    )


def epochs_done(files: NetworkFiles) -> int:
    """Return how many epochs the history of a network has."""
    return files.history.read_bytes().count(b"\n") if files.history.is_file() else 0


def read_epochs(files: NetworkFiles) -> list[EpochRecord]:
    """Return the epochs that a network's folder holds; none where there is no folder."""
    return read_history(files.history, epochs_done(files))


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
    context: StudyContext, files: NetworkFiles, stored: Mapping[str, np.ndarray], **numbers: Any
) -> None:
    """Write outputs by split and numbers; the numbers come last and mark a network as finished.

    ``numbers`` are those attributes of `Cell` that are not measured on the outputs.
    """
    splits, task = context.splits, context.task
    shares = {
        split: task.accuracy(values, getattr(splits, split)) for split, values in stored.items()
    }
    cell = Cell(
        train_accuracy=shares["train"],
        test_accuracy=shares["test"],
        test_count=task.count(splits.test),
        validation_accuracy=shares.get("validation"),
        position=files.position,
        **numbers,
    )
    write_npz(task.file(files), stored)
    write_atomically(files.cell, to_json(cell))


def network_logits(files: NetworkFiles) -> dict[str, np.ndarray]:
    """Return a finished network's logits by split."""
    return stored_arrays(files.logits, files)
