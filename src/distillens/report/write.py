"""Write results into folders: the report of a run, and the numbers, arrays and figures of analyses."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillens.errors import RunError
from distillens.files.atomic import write_atomically
from distillens.report.contents import Contents
from distillens.report.draw import write_picture
from distillens.report.figures.complexity import complexity_picture
from distillens.report.figures.confidence import confidence_picture
from distillens.report.figures.eigenspace import pairs_picture, predictions_picture
from distillens.report.figures.over_training import compared_picture, over_training_picture
from distillens.report.figures.temperature import temperature_picture
from distillens.report.lab import lab_json
from distillens.report.page import audit_page, render
from distillens.results.base import SCHEMA, to_json
from distillens.results.confidence import Audit, Confidence, StudentAudit
from distillens.results.eigenspace import Eigenspace
from distillens.results.figure import Picture, Shown
from distillens.runs.layout import slug
from distillens.runs.open import OpenRun

Arrays = Mapping[str, NDArray]


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a finished run folder and return its path.

    Raises
    ------
    RunError
        The folder is no finished run, or its files are damaged.
    """
    run = OpenRun.open(folder, unfinished=True)
    write_atomically(run.files.report, render(Contents.of(run)))
    return run.files.report


def write_figures(folder: str | Path) -> tuple[Path, ...]:
    """Write the figures of the newest records into ``figures/`` of a run folder, as SVG and PNG.

    They are ``complexity``, ``temperatures``, ``confidence-<student>-seed-<s>``,
    ``over-training-<student>-seed-<s>`` and, for several students, ``students-<split>``. Figures
    without a finite value are left out.

    Raises
    ------
    RunError
        The folder is no run or is damaged, or there is nothing to draw.
    """
    run = OpenRun.open(folder)
    paths = [
        path
        for name, picture in _pictures(Contents.of(run))
        if picture is not None
        for path in write_picture(picture, run.files.figure(name, "svg").parent, name)
    ]
    if not paths:
        raise RunError(
            f"{folder} has no finite values to draw; measure it with `distillens measure {folder} "
            "complexity examples=512`, with a ridge where the Gram matrix is singular"
        )
    return tuple(paths)


def _pictures(contents: Contents) -> Iterator[tuple[str, Picture | None]]:
    """Yield the name and the description of each figure; None where there is nothing to show."""
    for curves in contents.complexity:
        yield "complexity", complexity_picture(curves)
        yield "temperatures", temperature_picture(curves)
    audited = contents.confidence
    for student, points in zip(audited.students if audited else (), contents.points, strict=True):
        name = f"confidence-{slug(student.student)}-seed-{student.seed}"
        yield name, confidence_picture(student, points) if points else None
    over = contents.over_training
    for one in over.students if over else ():
        yield f"over-training-{slug(one.student)}-seed-{one.seed}", over_training_picture(one)
    if over is not None:
        for split in ("train", "test"):
            yield f"students-{split}", compared_picture(contents.result.name, over, split)


def write_audit(audit: Audit, points: Mapping[str, Arrays], folder: Path) -> list[Path]:
    """Write the audit of two classifiers; return the paths.

    They are ``audit.json``, ``audit.html``, for each split ``points-<split>.npz`` (x, y, who,
    mislabelled if it is known, teacher_class and student_class), and ``confidence.svg`` and ``.png``.

    Raises
    ------
    RunError
        The folder cannot be written.
    """
    student = StudentAudit("student", "arrays", None, audit)
    found = Confidence(SCHEMA, None, (student,))
    contents: dict[str, bytes | str] = {"audit.json": to_json(audit)}
    for place, (split, arrays) in enumerate(points.items()):
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", split).strip("-.") or str(place)
        if f"points-{name}.npz" in contents:
            name = f"{name}-{place}"
        contents[f"points-{name}.npz"] = _npz(arrays)
    contents["audit.html"] = audit_page("Student against teacher", found, [points])
    return _write(folder, contents, {"confidence": confidence_picture(student, points)})


def write_eigenspace(
    result: Eigenspace, arrays: Mapping[str, NDArray[np.float64]], folder: Path
) -> tuple[Path, ...]:
    """Write ``eigenspace.json`` and ``.npz``, and two pictures as SVG and PNG; return the paths.

    Raises
    ------
    RunError
        The folder is a file, or cannot be written.
    """
    contents = {"eigenspace.json": to_json(result), "eigenspace.npz": _npz(arrays)}
    pictures = {
        "eigenspace-pairs": pairs_picture(result, arrays),
        "eigenspace-predictions": predictions_picture(result, arrays),
    }
    return tuple(_write(folder, contents, pictures))


def write_lab(shown: Shown, folder: Path) -> tuple[Path, ...]:
    """Write ``<study>.json``, ``.npz``, ``.svg`` and ``.png`` into a folder and return their paths.

    Raises
    ------
    RunError
        The folder is a file, or cannot be written.
    """
    contents = {f"{shown.name}.json": lab_json(shown), f"{shown.name}.npz": _npz(shown.arrays)}
    return tuple(_write(folder, contents, {shown.name: shown.picture}))


def _write(
    folder: Path, contents: Mapping[str, bytes | str], pictures: Mapping[str, Picture]
) -> list[Path]:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give a folder with --out")
    for name, content in contents.items():
        write_atomically(folder / name, content)
    paths = [folder / name for name in contents]
    for name, picture in pictures.items():
        paths += write_picture(picture, folder, name)
    return paths


def _npz(arrays: Arrays) -> bytes:
    memory = io.BytesIO()
    np.savez_compressed(memory, allow_pickle=False, **arrays)
    return memory.getvalue()
