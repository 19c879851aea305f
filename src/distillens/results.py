"""Results as frozen dataclasses and their JSON. Nothing here needs torch.

Shapes: N examples, C classes. Infinite values are written as the JSON strings "Infinity" and "NaN".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from distillens.errors import RunError

SCHEMA = 1

WRITE_AGAIN = "delete it and run the recipe again with the same --out"
"""What to do about a damaged file of a run that the run can write again."""

T = TypeVar("T")


class _Result:
    """Base of all results: infinities survive the way through JSON."""

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="strings")


KernelForm = Literal["binary", "class-diagonal", "trace", "full"]


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


@dataclass(frozen=True)
class ComplexityValue(_Result):
    """Supervision complexity of one target array against one Gram.

    ``plain`` is YᵀK⁻¹Y (Def. 1), ``adjusted_star`` eq. 50, ``adjusted`` eq. 49 (None where no
    predictions were given). ``normalised`` and ``normalised_star`` divide them by ‖Y‖₂/√n.
    ``residual`` is the relative residual of the worst solve, ``ridge`` what was added to the diagonal.
    A singular K gives infinities.
    """

    plain: float
    adjusted: float | None
    adjusted_star: float
    normalised: float | None
    normalised_star: float
    target_size: float
    """‖Y‖₂/√n."""
    ridge: float
    residual: float


@dataclass(frozen=True)
class ComplexityPoint(_Result):
    """The complexity of one target set at one checkpoint of the student."""

    epoch: int
    targets: str
    """"labels", "random labels", "final teacher" or "online teacher"."""
    value: ComplexityValue
    gradient: float | None
    """Ours: eq. 49 with the gradient residual Y − σ(f/τ), for students trained with cross-entropy."""
    teacher_epoch: int | None
    """The teacher's epoch that the targets come from."""


@dataclass(frozen=True)
class TemperaturePoint(_Result):
    """The complexity of the final teacher at one temperature, at one checkpoint of the student."""

    epoch: int
    temperature: float
    value: ComplexityValue


@dataclass(frozen=True)
class Spectrum(_Result):
    """What the Gram at one checkpoint looks like. For a class-diagonal Gram: over all C blocks."""

    epoch: int
    trace: float
    smallest: float
    largest: float
    condition: float


@dataclass(frozen=True)
class ComplexityCurves(_Result):
    """Complexity over the training of one student."""

    student: str
    seed: int
    split: str
    examples: int
    form: KernelForm
    coding: str
    """How targets were coded, in words: centred over classes, or one output in [−1, 1]."""
    temperature: float
    random_draws: int
    """Draws of random labels behind each "random labels" point, whose values are means over draws."""
    points: tuple[ComplexityPoint, ...]
    spectra: tuple[Spectrum, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    temperatures: tuple[TemperaturePoint, ...] = ()
    """The final teacher at several temperatures, at the last of the epochs."""


@dataclass(frozen=True)
class RiskBound(_Result):
    """An upper bound on the risk of a kernel fit, at the best margin of a grid.

    ``value`` is the sum of ``margin_loss``, ``complexity_term``, ``confidence_term`` and, for
    Prop. 5, ``teacher_risk``; it is not cut off at 1. It holds with probability at least 1 − ``delta``,
    unless ``vacuous``.
    """

    theorem: str
    """"Thm. 3", "Thm. 4" or "Prop. 5"."""
    value: float
    vacuous: bool
    """The bound says nothing: it is 1 or more, or it is not ``covered``."""
    margin: float
    """γ, the one of the grid with the lowest bound."""
    margin_loss: float
    complexity_term: float
    confidence_term: float
    teacher_risk: float | None
    norms: int
    """M₀: the norms 1 … M₀ that the union bound covers at this margin."""
    covered: bool
    """The norm √(YᵀK⁻¹Y), rounded up, is at most M₀; where it is not, nothing is proved."""
    examples: int
    delta: float
    margins: int
    """Margins in the grid, which share ``delta`` evenly."""
    kappa: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CertifiedComplexity(_Result):
    """The complexity of one target set against one kernel, with its interval.

    ``plain`` is YᵀK⁻¹Y (Def. 1), within [``plain_low``, ``plain_high``]; ``adjusted`` eq. 49 (None
    without predictions), ``adjusted_star`` eq. 50, ``normalised`` the former (or, without, the
    latter) divided by the targets' root mean square. ``determined`` says whether the intervals are
    narrow enough for the values to mean something. A singular kernel gives infinities.
    """

    name: str
    plain: float
    plain_low: float
    plain_high: float
    adjusted: float | None
    adjusted_star: float
    normalised: float
    target_size: float
    determined: bool


@dataclass(frozen=True)
class KernelComplexity(_Result):
    """The complexity of target sets against the kernel of one output of a network.

    ``trace`` includes ``ridge``, what was added to the diagonal. For a singular kernel ``beside``
    has the values with ``beside_ridge`` added.
    """

    examples: int
    outputs: str
    method: str
    trace: float
    ridge: float
    targets: tuple[CertifiedComplexity, ...]
    beside_ridge: float | None
    beside: tuple[CertifiedComplexity, ...]
    seconds: float
    notes: tuple[str, ...] = ()


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
    ``(inputs - mean) / deviation``, channel by channel.
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
