"""A training's files: weights of the epochs that are kept, and the state that it resumes from."""

from __future__ import annotations

import io
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from distillens.errors import CheckpointError
from distillens.files.atomic import write_atomically
from distillens.models.weights import load_safely
from distillens.training.recipe import TrainingRecipe


class Store(Protocol):
    """The files of a training; a run folder has one store per network."""

    @property
    def state(self) -> Path:
        """The state to resume from: one file, replaced every epoch."""
        ...

    @property
    def history(self) -> Path:
        """One JSON line per epoch."""
        ...

    def weights(self, epoch: int) -> Path:
        """The weights after this many epochs; 0 is the initialisation."""
        ...


def remove_passed(store: Store, recipe: TrainingRecipe, epoch: int) -> None:
    """Delete the weights of the epochs before this one that ``checkpoint_every`` does not keep.

    It is called when the state on disk names ``epoch``, so that a training which is killed at any
    moment finds the weights that its state names.
    """
    for earlier in range(1, epoch):
        if not recipe.keeps(earlier):
            store.weights(earlier).unlink(missing_ok=True)


@dataclass(frozen=True)
class EpochRecord:
    """Record of an epoch. Accuracies are shares of the examples seen in training."""

    epoch: int
    step: int
    learning_rate: float
    loss: float
    accuracy: float
    seconds: float
    notes: tuple[str, ...] = ()
    """Reasons why an accelerator was idle, for example why steps were not captured."""

    def __post_init__(self) -> None:
        # JSON has lists.
        object.__setattr__(self, "notes", tuple(self.notes))


def write_history(path: Path, records: list[EpochRecord]) -> None:
    """Write all epochs so far, one JSON line each."""
    write_atomically(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def read_history(path: Path, epochs: int) -> list[EpochRecord]:
    """Read the first epochs of a history."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if len(lines) < epochs:
            raise CheckpointError(
                f"{path} ends before epoch {epochs}; delete its folder to train again"
            )
        return [EpochRecord(**json.loads(line)) for line in lines[:epochs]]
    except (ValueError, TypeError):
        raise CheckpointError(f"{path} is damaged; delete its folder to train again") from None


STATE_KEYS = {"epoch", "digest", "optimizer", "supervision", "random"}
LATER_KEYS = {"batches", "others"}
"""Keys that earlier versions did not store: states of the source of batches and other processes."""


def global_random_state() -> dict[str, Any]:
    """Return the global random states of torch, Python and NumPy, as tensors and plain values."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    # Users' datasets draw from NumPy's global generator.
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numpy, dict)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return {
        "cpu": torch.get_rng_state(),
        "cuda": cuda,
        "python": random.getstate(),
        "numpy": numpy,
    }


def restore_global_random_state(state: dict[str, Any]) -> None:
    """Restore a state from `global_random_state`; older versions stored torch's part only."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "python" in state:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])  # noqa: NPY002


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers and strings, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """Read a state; nothing but tensors and plain values is unpickled.

    Raises
    ------
    CheckpointError
        The file is damaged or holds something else.
    """
    try:
        state = load_safely(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete its folder to train again") from None
    known = isinstance(state, dict) and set(state) - LATER_KEYS == STATE_KEYS
    if not known or not isinstance(state["epoch"], int):
        raise CheckpointError(f"{path} is no training state; delete its folder to train again")
    return state
