"""Experiment trackers through Accelerate; the JSON lines of a run are written in any case."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator

from distillens.errors import TrainingError, one_line
from distillens.training.recipe import Tracker
from distillens.training.trajectory import EpochRecord


def start_trackers(
    accelerator: Accelerator, trackers: Sequence[Tracker], folder: Path, name: str
) -> None:
    """Start trackers that log below a folder, or where they are configured to log.

    Raises
    ------
    TrainingError
        A tracker is not installed, which Accelerate alone would ignore silently, or it
        cannot start.
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
        with _tracking(
            f"trackers {', '.join(trackers)} cannot start", "leave them out of trackers"
        ):
            accelerator.init_trackers(name)


@dataclass
class Steps:
    """The epochs of all networks of a study that were logged, one after the other.

    Trackers drop steps that go back, so a network's steps begin after those of the networks before
    it, whether these were trained now or before the run was resumed.
    """

    taken: int = 0


def tracked_name(network: str) -> str:
    """Return a network's name in letters that every tracker takes; MLflow refuses most signs."""
    return " ".join(re.sub(r"[^\w.\- :]", " ", network).split())


def log_epoch(accelerator: Accelerator, steps: Steps, network: str, record: EpochRecord) -> None:
    """Log an epoch of a network under its name, as the next of the steps."""
    steps.taken += 1
    name = tracked_name(network)
    values = {
        f"{name}/loss": record.loss,
        f"{name}/accuracy": record.accuracy,
        f"{name}/learning rate": record.learning_rate,
        f"{name}/epoch": record.epoch,
    }
    advice = "run the recipe again to go on, perhaps without it in trackers"
    with _tracking(f"a tracker cannot log epoch {record.epoch} of {network}", advice):
        accelerator.log(values, step=steps.taken)


@contextmanager
def _tracking(what: str, advice: str) -> Iterator[None]:
    try:
        yield
    # Each tracker raises its own exceptions, for example for an unreachable server or a missing key.
    except Exception as error:
        raise TrainingError(f"{what}: {one_line(error)[:200]}; {advice}") from None
