"""Findings of a study of the theory lab, as a table and as JSON."""

from __future__ import annotations

import json

import numpy as np
from rich.table import Table

from distillens.results.figure import Shown


def lab_table(shown: Shown) -> Table:
    """Return the findings as a table for the terminal."""
    table = Table(title=shown.name, title_justify="left", box=None, pad_edge=False)
    table.add_column("finding")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", style="dim")
    for finding in shown.findings:
        value = finding.value
        text = f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
        table.add_row(finding.name, text, finding.meaning)
    return table


def lab_json(shown: Shown) -> str:
    """Return settings and findings as JSON: ``findings`` maps each name to its value.

    A value that is not finite is written as null, which JSON has instead.
    """
    findings = {
        finding.name: finding.value if np.isfinite(finding.value) else None
        for finding in shown.findings
    }
    content = {
        "study": shown.name,
        "source": shown.source,
        "settings": dict(shown.settings),
        "findings": findings,
        "versions": {"numpy": np.__version__},
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
