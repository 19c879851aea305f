"""Write an audit into a folder: numbers, points, a page, and figures as SVG and PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillens.files.atomic import write_atomically
from distillens.report.figures.confidence import confidence_picture
from distillens.report.sections.confidence import audit_page
from distillens.results.base import SCHEMA, to_json
from distillens.results.confidence import Audit, Confidence, StudentAudit
from distillens.results.figure import Picture

Arrays = Mapping[str, NDArray]


def write_audit(audit: Audit, points: Mapping[str, Arrays], folder: Path) -> list[Path]:
    """Write the audit of two classifiers; return the paths.

    They are ``audit.json``, ``audit.html``, for each split ``points-<split>.npz`` (x, y, who, and
    mislabelled if it is known), and ``confidence.svg`` and ``.png``.

    Raises
    ------
    RunError
        The folder cannot be written.
    """
    student = StudentAudit("student", "arrays", None, audit)
    found = Confidence(SCHEMA, None, (student,))
    written = _Written(folder)
    written.add("audit.json", to_json(audit))
    written.student("", student, points)
    written.add("audit.html", audit_page("Student against teacher", found, [points]))
    return written.paths


class _Written:
    """The files of a folder, under names that differ."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.paths: list[Path] = []

    def add(self, name: str, content: bytes | str) -> None:
        path = self._folder / name
        write_atomically(path, content)
        self.paths.append(path)

    def points(self, stem: str, points: Mapping[str, Arrays]) -> None:
        for place, (split, arrays) in enumerate(points.items()):
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", split).strip("-.") or str(place)
            if self._folder / f"{stem}-{name}.npz" in self.paths:
                name = f"{name}-{place}"
            memory = io.BytesIO()
            np.savez(memory, allow_pickle=False, **arrays)
            self.add(f"{stem}-{name}.npz", memory.getvalue())

    def student(self, name: str, student: StudentAudit, points: Mapping[str, Arrays]) -> None:
        self.points(f"points{name}", points)
        self.picture(f"confidence{name}", confidence_picture(student, points))

    def picture(self, stem: str, picture: Picture | None) -> None:
        # Importing matplotlib takes a second, so it is imported only for drawing.
        from distillens.report.backends.draw import png_bytes, svg_bytes

        if picture is not None:
            self.add(f"{stem}.svg", svg_bytes(picture))
            self.add(f"{stem}.png", png_bytes(picture))
