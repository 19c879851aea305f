"""Results on kernels and on the supervision complexity of targets, as frozen dataclasses.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distillens.results.base import Result

KernelForm = Literal["binary", "class-diagonal", "trace", "full"]


@dataclass(frozen=True)
class ComplexityValue(Result):
    """Supervision complexity of one target array against one Gram.

    ``plain`` is YᵀK⁻¹Y (Def. 1), ``adjusted_star`` eq. 50, ``adjusted`` eq. 49 (None where no
    predictions were given). ``normalised`` and ``normalised_star`` divide them by ‖Y‖₂/√n.
    ``residual`` is the relative residual of the worst solve, ``ridge`` the value added to the diagonal.
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
class ComplexityPoint(Result):
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
class TemperaturePoint(Result):
    """The complexity of the final teacher at one temperature, at one checkpoint of the student."""

    epoch: int
    temperature: float
    value: ComplexityValue


@dataclass(frozen=True)
class Spectrum(Result):
    """Spectrum of the Gram at one checkpoint. For a class-diagonal Gram: over all C blocks."""

    epoch: int
    trace: float
    smallest: float
    largest: float
    condition: float
    effective_rank: float | None = None
    """exp of the entropy of the eigenvalues' shares; None in results of earlier versions."""


@dataclass(frozen=True)
class RiskBound(Result):
    """An upper bound on the risk of a kernel fit, at the best margin of a grid.

    ``value`` is the sum of ``margin_loss``, ``complexity_term``, ``confidence_term`` and, for
    Prop. 5, ``teacher_risk``; it is not cut off at 1. It holds with probability at least 1 − ``delta``,
    unless ``vacuous``.
    """

    theorem: str
    """"Thm. 3", "Thm. 4" or "Prop. 5"."""
    value: float
    vacuous: bool
    """Whether the bound is vacuous: it is 1 or more, or it is not ``covered``."""
    margin: float
    """γ of the grid with the lowest bound."""
    margin_loss: float
    complexity_term: float
    confidence_term: float
    teacher_risk: float | None
    norms: int
    """M₀: the union bound covers the norms 1 … M₀ at this margin."""
    covered: bool
    """Whether the norm √(YᵀK⁻¹Y), rounded up, is at most M₀; otherwise nothing is proved."""
    examples: int
    delta: float
    margins: int
    """Number of margins in the grid, which share ``delta`` evenly."""
    kappa: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetProfile(Result):
    """One target set compared with references on one Gram.

    ``diagonal`` is its adjusted* complexity on the best diagonal kernel, which can only memorise;
    ``random`` that of random targets of its size on this Gram (None for the full form).
    ``energy`` is the share of ‖Y‖² in the top k eigenvectors, k as in the profile's ``ranks``
    (empty where Y is zero). If ``bound`` is None, the profile's notes give the reason.
    """

    name: str
    diagonal: float
    random: float | None
    energy: tuple[float, ...]
    bound: RiskBound | None


@dataclass(frozen=True)
class TeacherKernel(Result):
    """Similarity of the kernels of student and teacher, on the first of the examples.

    ``similarity`` is the mean cosine of products of both full kernels with random vectors
    (eq. 12), with its standard error over ``probes``; ``alignment`` the centred alignment (CKA)
    of the Grams that ``kernel`` names.
    """

    examples: int
    similarity: float
    standard_error: float | None
    probes: int
    kernel: str
    alignment: float


@dataclass(frozen=True)
class GramProfile(Result):
    """Properties of one Gram without its ridge, and of target sets on it.

    ``eigenvalues`` are the k-th largest, k in ``ranks``: powers of two and the last. For a
    class-diagonal Gram they are of all C blocks together.
    """

    epoch: int | None
    """Epoch of the student; None if no training is known."""
    trace: float
    condition: float
    effective_rank: float
    stable_rank: float
    negative: int
    """Number of eigenvalues that are negative because of rounding."""
    ranks: tuple[int, ...]
    eigenvalues: tuple[float, ...]
    targets: tuple[TargetProfile, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComplexityCurves(Result):
    """Complexity over the training of one student."""

    student: str
    seed: int
    split: str
    examples: int
    form: KernelForm
    coding: str
    """Description of the target coding: centred over classes, or one output in [−1, 1]."""
    temperature: float
    random_draws: int
    """Number of draws of random labels that each "random labels" point averages over."""
    points: tuple[ComplexityPoint, ...]
    spectra: tuple[Spectrum, ...]
    notes: tuple[str, ...] = ()
    temperatures: tuple[TemperaturePoint, ...] = ()
    """The final teacher at several temperatures, at the last of the epochs."""
    profile: GramProfile | None = None
    """Profile of the Gram at the last of the epochs."""
    teacher_kernel: TeacherKernel | None = None
    """Similarity at the last of the epochs; None if the teacher's network is not known."""


@dataclass(frozen=True)
class CertifiedComplexity(Result):
    """The complexity of one target set against one kernel, with its interval.

    ``plain`` is YᵀK⁻¹Y (Def. 1), within [``plain_low``, ``plain_high``]; ``adjusted`` eq. 49 (None
    without predictions), ``adjusted_star`` eq. 50, ``normalised`` the former (or, without, the
    latter) divided by the targets' root mean square. ``determined`` is true if the intervals are
    narrow enough for the values to be meaningful. A singular kernel gives infinities.
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
class KernelComplexity(Result):
    """The complexity of target sets against the kernel of one output of a network.

    ``trace`` includes ``ridge``, the value added to the diagonal. For a singular kernel,
    ``uncertified`` has the values on the same Gram with ``with_ridge`` added, without certificate.
    """

    examples: int
    outputs: str
    method: str
    trace: float
    ridge: float
    targets: tuple[CertifiedComplexity, ...]
    with_ridge: float | None
    uncertified: tuple[CertifiedComplexity, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    profile: GramProfile | None = None
    """None if it was not requested, or if no Gram was formed (see the notes)."""
    teacher_kernel: TeacherKernel | None = None
    """None if no teacher was given."""
