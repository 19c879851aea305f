"""A training's files: weights after every epoch, and the state that lets it go on."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from distillens.atomic import write_atomically
from distillens.errors import CheckpointError
from distillens.models.weights import load_safely


class Store(Protocol):
    """Where a training keeps its files; a run folder has one for each network."""

    @property
    def state(self) -> Path:
        """The state to go on from: one file, replaced every epoch."""
        ...

    @property
    def history(self) -> Path:
        """One JSON line an epoch."""
        ...

    def weights(self, epoch: int) -> Path:
        """The weights after this many epochs; 0 is the initialisation."""
        ...


@dataclass(frozen=True)
class EpochRecord:
    """What an epoch of training was like. Accuracies are shares of the examples seen in training."""

    epoch: int
    step: int
    learning_rate: float
    loss: float
    accuracy: float
    seconds: float


def write_history(path: Path, records: list[EpochRecord]) -> None:
    """Write all epochs so far, one JSON line each."""
    write_atomically(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def read_history(path: Path, epochs: int) -> list[EpochRecord]:
    """Read the first epochs of a history."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:epochs] if path.is_file() else []
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is damaged; delete its folder to train again") from None
    if len(lines) < epochs:
        raise CheckpointError(
            f"{path} ends before epoch {epochs}; delete its folder to train again"
        )
    try:
        return [EpochRecord(**json.loads(line)) for line in lines]
    except (ValueError, TypeError):
        raise CheckpointError(f"{path} is damaged; delete its folder to train again") from None


STATE_KEYS = {"epoch", "digest", "optimizer", "supervision", "random"}


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
    known = isinstance(state, dict) and set(state) == STATE_KEYS
    if not known or not isinstance(state["epoch"], int):
        raise CheckpointError(f"{path} is no training state; delete its folder to train again")
    return state
