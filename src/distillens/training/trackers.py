"""Experiment trackers through Accelerate; the JSON lines of a run are written in any case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from distillens.errors import TrainingError
from distillens.training.loop import Hook
from distillens.training.trajectory import EpochRecord

Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]


def start_trackers(
    accelerator: Accelerator, trackers: Sequence[Tracker], folder: Path, name: str
) -> None:
    """Start trackers that log below a folder, or wherever they are set up to.

    Raises
    ------
    TrainingError
        A tracker is not installed; Accelerate alone would leave it out without a word.
    """
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise TrainingError(
                f"tracker {tracker!r} is not installed; pip install 'distillens[track]', "
                "or leave it out of trackers"
            )
    if trackers:
        accelerator.log_with = list(trackers)  # type: ignore[assignment]
        accelerator.project_configuration.set_directories(str(folder))
        accelerator.init_trackers(name)


def tracking(accelerator: Accelerator, network: str, steps: Iterator[int]) -> Hook:
    """Return a hook that logs every epoch of a network under its name.

    ``steps`` counts the epochs of all networks of a study, since trackers drop steps that go back.
    """

    return lambda record, model: log_epoch(accelerator, network, record, next(steps))


def log_epoch(accelerator: Accelerator, network: str, record: EpochRecord, step: int) -> None:
    """Log an epoch of a network under its name."""
    accelerator.log(
        {
            f"{network}/loss": record.loss,
            f"{network}/accuracy": record.accuracy,
            f"{network}/learning rate": record.learning_rate,
            f"{network}/epoch": record.epoch,
        },
        step=step,
    )
