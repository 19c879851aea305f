"""Records of analyses as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import RenderableType

from distillens.report.tables.complexity import curves_table, temperature_table
from distillens.report.tables.confidence import confidence_text, kernels_text, over_training_text
from distillens.report.tables.profile import profile_table, teacher_kernel_line
from distillens.results.complexity import ComplexityCurves
from distillens.results.confidence import Confidence, Kernels, OverTraining
from distillens.runs.records import StoredRecord


def record_tables(record: StoredRecord) -> Sequence[RenderableType] | None:
    """Return a record as tables and paragraphs; None if the report has no tables for the analysis.

    Raises
    ------
    RunError
        The record is damaged.
    """
    make = _TABLES.get(record.content.analysis)
    return None if make is None else make(record)


def _complexity(record: StoredRecord) -> Sequence[RenderableType]:
    curves = record.result(ComplexityCurves)
    found: list[RenderableType] = [curves_table(curves)]
    if curves.temperatures:
        found.append(temperature_table(curves))
    if curves.profile is not None:
        found.append(profile_table(curves.profile))
    if curves.teacher_kernel is not None:
        found.append(teacher_kernel_line(curves.teacher_kernel))
    return found


_TABLES: Mapping[str, Callable[[StoredRecord], Sequence[RenderableType]]] = {
    "complexity": _complexity,
    "confidence": lambda record: [confidence_text(record.result(Confidence))],
    "over-training": lambda record: [over_training_text(record.result(OverTraining))],
    "kernels": lambda record: [kernels_text(record.result(Kernels))],
}
