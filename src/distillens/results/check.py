"""What `distillens check` and `distillens run --plan` report of a recipe, with their JSON forms."""

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
    """What the teacher's and the student's inputs are normalised with."""


@dataclass(frozen=True)
class CheckedNetwork(Result):
    """The teacher or the student of a recipe."""

    role: str
    model: str
    parameters: int
    origin: str
    """Where its weights come from."""
    epochs: int
    """Epochs it will be trained for; 0 for a given teacher."""
    seconds_per_step: float | None
    """Of training, measured; None where it is not trained."""
    accuracies: tuple[tuple[str, float], ...] = ()
    """Split and share of examples that a given teacher is right on."""


@dataclass(frozen=True)
class RunEstimate(Result):
    """What carrying out a recipe is expected to take."""

    parts: tuple[tuple[str, float], ...]
    """Part of the work and its seconds."""
    device: str
    memory: int
    """Bytes that the process held at most while steps were timed."""
    checkpoints: int
    """Bytes on disk of all checkpoints that are kept."""
    cache: int
    """Bytes on disk of cached teacher logits, at most."""
    free_disk: int
    """Bytes that are free on the disk of the run folder."""
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
        """Bytes on disk at most while the run goes on."""
        return max(self.disk, self.trials + self.cache)


@dataclass(frozen=True)
class RecipeCheck(Result):
    """The result of checking a recipe. What could not be found out because of a problem is None."""

    recipe: str
    problems: tuple[str, ...]
    """Each makes the run fail, in one sentence that says what to do."""
    notes: tuple[str, ...]
    """Facts that a user may want to know; the run works all the same."""
    data: CheckedData | None = None
    networks: tuple[CheckedNetwork, ...] = ()
    supervisions: tuple[tuple[str, int], ...] = ()
    """Title of each supervision and its number of seeds."""
    estimate: RunEstimate | None = None


@dataclass(frozen=True)
class PlannedWork(Result):
    """A part of a run: what is done of it, and the time it takes."""

    name: str
    networks: int
    """How many it trains; 0 where it trains none."""
    finished: int
    """Of these networks."""
    epochs: int
    """Of all of its networks together."""
    epochs_done: int
    seconds: float
    """Of the whole part, estimated."""
    seconds_left: float
    measured_from: str
    """What the time was estimated from."""


@dataclass(frozen=True)
class RunPlan(Result):
    """What `distillens run` would do now, and what it would take."""

    recipe: str
    folder: str
    begun: bool
    """Whether the folder holds a part of the run already."""
    device: str
    threads: int
    """Of a process."""
    workers: int
    """Students trained at once."""
    work: tuple[PlannedWork, ...]
    seconds: float
    """Of the whole run, with the workers."""
    seconds_left: float
    estimate: RunEstimate
    """Of the whole run, as if nothing were done and by one process: time, memory, disk space."""
    disk_there: int
    """Bytes on disk that the run holds already."""
    problems: tuple[str, ...] = ()
    """Each would make the run fail."""

    @property
    def disk_left(self) -> int:
        """Bytes on disk that are still needed, at most."""
        return max(0, self.estimate.most_disk - self.disk_there)
