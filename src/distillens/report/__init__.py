"""Reports of results: terminal tables, figures and the HTML report."""

from __future__ import annotations

from distillens.report.lab import lab_json, lab_table
from distillens.report.page import render
from distillens.report.records import record_tables
from distillens.report.tables.accuracy import accuracy_table, markdown_table
from distillens.report.tables.complexity import certified_table, curves_table, temperature_table
from distillens.report.tables.confidence import audit_text, confidence_text
from distillens.report.tables.costs import cost_table
from distillens.report.tables.eigenspace import eigenspace_table
from distillens.report.tables.plan import check_text, plan_text
from distillens.report.tables.profile import profile_table, teacher_kernel_line
from distillens.report.tables.settings import (
    settings_blocks,
    settings_markdown,
    settings_table,
    write_comparison,
)
from distillens.report.write import (
    write_audit,
    write_eigenspace,
    write_figures,
    write_lab,
    write_report,
)

__all__ = [
    "accuracy_table",
    "audit_text",
    "certified_table",
    "check_text",
    "confidence_text",
    "cost_table",
    "curves_table",
    "eigenspace_table",
    "lab_json",
    "lab_table",
    "markdown_table",
    "plan_text",
    "profile_table",
    "record_tables",
    "render",
    "settings_blocks",
    "settings_markdown",
    "settings_table",
    "teacher_kernel_line",
    "temperature_table",
    "write_audit",
    "write_comparison",
    "write_eigenspace",
    "write_figures",
    "write_lab",
    "write_report",
]
