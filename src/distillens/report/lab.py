"""The files of a study of the theory lab: numbers as JSON, arrays as npz, a picture as SVG and PNG."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from rich.table import Table

from distillens.errors import RunError
from distillens.files.atomic import write_atomically
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


def write_lab(shown: Shown, folder: Path) -> tuple[Path, ...]:
    """Write ``<study>.json``, ``.npz``, ``.svg`` and ``.png`` into a folder and return their paths.

    Raises
    ------
    RunError
        The folder is a file, or cannot be written.
    """
    # matplotlib takes a second to import; only who draws should wait for it.
    from distillens.report.backends.draw import png_bytes, svg_bytes

    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give a folder for the study's files with --out")
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, **shown.arrays)
    contents: dict[str, bytes | str] = {
        "json": lab_json(shown),
        "npz": arrays.getvalue(),
        "svg": svg_bytes(shown.picture),
        "png": png_bytes(shown.picture),
    }
    paths = []
    for ending, content in contents.items():
        path = folder / f"{shown.name}.{ending}"
        write_atomically(path, content)
        paths.append(path)
    return tuple(paths)
