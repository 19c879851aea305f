"""The settings table: what audits of many runs say side by side, as frozen dataclasses."""

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
    """Accuracy points of the student over the teacher."""
    p_value: float
    """The largest of the seeds' McNemar p: small only where every seed speaks against no gain."""
    verdicts: tuple[Verdict, ...]
    """Of each seed."""


@dataclass(frozen=True)
class Setting(Result):
    """A line of the settings table: a run and a supervision. Accuracies are of the last epoch."""

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


@dataclass(frozen=True)
class Settings(Result):
    """The settings table."""

    schema_version: int
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()
