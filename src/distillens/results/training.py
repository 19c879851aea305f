"""Results of the training of a run: networks, accuracies and costs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from distillens.errors import missing_name
from distillens.results.base import Estimate, Result


@dataclass(frozen=True, order=True)
class NetworkId(Result):
    """The identity of a trained network within its run.

    Two supervisions may have one title in different runs, and a supervision may be called "teacher";
    networks are therefore told apart by this identity and never by their titles.

    Attributes
    ----------
    supervision
        The position of the supervision in the recipe, counted from 0; -1 for the teacher.
    seed
        The seed of the network.
    generation
        The generation of self-distillation, counted from 1; 0 for the last one, and for every network
        that has only one.
    """

    supervision: int
    seed: int
    generation: int = 0

    @property
    def is_teacher(self) -> bool:
        """Whether the network is the teacher."""
        return self.supervision == TEACHER


TEACHER = -1
"""The position of the teacher, which has no supervision of the recipe."""


@dataclass(frozen=True)
class Cell(Result):
    """One trained network: a supervision and a seed.

    ``supervision`` is the title in the recipe, or "teacher"; ``position`` is the one of `NetworkId`.
    Accuracies are shares in [0, 1] on the un-augmented examples at the last epoch.
    """

    supervision: str
    seed: int
    parameters: int
    epochs: int
    seconds: float
    train_accuracy: float
    test_accuracy: float
    test_count: int
    validation_accuracy: float | None
    weights_digest: str
    position: int

    @property
    def id(self) -> NetworkId:
        """The identity of the network."""
        return NetworkId(self.position, self.seed)


@dataclass(frozen=True)
class Trial(Result):
    """One training of the search for a learning rate: a supervision, a rate and the extra seed.

    It was measured on the validation split alone, at the last epoch. Where the training diverged,
    accuracy and loss are None and ``failure`` names the step.
    """

    supervision: str
    seed: int
    learning_rate: float
    epochs: int
    seconds: float
    validation_accuracy: float | None
    validation_loss: float | None
    weights_digest: str
    failure: str = ""


@dataclass(frozen=True)
class TunedRate(Result):
    """The learning rate of a supervision that the validation split selected."""

    supervision: str
    learning_rate: float
    at_edge: bool
    """Whether it is at the edge of the grid, so that a rate beyond the grid may be better."""


@dataclass(frozen=True)
class Tuning(Result):
    """Selection of the learning rates of a study.

    Each supervision has the rate with the highest validation accuracy; among equals, the one with
    the lower validation loss, then the smaller rate.
    """

    seed: int
    """Seed of the trials' initial weights and order of examples; no student has it."""
    grid: tuple[float, ...]
    chosen: tuple[TunedRate, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Cost(Result):
    """Inference cost of a network. Latencies are medians over ``runs`` forward passes.

    ``multiply_adds`` are those of one example, ``weights_bytes`` the size of the safetensors file.
    """

    parameters: int
    multiply_adds: int
    weights_bytes: int
    latency_ms: float
    """Latency of one example."""
    latency_quartiles_ms: tuple[float, float]
    batch: int
    latency_batch_ms: float
    """Latency of ``batch`` examples."""
    latency_batch_quartiles_ms: tuple[float, float]
    runs: int
    threads: int
    device: str


@dataclass(frozen=True)
class NetworkCost(Result):
    """The cost of a study's teacher or student."""

    network: str
    """"teacher" or "student"."""
    model: str
    """The name of the model in the recipe."""
    cost: Cost


@dataclass(frozen=True)
class Row(Result):
    """A row of the accuracy table: a supervision over its seeds.

    ``position`` is that of `NetworkId`: -1 for the teacher.
    """

    position: int
    name: str
    kind: str
    seeds: tuple[int, ...]
    accuracy: Estimate
    deviation: float | None
    """Standard deviation over seeds (n - 1 in the denominator); None for one seed."""
    gain: Estimate | None
    """Accuracy minus the one-hot student's, paired by seed; None for the teacher and one-hot itself."""
    train_accuracy: float
    parameters: int
    seconds: float
    """Mean seconds of training for one network."""
    learning_rate: float | None = None
    """Validation accuracy of the students; None for the teacher and in results of earlier versions."""
    training: dict[str, Any] = field(default_factory=dict)
    """Keys of the student's training that the recipe overrides for this supervision."""
    loss: Estimate | None = None
    """Mean cross-entropy of a test token in nats, of language models; None for classifiers."""


@dataclass(frozen=True)
class Provenance(Result):
    """Provenance of a result."""

    command: str
    started: str
    finished: str
    seconds: float
    versions: dict[str, str]
    machine: str
    data_fingerprint: str
    teacher_digest: str
    normalisation: str = ""
    """Description of the normalisation of inputs; empty in results of earlier versions."""


@dataclass(frozen=True)
class StudyResult(Result):
    """Results of the training of a run. Later measurements are separate records."""

    SCHEMA_VERSION: ClassVar[int] = 2

    schema_version: int
    name: str
    description: str
    loss: str
    classes: int
    train_examples: int
    validation_examples: int
    test_examples: int
    changed_labels: int
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    provenance: Provenance
    notes: tuple[str, ...] = ()
    costs: tuple[NetworkCost, ...] = ()
    """Inference cost of the teacher (if its network is known) and of the student."""
    open_cells: tuple[str, ...] = ()
    """Names of the networks that are not trained yet; empty if the run is finished."""
    tuning: Tuning | None = None
    """Selection of learning rates; None if the recipe sets them."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise missing_name(type(self).__name__, name)


def validation_means(result: StudyResult) -> dict[int, float]:
    """Return the mean validation accuracy over seeds of each supervision, by its position.

    It is empty unless every trained student has been measured on validation examples. Students are
    chosen by these numbers and never by test accuracies.
    """
    found: dict[int, float] = {}
    for row in result.rows:
        if row.position == TEACHER:
            continue
        values = [c.validation_accuracy for c in result.cells if c.position == row.position]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return {}
        found[row.position] = statistics.fmean(known)
    return found
