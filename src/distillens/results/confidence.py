"""Results of audits of two classifiers, as frozen dataclasses. JSON as in `distillens.results`.

Field names are the keys of ``distillens audit --json``. A student equal to its teacher has, in each
of ``splits``, ``exaggeration.slope_all.ordinary.value`` = 1, ``ledger.departures`` = 0 and
``fidelity.identical`` = true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distillens.results.base import Estimate, Interval, Result

LISTED_INPUTS = "listed-inputs"
"""Name of the arrays of a record that hold the inputs of listed departures."""

Verdict = Literal[
    "yes",
    "no more than a reference",
    "undecided",
    "less confident throughout",
    "no",
    "too few examples",
]


@dataclass(frozen=True)
class KindRead(Result):
    """How the outputs of a role were interpreted."""

    role: str
    """"teacher", "student", "one-hot student" or "other teacher"."""
    split: str
    kind: Literal["logits", "probabilities"]
    how: str
    """"stated", or "detected: " with the reason."""


@dataclass(frozen=True)
class ReferenceSlope(Result):
    """The slope of a reference on the same x, and how much steeper the student's is."""

    name: str
    ordinary: Estimate
    robust: Estimate
    steeper: Estimate
    """The student's ordinary slope minus the reference's, with one resample for both."""
    steeper_robust: Estimate


@dataclass(frozen=True)
class PartSlope(Result):
    """Slope of y = φ(p_student[k]) on x = φ(p_teacher[k]) on a part of the points.

    ``ordinary`` is least squares, ``robust`` Huber's estimate (k = 1.345, scale by the median
    absolute residual). NaN where the points define no slope.
    """

    part: Literal["all", "low", "high"]
    points: int
    ordinary: Estimate
    robust: Estimate
    references: tuple[ReferenceSlope, ...]
    verdict: Verdict
    """Whether the slope is above 1 and above that of every reference."""


@dataclass(frozen=True)
class ReferenceShare(Result):
    """The underfit share of a reference, and how much larger the student's is."""

    name: str
    share: Estimate
    larger: Estimate


@dataclass(frozen=True)
class Underfit(Result):
    """Share of the low-confidence points at which the student is less confident (y < x)."""

    points: int
    share: Estimate
    references: tuple[ReferenceShare, ...]
    verdict: Verdict
    """Whether the share is above one half, above that of the high part and of every reference."""
    beyond_high: Estimate | None = None
    """Share minus the same share of the high part; None if there are no points,
    and in audits of earlier versions."""


@dataclass(frozen=True)
class MislabelledPlace(Result):
    """Position of the mislabelled examples in the confidence plot, compared with the others."""

    examples: int
    low_confidence_share: Estimate
    """Share of the mislabelled with x below the threshold; one half of all points are."""
    underfit_share: Estimate
    """Share of the mislabelled with y < x, at any confidence."""
    underfit_share_of_others: Estimate
    more_underfit: Estimate
    """Difference of the two shares."""


@dataclass(frozen=True)
class Exaggeration(Result):
    """Whether the student exaggerates the teacher's confidence."""

    threshold: float
    """The median of x, which separates the low part from the high one."""
    slope_all: PartSlope
    slope_low: PartSlope
    slope_high: PartSlope
    underfit: Underfit
    verdict: Verdict
    """"yes" if one of the slopes or the underfit share shows it."""
    reading: str
    """The verdict as a sentence."""
    mislabelled: MislabelledPlace | None
    clipped: int
    """Points with a probability of exactly 0 or 1, whose infinite φ was placed at the largest
    finite one (at least 16.1)."""


@dataclass(frozen=True)
class Infinite(Result):
    """Examples at which a number is infinite, and the mean over the others."""

    examples: int
    others: Estimate
    """NaN if there are no others."""


@dataclass(frozen=True)
class Fidelity(Result):
    """Fidelity of the student to the teacher at τ = 1.

    Divergences are means, in nats. One is infinite where a network gives a probability of exactly 0 to a
    class that the other does not, and its mean is then infinite too.
    """

    identical: bool
    """Whether every example has the same top class and no difference in any probability."""
    agreement: Estimate
    """Share of examples with the same top class."""
    kl_teacher_student: Estimate
    kl_student_teacher: Estimate
    total_variation: Estimate
    """Mean of ½ Σ|p − q|, in [0, 1]."""
    infinite_kl_teacher_student: Infinite | None = None
    """Examples at which the divergence is infinite; None if there are none."""
    infinite_kl_student_teacher: Infinite | None = None


