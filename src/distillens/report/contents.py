"""The contents of a report: the results of a run and the newest record of each analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from distillens.report.figures.points import Points
from distillens.results.complexity import ComplexityCurves
from distillens.results.confidence import Confidence, Kernels, OverTraining
from distillens.results.training import StudyResult
from distillens.runs.open import Addition, OpenRun
from distillens.runs.records import StoredRecord

T = TypeVar("T")


@dataclass(frozen=True)
class Contents:
    """The contents of a report.

    Attributes
    ----------
    result
        Results of the training.
    complexity
        The curves of the newest record of the analysis "complexity".
    confidence
        The newest record of the analysis "confidence"; None if it was not made.
    points
        For each student of ``confidence`` the arrays of the confidence plot by split.
    over_training, kernels
        The newest records of these analyses.
    additions
        Additions to the run after it had been finished.
    records
        The names of the records that are shown.
    earlier_records
        The names of the other records.
    """

    result: StudyResult
    complexity: tuple[ComplexityCurves, ...] = ()
    confidence: Confidence | None = None
    points: Sequence[Mapping[str, Points]] = ()
    over_training: OverTraining | None = None
    kernels: Kernels | None = None
    additions: tuple[Addition, ...] = ()
    records: tuple[str, ...] = ()
    earlier_records: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: OpenRun) -> Contents:
        """Read the contents of the report of a run.

        Raises
        ------
        RunError
            A record is damaged.
        """
        records = run.records()
        newest = {one.content.analysis: one for one in records}
        curves, confidence = newest.get("complexity"), newest.get("confidence")
        audited = None if confidence is None else confidence.result(Confidence)
        return cls(
            run.result,
            complexity=() if curves is None else (curves.result(ComplexityCurves),),
            confidence=audited,
            points=() if confidence is None or audited is None else _points(confidence, audited),
            over_training=_result(newest.get("over-training"), OverTraining),
            kernels=_result(newest.get("kernels"), Kernels),
            additions=run.additions,
            records=_names(newest.values()),
            earlier_records=_names([one for one in records if one not in newest.values()]),
        )

    def notes(self) -> tuple[str, ...]:
        """Return notes on the run as a whole."""
        return (*self.result.notes, *self._addition_notes(), *self._record_notes())

    def _addition_notes(self) -> list[str]:
        found = []
        names = {row.position: row.name for row in self.result.rows}
        for addition in self.additions:
            students = [
                f"{names.get(one.supervision, one.supervision)}, seed {one.seed}"
                for one in addition.students
            ]
            found.append(
                f"added on {addition.provenance.started[:10]}, after earlier results had been seen: "
                f"{'; '.join(students)}"
            )
        count = sum(addition.more_seeds for addition in self.additions)
        if count:
            share = 100 - 5 / 2**count
            found.append(
                f"intervals have the level {share:g} % because seeds were added: the probabilities that "
                "an interval shown after an addition misses the true value sum to at most 5 %, "
                "however it was decided to add seeds"
            )
        return found

    def _record_notes(self) -> list[str]:
        if not self.earlier_records:
            return []
        return [f"not shown here: the earlier records {', '.join(self.earlier_records)}"]


def _result(record: StoredRecord | None, kind: type[T]) -> T | None:
    return None if record is None else record.result(kind)


def _points(record: StoredRecord, confidence: Confidence) -> list[dict[str, Points]]:
    """Return the points of each student by split; those whose file is missing are left out."""
    return [
        {
            split: record.arrays(name)
            for split, name in student.points.items()
            if (record.folder / f"{name}.npz").is_file()
        }
        for student in confidence.students
    ]


def _names(records: Iterable[StoredRecord]) -> tuple[str, ...]:
    return tuple(one.name for one in records)
