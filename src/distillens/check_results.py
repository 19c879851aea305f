"""What `distillens check` reports of a recipe, with its JSON form."""

from __future__ import annotations

from dataclasses import dataclass

from distillens.json_result import Result


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
    """Bytes on disk of all checkpoints."""
    cache: int
    """Bytes on disk of cached teacher logits, at most."""
    free_disk: int
    """Bytes that are free on the disk of the run folder."""

    @property
    def seconds(self) -> float:
        """Seconds of all parts."""
        return sum(seconds for _, seconds in self.parts)


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
