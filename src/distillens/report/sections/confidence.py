"""The section on confidence, of a run's report and of the page of an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distillens.report.backends.frame import framed
from distillens.report.backends.html import Safe, data_block, element, join, table
from distillens.report.backends.interactive import interactive
from distillens.report.contents import Contents
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
from distillens.report.sections.complexity import chooser, legend_item, plot
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
from distillens.report.tables.text import estimate, listed, number, plural
from distillens.results.confidence import (
    Confidence,
    Kernels,
    OverTraining,
    SplitAudit,
    StudentAudit,
    StudentOverTraining,
)

_SIGNS = {"circle": "●", "triangle-up": "▲", "triangle-down": "▼", "x": "✕"}

_READING = (
    "How to read it: each point is an example; across, the log-odds that the teacher gives to its own "
    "top class, upwards the log-odds that the student gives to that class (0 is even odds, 2.2 is "
    "90 %, 4.6 is 99 %). On the dotted diagonal the student is as confident as the teacher. Points "
    "below it on the left are low-confidence underfitting; a thick fitted line (one for each half) "
    "steeper than the diagonal, a slope above 1, exaggerates the teacher's confidence. Regression to "
    "the mean alone biases the slopes, so compare them with the one-hot student, which never saw the "
    "teacher."
)
_OVER_TRAINING = (
    "Checkpoints of the student against the final teacher; a point has the same place across at every "
    "epoch. Shaded: 95 % intervals over examples. A dashed vertical line marks a switch. The learning "
    "rate changes during training too, so compare with a student that was not switched."
)


def confidence_part(
    contents: Contents, colours: Mapping[str, str], first: str | None = None
) -> Safe:
    """Return the section of a run's report, or words if confidence was not measured.

    Parameters
    ----------
    contents
        Contents of the report; students whose points are missing are named.
    colours
        A colour for each supervision.
    first
        The supervision that is shown at first.

    Raises
    ------
    RunError
        The points are damaged.
    """
    title = element("h2", "Student against teacher")
    confidence = contents.confidence
    if confidence is None or not confidence.students:
        words = "The confidence of the students was not measured in this run."
        notes = () if confidence is None else confidence.notes
        missing = [element("p", text, class_="missing") for text in (words, *notes)]
        return element("section", title, *missing, id="confidence")
    splits = dict.fromkeys(
        split.split for student in confidence.students for split in student.audit.splits
    )
    overviews = []
    for split in sorted(splits, key=lambda split: split != "test"):
        overviews += [
            element("h3", f"Overview, {split}"),
            _table(overview_grid(confidence, split)),
        ]
    return element(
        "section",
        title,
        element("p", _READING, class_="reading"),
        *overviews,
        *(element("p", note, class_="note") for note in confidence.notes),
        *_students(
            confidence,
            contents.points,
            colours,
            contents.over_training,
            contents.kernels,
            first,
        ),
        id="confidence",
    )


def audit_page(
    title: str,
    confidence: Confidence,
    points: Sequence[Mapping[str, Points]],
) -> str:
    """Return the page of an audit as self-contained HTML; write it as UTF-8.

    Parameters
    ----------
    title
        Name of the audited arrays or run.
    confidence
        The audits of one or more students; a drop-down selects one.
    points
        For each student the arrays x, y, who, and mislabelled if it is known, by split.

    Raises
    ------
    RunError
        Points do not fit each other.
    """
    verdicts = [
        join(
            element("dt", name_of(student)),
            element(
                "dd",
                " ".join(
                    [
                        *(f"Warning: {warning}." for warning in student.audit.warnings),
                        *(f"{split.split}: {_verdict(split)}" for split in student.audit.splits),
                    ]
                ),
            ),
        )
        for student in confidence.students
    ]
    return framed(
        title,
        element("header", element("h1", title), element("p", "Audit of student against teacher")),
        element("section", element("h2", "Summary"), element("dl", *verdicts), class_="says"),
        *(element("p", note, class_="note") for note in confidence.notes),
        element(
            "section",
            element("p", _READING, class_="reading"),
            *_students(confidence, points, {}),
            id="students",
        ),
    )


def _verdict(split: SplitAudit) -> str:
    entry = split.ledger.all
    return (
        f"{split.exaggeration.reading} It departs from the teacher at {entry.departures:,} of "
        f"{plural(entry.examples, 'example')}, a net gain of "
        f"{estimate(entry.net_gain, 2, signed=True)} accuracy points (McNemar p = "
        f"{number(entry.p_value, 2)})."
    )


def _students(
    confidence: Confidence,
    points: Sequence[Mapping[str, Points]],
    colours: Mapping[str, str],
    over_training: OverTraining | None = None,
    kernels: Kernels | None = None,
    first: str | None = None,
) -> list[Safe]:
    """Return a drop-down of the students and a block for each of them."""
    students = confidence.students
    names = [name_of(student) for student in students]
    limit = panel_limit(2 * sum(len(student.audit.splits) for student in students))
    clouds = [
        clouds_of(student, by_split, limit) for student, by_split in _paired(students, points)
    ]
    without = [name for name, plotted in zip(names, clouds, strict=True) if not plotted]
    limits = shared_range([cloud for plotted in clouds for cloud in plotted])
    place = next((k for k, one in enumerate(students) if one.student == first), 0)
    words = []
    if without:
        text = f"The points of {listed(without)} are missing, so they are not plotted."
        words.append(element("p", text, class_="missing"))
    blocks = []
    for index, (student, plotted) in enumerate(zip(students, clouds, strict=True)):
        splits = student.audit.splits
        parts = [
            _plots(index, plotted, colours.get(student.student, BLUE), limits),
            *(
                element("p", f"{split.split}: {sentence}")
                for split in splits
                for sentence in split_sentences(split)
            ),
            *(_table(grid(splits)) for grid in (slope_grid, dissection_grid, accuracy_grid)),
            element("h3", "Departures from the teacher"),
            _table(departure_grid(splits)),
        ]
        over, kernel = over_training_of(student, over_training), kernels_of(student, kernels)
        if over is not None:
            parts += _over_training(over, index)
        if kernel is not None:
            parts += [element("h3", "Kernels"), _table(kernel_grid(kernel))]
        parts += _notes(student, over)
        key = f"a{index}"
        blocks.append(
            element("div", *parts, class_="choice", data_choice=key, hidden=index != place)
        )
    keys = [f"a{index}" for index in range(len(names))]
    return [*words, chooser("Student", names, keys, place), *blocks]


def _paired(
    students: Sequence[StudentAudit], points: Sequence[Mapping[str, Points]]
) -> list[tuple[StudentAudit, Mapping[str, Points]]]:
    return [(one, points[k] if k < len(points) else {}) for k, one in enumerate(students)]


def _plots(index: int, clouds: list[Cloud], colour: str, limits: tuple[float, float]) -> Safe:
    figures, groups = [], {}
    for place, cloud in enumerate(clouds):
        sample = cloud.sample
        shown = f"{len(sample.x):,} of {sample.total:,} points, thinned at random"
        if len(sample.x) == sample.total:
            shown = f"all {plural(sample.total, 'point')}"
        beyond = outside(sample, limits)
        if beyond:
            shown += f", {beyond:,} beyond the axes (double-click to see them)"
        if sample.dropped:
            shown += f", {sample.dropped:,} not finite and left out"
        identity = f"confidence-{index}-{place}"
        figures.append(
            element(
                "figure",
                element("figcaption", element("b", cloud.title), f" – {shown}"),
                plot(identity, f"Confidence plot: {cloud.title}", "square"),
                data_block(
                    identity, interactive(confidence_panel(cloud, colour, limits), legend=False)
                ),
            )
        )
        groups.update({group.key: group for group in cloud.groups})
    items = [
        legend_item(
            group.key,
            element("span", _SIGNS[group.symbol], style=f"color:{group.colour}"),
            group.name,
        )
        for group in groups.values()
    ]
    return join(element("div", *items, class_="legend"), element("div", *figures, class_="grid"))


def _over_training(over: StudentOverTraining, index: int) -> list[Safe]:
    figures = []
    for key, panel in over_training_panels(over).items():
        identity = f"over-training-{index}-{key}"
        figures.append(
            element(
                "figure",
                element("figcaption", element("b", panel.title), f", {panel.y_label}"),
                plot(identity, f"{panel.title} over epochs", "flat"),
                data_block(identity, interactive(panel)),
            )
        )
    return [
        element("h3", "Over training"),
        element("p", _OVER_TRAINING, class_="reading"),
        element("p", over_training_sentence(over)),
        element("div", *figures, class_="grid"),
        *([_table(change_grid(over.changes))] if over.changes else []),
    ]


def _notes(student: StudentAudit, over: StudentOverTraining | None) -> list[Safe]:
    notes = dict.fromkeys((*student.notes, *(over.notes if over is not None else ())))
    for split in student.audit.splits:
        notes.update(dict.fromkeys(f"{split.split}: {note}" for note in split.notes))
    return [element("p", note, class_="note") for note in notes]


def _table(grid: Grid) -> Safe:
    return table(grid.headings, grid.rows, grid.caption)
