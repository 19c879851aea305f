"""Results of `distillens check` and `distillens run --plan`, with their JSON forms."""

from __future__ import annotations

from dataclasses import dataclass

from distillens.results.base import Result


@dataclass(frozen=True)
class CheckedData(Result):
    """The examples of a recipe."""

    source: str
    path: str | None
    train: int
    validation: int
    test: int
    classes: tuple[str, ...]
    """Names of the classes, in the order of their labels."""
    train_counts: tuple[int, ...]
    """Training examples of each class."""
    test_counts: tuple[int, ...]
    """Test examples of each class."""
    input_shape: tuple[int, ...]
    normalisation: str
    """Description of the normalisation of the teacher's and the student's inputs."""


@dataclass(frozen=True)
class CheckedNetwork(Result):
    """The teacher or the student of a recipe."""

    role: str
    model: str
    parameters: int
    origin: str
    """Source of its weights."""
    epochs: int = 0
    """Epochs it will be trained for; 0 for a given teacher."""
    seconds_per_step: float | None = None
    """Measured seconds per training step; None if it is not trained."""
    accuracies: tuple[tuple[str, float], ...] = ()
    """Split and accuracy of a given teacher."""


@dataclass(frozen=True)
class RunEstimate(Result):
    """Expected time, memory and disk space of a run."""

    parts: tuple[tuple[str, float], ...]
    """Parts of the work and their seconds."""
    device: str
    memory: int
    """Peak memory of the process in bytes while steps were timed."""
    checkpoints: int
    """Bytes on disk of all checkpoints that are kept."""
    cache: int
    """Bytes on disk of cached teacher logits, at most."""
    free_disk: int
    """Free bytes on the disk of the run folder."""
    states: int
    """Bytes on disk of the states that trainings resume from."""
    outputs: int
    """Bytes on disk of the networks' logits, measures and the report."""
    trials: int
    """Bytes on disk of trainings that select a learning rate; deleted when all rates are selected."""

    @property
    def seconds(self) -> float:
        """Seconds of all parts."""
        return sum(seconds for _, seconds in self.parts)

    @property
    def disk(self) -> int:
        """Bytes on disk of the finished run."""
        return self.checkpoints + self.states + self.cache + self.outputs

    @property
    def most_disk(self) -> int:
        """Peak bytes on disk during the run."""
        return max(self.disk, self.trials + self.cache)


@dataclass(frozen=True)
class RecipeCheck(Result):
    """The result of checking a recipe. Values that a problem makes unavailable are None."""

    recipe: str
    problems: tuple[str, ...]
    """Problems that would make the run fail, each in one sentence with the remedy."""
    notes: tuple[str, ...]
    """Warnings that do not prevent the run."""
    data: CheckedData | None = None
    networks: tuple[CheckedNetwork, ...] = ()
    supervisions: tuple[tuple[str, int], ...] = ()
    """Title of each supervision and its number of seeds."""
    estimate: RunEstimate | None = None


@dataclass(frozen=True)
class PlannedWork(Result):
    """A part of a run, with its progress and time."""

    name: str
    seconds: float
    """Estimated seconds of the whole part."""
    seconds_left: float
    measured_from: str
    """Basis of the time estimate."""
    networks: int = 0
    """Number of networks that it trains."""
    finished: int = 0
    """Number of these networks that are finished."""
    epochs: int = 0
    """Epochs of all of its networks together."""
    epochs_done: int = 0


@dataclass(frozen=True)
class RunPlan(Result):
    """Remaining work of `distillens run`, with time, memory and disk space."""

    recipe: str
    folder: str
    begun: bool
    """Whether the folder contains a part of the run already."""
    device: str
    threads: int
    """Threads of each process."""
    workers: int
    """Number of students trained in parallel."""
    work: tuple[PlannedWork, ...]
    seconds: float
    """Seconds of the whole run with these workers."""
    seconds_left: float
    estimate: RunEstimate
    """Estimate for one process that starts from an empty folder."""
    disk_there: int
    """Bytes on disk that the run occupies already."""
    problems: tuple[str, ...] = ()
    """Problems that would make the run fail."""

    @property
    def disk_left(self) -> int:
        """Upper bound on the bytes on disk that are still needed."""
        return max(0, self.estimate.most_disk - self.disk_there)
