"""Write the figures of a run as SVG and PNG, from its records alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distillens.errors import RunError
from distillens.files.atomic import write_atomically
from distillens.report.contents import Contents
from distillens.report.figures.complexity import complexity_picture
from distillens.report.figures.confidence import confidence_picture
from distillens.report.figures.over_training import compared_picture, over_training_picture
from distillens.report.figures.temperature import temperature_picture
from distillens.results.figure import Picture
from distillens.runs.layout import slug
from distillens.runs.open import OpenRun


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
    # Importing matplotlib takes a second, so it is imported only for drawing.
    from distillens.report.backends.draw import png_bytes, svg_bytes

    run = OpenRun.open(folder)
    paths = []
    for name, picture in _pictures(Contents.of(run)):
        for ending, content in (("svg", svg_bytes(picture)), ("png", png_bytes(picture))):
            path = run.files.figure(name, ending)
            write_atomically(path, content)
            paths.append(path)
    if not paths:
        raise RunError(
            f"{folder} has no finite values to draw; measure it with `distillens measure {folder} "
            "complexity examples=512`, with a ridge where the Gram matrix is singular"
        )
    return tuple(paths)


def _pictures(contents: Contents) -> Iterator[tuple[str, Picture]]:
    """Yield the name and the description of each figure that has something to show."""
    found: dict[str, Picture | None] = {}
    for curves in contents.complexity:
        found["complexity"] = complexity_picture(curves)
        found["temperatures"] = temperature_picture(curves)
    audited = contents.confidence
    for student, points in zip(audited.students if audited else (), contents.points, strict=True):
        name = f"confidence-{slug(student.student)}-seed-{student.seed}"
        found[name] = confidence_picture(student, points) if points else None
    over = contents.over_training
    for one in over.students if over else ():
        name = f"over-training-{slug(one.student)}-seed-{one.seed}"
        found[name] = over_training_picture(one)
    if over is not None:
        for split in ("train", "test"):
            found[f"students-{split}"] = compared_picture(contents.result.name, over, split)
    yield from ((name, picture) for name, picture in found.items() if picture is not None)
