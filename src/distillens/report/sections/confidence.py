"""The section on confidence, of a run's report and of the page of an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distillens.report.draw import PageFigure, page_figure
from distillens.report.figures.confidence import (
    BLUE,
    Cloud,
    clouds_of,
    confidence_panel,
    outside,
    shared_range,
)
from distillens.report.figures.over_training import over_training_panels
from distillens.report.figures.points import Points, panel_limit
from distillens.report.tables.confidence import (
    accuracy_grid,
    change_grid,
    departure_grid,
    dissection_grid,
    kernel_grid,
    kernels_of,
    name_of,
    over_training_of,
    over_training_sentence,
    overview_grid,
    slope_grid,
    split_sentences,
)
from distillens.report.tables.grid import Grid
from distillens.report.tables.text import estimate, number, plural
from distillens.results.confidence import (
    Confidence,
    Kernels,
    OverTraining,
    SplitAudit,
    StudentAudit,
)


def overviews(confidence: Confidence | None) -> list[tuple[str, Grid]]:
    """Return the name and the overview of each split, the test split first."""
    students = () if confidence is None else confidence.students
    splits = dict.fromkeys(split.split for one in students for split in one.audit.splits)
    ordered = sorted(splits, key=lambda split: split != "test")
    return [
        (split, overview_grid(confidence, split)) for split in ordered if confidence is not None
    ]


def verdicts(confidence: Confidence) -> list[tuple[str, str]]:
    """Return the name of each student and its verdicts as sentences."""
    found = []
    for student in confidence.students:
        sentences = [f"Warning: {warning}." for warning in student.audit.warnings]
        sentences += [f"{split.split}: {_verdict(split)}" for split in student.audit.splits]
        found.append((name_of(student), " ".join(sentences)))
    return found


def _verdict(split: SplitAudit) -> str:
    entry = split.ledger.all
    return (
        f"{split.exaggeration.reading} It departs from the teacher at {entry.departures:,} of "
        f"{plural(entry.examples, 'example')}, a net gain of "
        f"{estimate(entry.net_gain, 2, signed=True)} accuracy points (McNemar p = "
        f"{number(entry.p_value, 2)})."
    )


def first_seeds(
    confidence: Confidence | None, points: Sequence[Mapping[str, Points]]
) -> dict[str, tuple[StudentAudit, Mapping[str, Points]]]:
    """Return the audit and the points of the first seed of each supervision, by its name."""
    found: dict[str, tuple[StudentAudit, Mapping[str, Points]]] = {}
    for place, student in enumerate(() if confidence is None else confidence.students):
        found.setdefault(student.student, (student, points[place] if place < len(points) else {}))
    return found


def student_parts(
    confidence: Confidence | None,
    points: Sequence[Mapping[str, Points]],
    colours: Mapping[str, str],
    over_training: OverTraining | None = None,
    kernels: Kernels | None = None,
) -> list[dict[str, Any]]:
    """Return what the template shows of the first seed of each supervision.

    Students without points have no figures.

    Raises
    ------
    RunError
        The points are damaged.
    """
    firsts = first_seeds(confidence, points)
    students = [student for student, _ in firsts.values()]
    limit = panel_limit(2 * sum(len(student.audit.splits) for student in students))
    clouds = [clouds_of(student, arrays, limit) for student, arrays in firsts.values()]
    limits = shared_range([cloud for shown in clouds for cloud in shown])
    parts = []
    for index, (student, shown) in enumerate(zip(students, clouds, strict=True)):
        splits = student.audit.splits
        over, kernel = over_training_of(student, over_training), kernels_of(student, kernels)
        grids = (slope_grid, dissection_grid, accuracy_grid)
        notes = [*student.notes, *(() if over is None else over.notes)]
        notes += [f"{split.split}: {note}" for split in splits for note in split.notes]
        panels = {} if over is None else over_training_panels(over)
        colour = colours.get(student.student, BLUE)
        parts.append(
            {
                "title": name_of(student),
                "student": student.student,
                "figures": [
                    _figure(f"confidence-{index}-{place}", cloud, colour, limits, student.student)
                    for place, cloud in enumerate(shown)
                ],
                "sentences": [
                    f"{split.split}: {sentence}"
                    for split in splits
                    for sentence in split_sentences(split)
                ],
                "grids": [grid(splits) for grid in grids],
                "departures": departure_grid(splits),
                "over_training": None if over is None else over_training_sentence(over),
                "panels": [
                    page_figure(f"over-training-{index}-{key}", panel, panel.y_label)
                    for key, panel in panels.items()
                ],
                "changes": change_grid(over.changes) if over is not None and over.changes else None,
                "kernels": None if kernel is None else kernel_grid(kernel),
                "notes": list(dict.fromkeys(notes)),
            }
        )
    return parts


def _figure(
    identity: str, cloud: Cloud, colour: str, limits: tuple[float, float], supervision: str
) -> PageFigure:
    sample = cloud.sample
    shown = f"{len(sample.x):,} of {sample.total:,} points, chosen uniformly at random"
    if len(sample.x) == sample.total:
        shown = f"all {plural(sample.total, 'point')}"
    beyond = outside(sample, limits)
    if beyond:
        shown += f", {beyond:,} beyond the axes (drag to see them)"
    if sample.dropped:
        shown += f", {sample.dropped:,} not finite and left out"
    panel = confidence_panel(cloud, colour, limits)
    return page_figure(
        identity, panel, shown, cloud.title, height=420, examples=(supervision, cloud.split.split)
    )
