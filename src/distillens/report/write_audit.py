"""Write an audit into a folder: numbers, points, a page, and pictures as SVG and PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillens.files.atomic import write_atomically
from distillens.report.sections.audit_page import audit_page
from distillens.results.base import to_json
from distillens.results.confidence import Audit, RunAudit, StudentAudit
from distillens.results.figure import Picture
from distillens.runs.layout import slug

Arrays = Mapping[str, NDArray]


def write_audit(audit: Audit, points: Mapping[str, Arrays], folder: Path) -> list[Path]:
    """Write the audit of two classifiers; return the paths.

    They are ``audit.json``, ``audit.html``, for each split ``points-<split>.npz`` (x, y, who, and
    mislabelled where it is known), and ``confidence.svg`` and ``.png``.

    Raises
    ------
    RunError
        The folder cannot be written.
    """
    student = StudentAudit("student", "arrays", None, audit, None, ())
    written = _Written(folder)
    written.add("audit.json", to_json(audit))
    written.points("points", points)
    _pictures(written, student, points, "")
    written.add("audit.html", audit_page("Student against teacher", [student], [points]))
    return written.paths


def write_run_audit(
    audit: RunAudit, points: Sequence[Mapping[str, Arrays]], folder: Path
) -> list[Path]:
    """Write the audit of a run's students; return the paths.

    They are ``audit.json``, ``audit.html``, and for each student, with its short name and seed,
    ``points-…-<split>.npz``, ``confidence-….svg`` and ``.png``, ``over-training-….svg`` and ``.png``;
    for several students ``students-<split>.svg`` and ``.png``.

    Raises
    ------
    RunError
        The folder cannot be written.
    """
    from distillens.report.figures.audit import compared_picture

    written = _Written(folder)
    written.add("audit.json", to_json(audit))
    for student, arrays in zip(audit.students, points, strict=True):
        name = f"-{slug(student.student)}-seed-{student.seed}"
        written.points(f"points{name}", arrays)
        _pictures(written, student, arrays, name)
    for split in ("train", "test"):
        written.picture(f"students-{split}", compared_picture(audit, split))
    notes = []
    if audit.other_teacher is not None:
        notes.append(f"the other teacher is that of the run {audit.other_teacher!r}")
    written.add("audit.html", audit_page(audit.run, audit.students, points, notes))
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

    def picture(self, stem: str, picture: Picture | None) -> None:
        # matplotlib takes a second to import; only who draws should wait for it.
        from distillens.report.backends.draw import png_bytes, svg_bytes

        if picture is not None:
            self.add(f"{stem}.svg", svg_bytes(picture))
            self.add(f"{stem}.png", png_bytes(picture))


def _pictures(
    written: _Written, student: StudentAudit, points: Mapping[str, Arrays], name: str
) -> None:
    from distillens.report.figures.audit import confidence_picture, over_training_picture

    written.picture(f"confidence{name}", confidence_picture(student, points))
    written.picture(f"over-training{name}", over_training_picture(student))
