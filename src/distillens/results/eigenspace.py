"""Eigenspace dynamics, as frozen dataclasses. JSON as in `distillens.results`.

Field names are the keys of ``distillens eigenspace --json``. Eigenvectors count from 1, the one of
the largest eigenvalue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distillens.results.base import Estimate, Result

Projected = Literal["weights", "change"]
"""W(t), or W(t) − W(0), the change since the initialisation."""

Decomposition = Literal["exact SVD", "randomised SVD", "exact eigenvectors"]


@dataclass(frozen=True)
class PairBias(Result):
    """Whether the student's bias to the top eigenvector is stronger than the teacher's, for one pair.

    Both are compared at equal components along the top eigenvector, over the range that both reach.
    Numbers are NaN if that range is undecided.
    """

    top: int
    bottom: int
    projected: Projected
    stronger: bool | None
    """Whether the student's bottom component is smaller on average; None if undecided."""
    stronger_at_end: bool | None
    """The same at the largest top component that both reach."""
    teacher_bottom: float
    """The teacher's component along the bottom eigenvector, mean over the common range."""
    student_bottom: float
    below: float
    """Share of the common range over which the student's bottom component is smaller."""
    low: float
    high: float
    """The common range of the top component."""
    undecided: str | None
    """Reason why the pair is undecided, if it is."""


@dataclass(frozen=True)
class StudentBias(Result):
    """The pairs of one student and its teacher."""

    run: str
    teacher_seed: int
    student: str
    seed: int
    axes: Literal["shared", "own"]
    """"shared": one set of eigenvectors for both; "own": each network's inputs of the layer have moved,
    and each is projected on the eigenvectors of its own."""
    teacher_epochs: int
    student_epochs: int
    dimensions: int
    """Dimension of the layer's inputs."""
    decomposition: Decomposition
    residual: float
    """Largest ‖XᵀXv − λv‖/λ of the eigenvectors used."""
    pairs: tuple[PairBias, ...]
    teacher_digest: str = ""
    """Digest of the teacher's weights; empty in results of version 0.1."""
    digest: str = ""
    """Digest of the student's weights; empty in results of version 0.1."""


@dataclass(frozen=True)
class BiasSummary(Result):
    """The share of pairs with a stronger bias, over seeds. Undecided pairs are counted apart."""

    student: str
    projected: Projected
    students: int
    teachers: int
    pairs: int
    """Title of the student."""
    stronger: int
    """Number of pairs over all students."""
    not_stronger: int
    undecided: int
    share: Estimate
    """Mean over teachers of stronger / (stronger + not stronger); one value per teacher. Where there is
    one teacher, over its students."""
    share_at_end: Estimate
    majority: Estimate
    """Share of teachers for which more than half of the decided pairs are stronger, with Wilson's
    interval over teachers, which keeps a width where all agree."""


@dataclass(frozen=True)
class Eigenspace(Result):
    """Result of `distillens eigenspace`."""

    schema_version: int
    layer: str
    split: str
    examples: int
    pair_seed: int
    kernel: Literal["data", "ntk"]
    """Kernel on whose eigenvectors predictions are projected, in the arrays."""
    summaries: tuple[BiasSummary, ...]
    students: tuple[StudentBias, ...]
    notes: tuple[str, ...]
    version: str
    seconds: float