@dataclass(frozen=True)
class ReliabilityBin(Result):
    """Examples with a confidence above ``low`` and up to ``high``. Empty bins are left out."""

    low: float
    high: float
    examples: int
    confidence: float
    accuracy: Estimate


@dataclass(frozen=True)
class Calibration(Result):
    """Accuracy and calibration of one network. Confidence is the probability of the top class."""

    who: Literal["teacher", "student"]
    accuracy: Estimate
    """Accuracy on the true labels where they are known."""
    confidence: float
    ece: float
    """Σ over equally wide bins of share · |accuracy − confidence|."""
    ece_if_calibrated: Interval
    """95 % range of the ECE of a calibrated classifier with these confidences; it excludes 0."""
    adaptive_ece: float
    """The same over bins with equally many examples."""
    adaptive_ece_if_calibrated: Interval
    brier: Estimate
    """Mean of Σ_c (p_c − 1[c = label])², in [0, 2]."""
    nll: Estimate
    """Mean of −ln p[label], in nats; infinite where a label has a probability of exactly 0."""
    reliability: tuple[ReliabilityBin, ...]
    infinite_nll: Infinite | None = None
    """Examples at which −ln p[label] is infinite; None if there are none."""
    accuracy_on_given_labels: Estimate | None = None
    """Accuracy on the given labels; None if none of them is known to be wrong."""


@dataclass(frozen=True)
class LedgerEntry(Result):
    """Departures from the teacher (another top class) among some of the examples."""

    group: str
    examples: int
    departures: int
    gained: int
    """Departures at which the student is right and the teacher wrong."""
    lost: int
    """Departures at which the teacher is right and the student wrong."""
    both_wrong: int
    net_gain: Estimate
    """Accuracy points (of 100) that the student has over the teacher: 100 (gained − lost) / examples."""
    p_value: float
    """McNemar's exact test of gained against lost, two-sided."""


@dataclass(frozen=True)
class InformativeDeparture(Result):
    """One departure. ``moved`` is the probability moved from the teacher's class to the student's."""

    row: int
    index: int | str | None
    outcome: Literal["gained", "lost", "both wrong"]
    label: int
    teacher_class: int
    student_class: int
    teacher_on_its_class: float
    teacher_on_student_class: float
    student_on_its_class: float
    student_on_teacher_class: float
    moved: float
    """(p_te[k_te] − p_st[k_te]) + (p_st[k_st] − p_te[k_st]), in [0, 2]; the largest come first."""
    mislabelled: bool | None
    text: str | None
    """The input, where inputs are text or single numbers."""


@dataclass(frozen=True)
class Agreement(Result):
    """Counts of examples by which network predicts the label; the four add up to N.

    The labels are the true ones where they are known.
    """

    both: int
    only_student: int
    only_teacher: int
    neither: int


@dataclass(frozen=True)
class Ledger(Result):
    """Departures of the student from its teacher, and their net gain.

    Predictions are judged by the true labels where they are known.
    """

    departures: int
    all: LedgerEntry
    right: Agreement
    by_class: tuple[LedgerEntry, ...]
    """By true class; classes without examples are left out."""
    by_confidence: tuple[LedgerEntry, ...]
    """By fifths of the teacher's confidence, lowest first; fewer where confidences tie."""
    by_mislabelled: tuple[LedgerEntry, ...]
    """Empty where no mask of mislabelled examples was given."""
    telling: tuple[InformativeDeparture, ...]


@dataclass(frozen=True)
class DissectedPart(Result):
    """Some of the points of the confidence plot: by who is right, and by mislabelled or not."""

    who: Literal["both right", "only the student", "only the teacher", "neither"]
    mislabelled: bool | None
    """None if that is not known."""
    examples: int
    low_confidence_share: Estimate
    """Share of these points in the low part; one half of all points are."""
    underfit_share: Estimate
    """Share of these points with y < x, at any confidence."""


@dataclass(frozen=True)
class SplitAudit(Result):
    """The audit of one split."""

    split: str
    examples: int
    exaggeration: Exaggeration
    fidelity: Fidelity
    calibration: tuple[Calibration, ...]
    """The teacher's and the student's."""
    ledger: Ledger
    dissection: tuple[DissectedPart, ...] = ()
    """The confidence plot by who is right; parts without examples are left out."""
    notes: tuple[str, ...] = ()
    majority: float | None = None
    """Share of the most frequent true class; None in audits of earlier versions."""


