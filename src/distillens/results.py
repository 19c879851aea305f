"""Results as frozen dataclasses and their JSON. Nothing here needs torch.

Shapes: N examples, C classes. Infinite values are written as the JSON strings "Infinity" and "NaN".
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from distillens.complexity_results import CertifiedComplexity as CertifiedComplexity
from distillens.complexity_results import ComplexityCurves as ComplexityCurves
from distillens.complexity_results import ComplexityPoint as ComplexityPoint
from distillens.complexity_results import ComplexityValue as ComplexityValue
from distillens.complexity_results import GramProfile as GramProfile
from distillens.complexity_results import KernelComplexity as KernelComplexity
from distillens.complexity_results import KernelForm as KernelForm
from distillens.complexity_results import RiskBound as RiskBound
from distillens.complexity_results import Spectrum as Spectrum
from distillens.complexity_results import TargetProfile as TargetProfile
from distillens.complexity_results import TeacherKernel as TeacherKernel
from distillens.complexity_results import TemperaturePoint as TemperaturePoint
from distillens.errors import RunError
from distillens.json_result import Result as _Result

SCHEMA = 1

WRITE_AGAIN = "delete it and run the recipe again with the same --out"
"""What to do about a damaged file of a run that the run can write again."""

T = TypeVar("T")


@dataclass(frozen=True)
class Interval(_Result):
    """An interval with its level (0.95 = 95 %) and the words for how it was made."""

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True)
class Estimate(_Result):
    """A number with its interval. ``interval`` is None where too few points define none."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class Cell(_Result):
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
class Trial(_Result):
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
class TunedRate(_Result):
    """The learning rate of a supervision that the validation split selected."""

    supervision: str
    learning_rate: float
    at_edge: bool
    """Whether it is the smallest or the largest of the grid, so that a rate beyond may be better."""


@dataclass(frozen=True)
class Tuning(_Result):
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
class Cost(_Result):
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
class NetworkCost(_Result):
    """The cost of a study's teacher or student."""

    network: str
    """"teacher" or "student"."""
    model: str
    """The name of the model in the recipe."""
    cost: Cost


@dataclass(frozen=True)
class Row(_Result):
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
class Agreement(_Result):
    """Who is right, as counts of N examples; the four add up to N."""

    both: int
    only_student: int
    only_teacher: int
    neither: int


@dataclass(frozen=True)
class Deviation(_Result):
    """Teacher against student confidence on one split.

    Slopes are of y = φ(p_student[k]) on x = φ(p_teacher[k]), k the teacher's top class, fitted on all
    points and on those with x below and above ``threshold`` (the median of x). Above 1 the student
    exaggerates the teacher's confidence.
    """

    student: str
    seed: int
    split: str
    examples: int
    slope: Estimate
    slope_low: Estimate
    slope_high: Estimate
    threshold: float
    underfit_share: Estimate
    """Share of the low-confidence points at which the student is less sure than the teacher (y < x)."""
    top_agreement: float
    """Share of examples with the same top class."""
    kl: float
    """Mean KL(teacher ‖ student) at τ = 1, in nats."""
    right: Agreement
    clipped: int
    """Points whose probability had to be clipped before φ."""
    points: str | None = None
    """Run-relative path of the npz that holds the plotted points (x, y, who)."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provenance(_Result):
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
class ExportedFile(_Result):
    """A file of an exported network, and what it said once it was read back.

    ``difference`` is the largest difference of an output from the network's that was exported, as a
    share of the largest output (of 1 where that is smaller); ``stored_difference`` the same from the
    logits that the run stored, None where the run's data were not at hand.
    """

    format: str
    name: str
    size: int
    digest: str
    difference: float
    stored_difference: float | None


@dataclass(frozen=True)
class Export(_Result):
    """What an exported network is and how it is used: the ``model.json`` beside its files.

    ``input_shape`` is that of one input. Programs take float32 inputs in the unit that ``inputs``
    names and normalise them; the network whose weights the safetensors file holds takes
    ``(inputs - mean) / deviation``, channel by channel. Of a network of text all take int64 tokens
    of the ``tokenizers``, which lie beside.
    """

    schema_version: int
    study: str
    student: str
    seed: int
    epoch: int
    chosen_by: str
    model: dict[str, Any]
    """The model's part of the recipe."""
    input_shape: tuple[int, ...]
    inputs: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: tuple[str, ...]
    outputs: str
    weights_digest: str
    """SHA-256 of the run's checkpoint."""
    tolerance: float
    stored_tolerance: float
    files: tuple[ExportedFile, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    vocabularies: tuple[int, ...] = ()
    """Of text: how many tokens each tokenizer of the run has."""
    tokenizers: tuple[str, ...] = ()
    """Of text: the files of those that the inputs are made with, in the order of their rows."""
    tokenizer_digests: tuple[str, ...] = ()
    """SHA-256 of each."""


@dataclass(frozen=True)
class StudyResult(_Result):
    """All that a run found out."""

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
    deviations: tuple[Deviation, ...]
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


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_json(result: object) -> str:
    """Return the JSON text of a result (any dataclass of this module)."""
    return _adapter(type(result)).dump_json(result, indent=1).decode() + "\n"


def from_json(kind: type[T], text: str | bytes, where: str, advice: str = WRITE_AGAIN) -> T:
    """Read a result of a known kind back; ``advice`` tells how to get it back if it is damaged.

    Raises
    ------
    RunError
        The text is damaged, or was written by a version with another schema.
    """
    try:
        result = _adapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the text"
        raise RunError(
            f"{where} is not a {kind.__name__}: {place}: {first['msg']}; {advice}"
        ) from None
    version = getattr(result, "schema_version", SCHEMA)
    if version != SCHEMA:
        raise RunError(f"{where} has schema version {version}, this version reads {SCHEMA}")
    return result
