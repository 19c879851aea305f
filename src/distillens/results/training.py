"""What a training found out: networks, their accuracies and costs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from distillens.results.base import Estimate, Result
from distillens.results.complexity import ComplexityCurves


@dataclass(frozen=True)
class Cell(Result):
    """One trained network: a supervision and a seed.

    ``supervision`` is the name in the recipe, or "teacher". Accuracies are shares in [0, 1] on the
    un-augmented examples at the last epoch.
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


@dataclass(frozen=True)
class Trial(Result):
    """One training of the search for a learning rate: a supervision, a rate and the extra seed.

    It was measured on the validation split alone, at the last epoch. Where the training diverged,
    accuracy and loss are None and ``failure`` says at which step.
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
    """Whether it is the smallest or the largest of the grid, so that a rate beyond may be better."""


@dataclass(frozen=True)
class Tuning(Result):
    """How the learning rates of a study were selected.

    Each supervision has the rate with the highest validation accuracy; among equals, the one with
    the lower validation loss, then the smaller rate.
    """

    seed: int
    """Of the trials' initial weights and order of examples; no student has it."""
    grid: tuple[float, ...]
    chosen: tuple[TunedRate, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Cost(Result):
    """What a network costs where it is used. Latencies are medians over ``runs`` forward passes.

    ``multiply_adds`` are those of one example, ``weights_bytes`` the size of the safetensors file.
    """

    parameters: int
    multiply_adds: int
    weights_bytes: int
    latency_ms: float
    """Of one example."""
    latency_quartiles_ms: tuple[float, float]
    batch: int
    latency_batch_ms: float
    """Of ``batch`` examples."""
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
    """A row of the accuracy table: a supervision over its seeds."""

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
    """Of the students; None for the teacher, and in results of earlier versions."""
    training: dict[str, Any] = field(default_factory=dict)
    """Keys of the student's training that the recipe overrides for this supervision."""


@dataclass(frozen=True)
class Provenance(Result):
    """What a result was made from."""

    command: str
    started: str
    finished: str
    seconds: float
    versions: dict[str, str]
    machine: str
    data_fingerprint: str
    teacher_digest: str
    normalisation: str = ""
    """What inputs are normalised with, in words; empty in results of earlier versions."""


@dataclass(frozen=True)
class StudyResult(Result):
    """The result of a run's training.

    In ``results.json`` of earlier versions there is a key ``deviations``, which is ignored.
    """

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
    complexity: tuple[ComplexityCurves, ...]
    provenance: Provenance
    notes: tuple[str, ...] = ()
    costs: tuple[NetworkCost, ...] = ()
    """What the teacher (where its network is known) and the student cost where they are used."""
    open_cells: tuple[str, ...] = ()
    """Networks that are not trained yet, in words; empty when the run is finished."""
    tuning: Tuning | None = None
    """How learning rates were selected; None where the recipe sets them."""


def validation_means(result: StudyResult) -> dict[str, float]:
    """Return the mean validation accuracy over seeds of each supervision, in the recipe's order.

    It is empty unless every trained student has been measured on validation examples. Students are
    chosen by these numbers and never by test accuracies.
    """
    found: dict[str, float] = {}
    for row in result.rows:
        if row.kind == "teacher":
            continue
        values = [cell.validation_accuracy for cell in result.cells if cell.supervision == row.name]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return {}
        found[row.name] = statistics.fmean(known)
    return found
