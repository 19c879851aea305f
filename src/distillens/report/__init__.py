"""What a run found out, in words and pictures: the terminal table and the HTML report."""

from __future__ import annotations

from distillens.report.page import render
from distillens.report.table import accuracy_table, markdown_table

__all__ = ["accuracy_table", "markdown_table", "render"]