@dataclass(frozen=True)
class Audit(Result):
    """The audit of a student against its teacher."""

    schema_version: int
    classes: int
    kinds: tuple[KindRead, ...]
    splits: tuple[SplitAudit, ...]
    resamples: int
    bootstrap_seed: int
    version: str
    seconds: float
    warnings: tuple[str, ...] = ()
    """Networks whose accuracy is not above that of always answering the most frequent class."""


@dataclass(frozen=True)
class TrajectoryPoint(Result):
    """A student at one of its checkpoints against the *final* teacher, on some examples of a split.

    Slopes are ordinary, of y on x = φ(p_teacher[k]) with k the final teacher's top class, and the low
    part lies below the median of x: x and the parts are the same at every checkpoint.
    """

    epoch: int
    split: str
    slope_all: Estimate
    slope_low: Estimate
    slope_high: Estimate
    underfit: Estimate
    """Share of the low part at which the student is less confident than the teacher."""
    agreement: Estimate
    accuracy: Estimate
    net_gain: Estimate
    """As `LedgerEntry.net_gain`."""
    mislabelled_right: Estimate | None
    """Share of the mislabelled for which the student predicts the true class; None if none is known."""
    mislabelled_given: Estimate | None
    """Share of the mislabelled for which it predicts the wrong class that it was given."""


@dataclass(frozen=True)
class Switch(Result):
    """Period in which one supervision replaced another; begin and end are equal for a hard switch."""

    before: str
    after: str
    begins: float
    """In epochs of the student; 2.5 is the middle of the third."""
    ends: float


@dataclass(frozen=True)
class SwitchChange(Result):
    """Change of a quantity of `TrajectoryPoint` at a switch; differences are paired by example."""

    split: str
    quantity: str
    before: float
    """Value at the last checkpoint before the switch."""
    soon: Estimate
    """Its change up to the first checkpoint after the switch."""
    last: Estimate
    """Its change up to the last checkpoint."""
    direction: Literal["rose", "fell", "no clear change"]
    """Of ``last``."""


@dataclass(frozen=True)
class StudentAudit(Result):
    """The audit of one student of a run."""

    student: str
    """The supervision's name in the recipe."""
    kind: str
    seed: int | None
    """None for an audit of arrays."""
    audit: Audit
    notes: tuple[str, ...] = ()
    points: dict[str, str] = field(default_factory=dict)
    """Names of the npz files of the record with the plotted points, by split; empty outside a run."""


@dataclass(frozen=True)
class Confidence(Result):
    """The confidence analysis of a run: the audits of its students on train and test."""

    schema_version: int
    other_teacher: str | None
    """Name of the run whose teacher of another seed served as a reference."""
    students: tuple[StudentAudit, ...]
    notes: tuple[str, ...] = ()
    """Students that could not be audited, with the reasons."""


@dataclass(frozen=True)
class StudentOverTraining(Result):
    """The checkpoints of one student, compared with the final teacher."""

    student: str
    kind: str
    seed: int
    examples: dict[str, int]
    """Number of examples by split, sampled at random if the split has more."""
    points: tuple[TrajectoryPoint, ...]
    switch: Switch | None
    changes: tuple[SwitchChange, ...]
    """Empty without a switch."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OverTraining(Result):
    """The over-training analysis of a run: every checkpoint of its students."""

    schema_version: int
    students: tuple[StudentOverTraining, ...]


@dataclass(frozen=True)
class KernelLikeness(Result):
    """Similarity of the tangent kernels of a student and its teacher, at their last epochs."""

    who: Literal["student", "one-hot student"]
    split: str
    examples: int
    ntk_similarity: Estimate
    """Mean cosine of the products of both kernels with random vectors, interval over ``probes``."""
    centred_alignment: Estimate
    """CKA of the full kernels; on few examples it is far above 0 even for unrelated networks."""
    probes: int


@dataclass(frozen=True)
class StudentKernels(Result):
    """The kernels of one student, and of the student trained on labels with the same seed."""

    student: str
    kind: str
    seed: int
    likenesses: tuple[KernelLikeness, ...]


@dataclass(frozen=True)
class Kernels(Result):
    """The kernel analysis of a run: similarity of the students' kernels to their teacher's."""

    schema_version: int
    students: tuple[StudentKernels, ...]
    """Empty if the teacher is known by its logits alone."""
    notes: tuple[str, ...] = ()
