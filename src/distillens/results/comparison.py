"""The settings table, which compares audits of several runs, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from distillens.results.base import Estimate, Result
from distillens.results.confidence import Verdict


@dataclass(frozen=True)
class SettingSplit(Result):
    """A setting on one split. Each number is a mean over the student's seeds.

    Its interval joins, in quadrature, the mean interval over examples and, from two seeds on,
    Student's t over seeds.
    """

    split: str
    slope_all: Estimate
    slope_low: Estimate
    underfit: Estimate
    net_gain: Estimate
    """Accuracy points of the student minus those of the teacher."""
    p_value: float
    """Largest McNemar p-value over seeds: small only if every seed rejects a gain of 0."""
    verdicts: tuple[Verdict, ...]
    """Verdict of each seed."""


@dataclass(frozen=True)
class Setting(Result):
    """A row of the settings table: a run and a supervision. Accuracies are of the last epoch."""

    run: str
    data: str
    teacher: str
    student: str
    supervision: str
    temperature: float | None
    seeds: tuple[int, ...]
    teacher_accuracy: Estimate
    one_hot_accuracy: Estimate | None
    accuracy: Estimate
    references: tuple[str, ...]
    splits: tuple[SettingSplit, ...]
    teacher_digest: str = ""
    """Digest of the teacher's weights; empty in results of version 0.1."""
    digests: tuple[str, ...] = ()
    """Digests of the weights of the students, in the order of ``seeds``."""


@dataclass(frozen=True)
class Settings(Result):
    """The settings table."""

    schema_version: int
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()
