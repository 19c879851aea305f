"""What a run found out, in words and pictures: the terminal table and the HTML report."""

from __future__ import annotations

from distillens.report.audit_text import audit_text
from distillens.report.complexity_table import certified_table, curves_table
from distillens.report.costs import cost_table
from distillens.report.lab import lab_json, lab_table, write_lab
from distillens.report.language_table import language_table
from distillens.report.page import render
from distillens.report.table import accuracy_table, markdown_table
from distillens.report.write import write_report
from distillens.report.write_audit import write_audit

__all__ = [
    "accuracy_table",
    "audit_text",
    "certified_table",
    "cost_table",
    "curves_table",
    "lab_json",
    "lab_table",
    "language_table",
    "markdown_table",
    "render",
    "write_audit",
    "write_lab",
    "write_report",
]
