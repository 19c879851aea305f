"""The contents of a report: the results of a run and the newest record of each analysis."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distillens.errors import RunError
from distillens.report.figures.points import Points
from distillens.results.complexity import ComplexityCurves
from distillens.results.confidence import LISTED_INPUTS, Confidence, Kernels, OverTraining
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
        The newest measurement of each student by the analysis "confidence"; None if there is none.
    points
        For each student of ``confidence`` the arrays of the confidence plot by split.
    over_training, kernels
        The newest measurement of each student by these analyses.
    additions
        Additions to the run after it had been finished.
    records
        The names of the records that are shown.
    earlier_records
        The names of the other records.
    run
        The run itself; None for contents that were made without a folder.
    pictures, sentences
        Inputs of listed examples by split and row, as data URLs of PNGs or as text.
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
    run: OpenRun | None = None
    pictures: Mapping[tuple[str, int], str] = field(default_factory=dict)
    sentences: Mapping[tuple[str, int], str] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the predicted classes; empty if they are not known.

        The classes of a language model are tokens, which are not those that its data name.
        """
        names = () if self.run is None else tuple(map(str, self.run.data.get("classes", ())))
        return names if len(names) == self.result.classes else ()

    @classmethod
    def of(cls, run: OpenRun) -> Contents:
        """Read the contents of the report of a run.

        Raises
        ------
        RunError
            A record is damaged.
        """
        records = run.records()
        curves = [one for one in records if one.content.analysis == "complexity"][-1:]
        confidence, of_confidence = _newest_of_each(records, "confidence", Confidence)
        over_training, of_checkpoints = _newest_of_each(records, "over-training", OverTraining)
        kernels, of_kernels = _newest_of_each(records, "kernels", Kernels)
        others = {one.content.analysis: one for one in records}
        shown = [*curves, *of_confidence, *of_checkpoints, *of_kernels]
        shown += [one for name, one in others.items() if name not in _KNOWN]
        names = {one.name for one in shown}
        return cls(
            run.result,
            complexity=tuple(one.result(ComplexityCurves) for one in curves),
            confidence=confidence,
            points=_points(confidence, of_confidence),
            over_training=over_training,
            kernels=kernels,
            additions=run.additions,
            records=tuple(one.name for one in records if one.name in names),
            earlier_records=tuple(one.name for one in records if one.name not in names),
            run=run,
            pictures=_listed(of_confidence, "pictures", _data_url),
            sentences=_listed(of_confidence, "sentences", str),
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


_KNOWN = ("complexity", "confidence", "over-training", "kernels")


def _newest_of_each(
    records: Sequence[StoredRecord], analysis: str, kind: type[T]
) -> tuple[T | None, list[StoredRecord]]:
    """Join the records of an analysis: the newest result of each student, and its record."""
    results: list[tuple[StoredRecord, Any]] = [
        (one, one.result(kind)) for one in records if one.content.analysis == analysis
    ]
    if not results:
        return None, []
    newest = {
        (student.student, student.seed): (student, record)
        for record, result in results
        for student in result.students
    }
    used = {record.name for _, record in newest.values()}
    notes = dict.fromkeys(
        note
        for record, result in results
        if record.name in used or record is results[-1][0]
        for note in getattr(result, "notes", ())
    )
    last = results[-1][1]
    more = {"notes": tuple(notes)} if hasattr(last, "notes") else {}
    joined = replace(last, students=tuple(student for student, _ in newest.values()), **more)
    sources = [record for _, record in newest.values()]
    return joined, sources or [results[-1][0]]


def _points(
    confidence: Confidence | None, records: Sequence[StoredRecord]
) -> list[dict[str, Points]]:
    """Return the points of each student by split; those whose file is missing are left out."""
    pairs = zip(() if confidence is None else confidence.students, records, strict=False)
    return [
        {split: record.arrays(name) for split, name in student.points.items() if record.has(name)}
        for student, record in pairs
    ]


def _listed(
    records: Sequence[StoredRecord], kind: str, written: Callable[[Any], str]
) -> dict[tuple[str, int], str]:
    """Return the recorded inputs of one kind by split and row."""
    found = {}
    for record in {one.name: one for one in records}.values():
        arrays = record.arrays(LISTED_INPUTS) if record.has(LISTED_INPUTS) else {}
        for name, inputs in arrays.items():
            split, _, ending = name.rpartition("-")
            if ending != kind:
                continue
            rows = arrays.get(f"{split}-rows")
            pictures = inputs.dtype == np.uint8 and inputs.ndim == 4 and inputs.shape[3] in (1, 3)
            fits = pictures if kind == "pictures" else inputs.ndim == 1
            if rows is None or rows.shape != inputs.shape[:1] or rows.dtype.kind != "i" or not fits:
                raise RunError(
                    f"{record.folder}: the array {name!r} is {inputs.dtype} of shape {inputs.shape} and "
                    f"does not hold listed {kind}; delete the record and measure again"
                )
            found |= {
                (split, row): written(one) for row, one in zip(rows.tolist(), inputs, strict=True)
            }
    return found


def _data_url(pixels_HWC: NDArray[np.uint8]) -> str:
    from PIL import Image

    memory = io.BytesIO()
    grey = pixels_HWC.shape[2] == 1
    Image.fromarray(pixels_HWC[..., 0] if grey else pixels_HWC).save(memory, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(memory.getvalue()).decode()}"
