"""The page of an audit: what it says, the confidence plot taken apart, and the way there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.io import to_json

from distillens.report import palette
from distillens.report.backends.frame import framed
from distillens.report.backends.html import Safe, data_block, element, join, table
from distillens.report.figures.audit_curves import Quantity, drawn_quantities, moment, tracks
from distillens.report.figures.audit_points import taken_apart
from distillens.report.figures.deviation import Lines, deviation_figure, shared_range
from distillens.report.figures.points import Points, panel_limit
from distillens.report.sections.complexity import chooser, legend_item, plot
from distillens.report.tables.text import DASH, estimate, number, percent, plural, slope
from distillens.results.confidence import OverTraining, SplitAudit, StudentAudit, SwitchChange

_BLUE, _ORANGE = "#1f83c4", "#d55e00"
_SIGNS = {"circle": "●", "triangle-up": "▲", "triangle-down": "▼", "x": "✕"}

_PLOT = (
    "How to read it: each point is an example; across, the log-odds that the teacher gives to its own "
    "top class, upwards what the student gives to that class. On the dotted diagonal the student is "
    "as sure as the teacher. Below it on the left lies low-confidence underfitting; a thick line (one "
    "for each half) steeper than the diagonal exaggerates the teacher's confidence."
)
_WAY = (
    "Checkpoints of the student against the final teacher: the place of a point across is the same at "
    "every epoch. Shaded: 95 % intervals over examples. A dashed upright line is the moment of a "
    "switch. The learning rate changes on the way too, so compare with a student that was not switched."
)


def audit_page(
    title: str,
    students: Sequence[StudentAudit],
    points: Sequence[Mapping[str, Points]],
    notes: Sequence[str] = (),
) -> str:
    """Return the page of an audit as self-contained HTML; write it as UTF-8.

    Parameters
    ----------
    title
        What was audited.
    students
        One or more, a drop-down chooses between them.
    points
        For each student the arrays x, y, who, and mislabelled where it is known, by split.
    notes
        Shown under the title.

    Raises
    ------
    RunError
        Points do not fit each other.
    """
    names = [_name(student) for student in students]
    said = [
        join(
            element("dt", name),
            element(
                "dd",
                " ".join(
                    [
                        *(f"Warning: {warning}." for warning in student.audit.warnings),
                        *(f"{split.split}: {_says(split)}" for split in student.audit.splits),
                    ]
                ),
            ),
        )
        for name, student in zip(names, students, strict=True)
    ]
    limit = panel_limit(3 * len(students))
    blocks = [
        element(
            "div",
            _student(student, arrays, place, limit),
            class_="choice",
            data_choice=f"a{place}",
            hidden=place > 0,
        )
        for place, (student, arrays) in enumerate(zip(students, points, strict=True))
    ]
    return framed(
        title,
        element("header", element("h1", title), element("p", "Audit of student against teacher")),
        element("section", element("h2", "What this says"), element("dl", *said), class_="says"),
        *(element("p", note, class_="note") for note in notes),
        element(
            "section",
            chooser("Student", names, [f"a{place}" for place in range(len(names))]),
            *blocks,
            id="students",
        ),
    )


def _name(student: StudentAudit) -> str:
    return student.student if student.seed is None else f"{student.student}, seed {student.seed}"


def _says(split: SplitAudit) -> str:
    entry = split.ledger.all
    return (
        f"{split.exaggeration.reading} It departs from the teacher at {entry.departures:,} of "
        f"{plural(entry.examples, 'example')}, which brings {estimate(entry.net_gain, 2, signed=True)} "
        f"accuracy points (McNemar p = {number(entry.p_value, 2)})."
    )


def _student(student: StudentAudit, points: Mapping[str, Points], place: int, limit: int) -> Safe:
    parts = [
        element("h2", "Confidence, taken apart"),
        element("p", _PLOT, class_="reading"),
        _confidence(student, points, place, limit),
        _slopes(student),
        _dissection(student),
        element("h2", "The ledger"),
        _ledger(student),
    ]
    if student.over_training is not None:
        parts.append(_way(student.over_training, place))
    parts += [_kernels(student), *_notes(student)]
    return join(*parts)


def _confidence(
    student: StudentAudit, points: Mapping[str, Points], place: int, limit: int
) -> Safe:
    drawn = taken_apart(student, points, limit)
    limits = shared_range([one.sample for one in drawn])
    figures, shown = [], {}
    for index, one in enumerate(drawn):
        fit = one.split.exaggeration
        lines = Lines(fit.slope_low.ordinary, fit.slope_high.ordinary, fit.threshold)
        identity = f"confidence-{place}-{index}"
        picture = deviation_figure(lines, one.sample, _BLUE, limits, one.groups)
        text = f"{len(one.sample.x):,} of {one.sample.total:,} points"
        figures.append(
            element(
                "figure",
                element("figcaption", element("b", one.title), f" – {text}"),
                plot(identity, f"Confidence plot: {one.title}", "square"),
                data_block(identity, to_json(picture, validate=False) or "{}"),
            )
        )
        shown.update({group.key: group for group in one.groups})
    items = [
        legend_item(
            group.key,
            element("span", _SIGNS[group.symbol], style=f"color:{group.colour}"),
            group.name,
        )
        for group in shown.values()
    ]
    return join(element("div", *items, class_="legend"), element("div", *figures, class_="grid"))


def _slopes(student: StudentAudit) -> Safe:
    references = list(
        dict.fromkeys(
            one.name
            for split in student.audit.splits
            for one in split.exaggeration.slope_all.references
        )
    )
    body = []
    for split in student.audit.splits:
        found = split.exaggeration
        for fit in (found.slope_all, found.slope_low, found.slope_high):
            others = {one.name: slope(one.ordinary) for one in fit.references}
            cells = [slope(fit.ordinary), slope(fit.robust)]
            cells += [others.get(name, DASH) for name in references]
            body.append([f"{split.split}, slope, {fit.part}", *cells, fit.verdict])
        shares = {one.name: estimate(one.share, 1, 100) for one in found.underfit.references}
        body.append(
            [
                f"{split.split}, low part underfit %",
                estimate(found.underfit.share, 1, 100),
                DASH,
                *(shares.get(name, DASH) for name in references),
                found.underfit.verdict,
            ]
        )
    return table(["", "student", "robust", *references, "verdict"], body)


def _dissection(student: StudentAudit) -> Safe:
    body = []
    for split in student.audit.splits:
        for part in split.dissection:
            known = {None: "", True: ", mislabelled", False: ", not mislabelled"}[part.mislabelled]
            body.append(
                [
                    f"{split.split}, {part.who}{known}",
                    f"{part.examples:,}",
                    estimate(part.low_confidence_share, 1, 100),
                    estimate(part.underfit_share, 1, 100),
                ]
            )
    caption = "Underfit: the student is less sure of the teacher's top class than the teacher is."
    return table(["who is right", "examples", "in the low part %", "underfit %"], body, caption)


def _ledger(student: StudentAudit) -> Safe:
    body = [
        [
            f"{split.split}, {entry.group}",
            f"{entry.examples:,}",
            f"{entry.departures:,}",
            f"{entry.gained:,}",
            f"{entry.lost:,}",
            f"{entry.both_wrong:,}",
            estimate(entry.net_gain, 2, signed=True),
            number(entry.p_value, 2),
        ]
        for split in student.audit.splits
        for entry in (split.ledger.all, *split.ledger.by_confidence, *split.ledger.by_mislabelled)
    ]
    heads = ["", "examples", "departures", "right, teacher wrong", "wrong, teacher right"]
    return table([*heads, "both wrong", "net gain, points", "McNemar p"], body)


def _way(over: OverTraining, place: int) -> Safe:
    figures = []
    for quantity in drawn_quantities(over):
        identity = f"way-{place}-{quantity.key}"
        figures.append(
            element(
                "figure",
                element("figcaption", element("b", quantity.title), f", {quantity.unit}"),
                plot(identity, f"{quantity.title} over epochs", "flat"),
                data_block(identity, to_json(way_figure(over, quantity), validate=False) or "{}"),
            )
        )
    counts = ", ".join(f"{count:,} {split}" for split, count in over.examples.items())
    words = f"{_WAY} Looked at: {counts} examples."
    switch = Safe("")
    if over.switch is not None:
        switch = element("p", f"Switch: {moment(over.switch)}.")
    return join(
        element("h2", "The way there"),
        element("p", words, class_="reading"),
        switch,
        element("div", *figures, class_="grid"),
        _changes(over.changes),
    )


def way_figure(over: OverTraining, quantity: Quantity) -> go.Figure:
    """Return a quantity over epochs with its intervals, its level and the moment of a switch."""
    figure = go.Figure()
    for track in tracks(over, quantity):
        colour = (_BLUE, _ORANGE)[track.colour % 2]
        known = np.isfinite(track.low_M) & np.isfinite(track.high_M)
        epochs = track.epochs_M[known]
        figure.add_scatter(
            x=np.concatenate([epochs, epochs[::-1]]),
            y=np.concatenate([track.low_M[known], track.high_M[known][::-1]]),
            fill="toself",
            mode="lines",
            line={"width": 0},
            fillcolor=_faint(colour),
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=track.epochs_M,
            y=track.values_M,
            mode="lines",
            name=track.label,
            line={"color": colour, "width": 2, "dash": "dash" if track.dashed else "solid"},
            hovertemplate="epoch %{x}: %{y:.3g}<extra>%{fullData.name}</extra>",
        )
    if quantity.level is not None:
        figure.add_hline(y=quantity.level, line={"color": palette.GREY, "dash": "dot", "width": 1})
    if over.switch is not None:
        begins, ends = over.switch.begins, over.switch.ends
        if ends > begins:
            figure.add_vrect(x0=begins, x1=ends, fillcolor=palette.GREY, opacity=0.25, line_width=0)
        else:
            figure.add_vline(x=begins, line={"color": palette.GREY, "dash": "dash", "width": 1.5})
    figure.update_layout(
        template="none",
        margin={"l": 54, "r": 12, "t": 12, "b": 40},
        xaxis={"title": {"text": "epoch"}, "zeroline": False},
        yaxis={"zeroline": False},
        legend={"orientation": "h", "y": 1.12},
    )
    return figure


def _changes(changes: Sequence[SwitchChange]) -> Safe:
    body = []
    for change in changes:
        shares = change.quantity not in ("slope_all", "slope_low", "slope_high", "net_gain")
        digits, scale = (1, 100.0) if shares else (3, 1.0)
        body.append(
            [
                f"{change.split}, {change.quantity.replace('_', ' ')}{' %' if shares else ''}",
                percent(change.before, 1) if shares else number(change.before),
                estimate(change.soon, digits, scale, signed=True),
                estimate(change.last, digits, scale, signed=True),
                change.direction,
            ]
        )
    if not body:
        return Safe("")
    caption = (
        "Paired by example: changes up to the first checkpoint after the switch, and to the last."
    )
    heads = ["at the switch", "before", "soon after", "at the end", ""]
    return table(heads, body, caption)


def _kernels(student: StudentAudit) -> Safe:
    if not student.kernels:
        return Safe("")
    body = [
        [
            f"{one.who} and teacher",
            f"{one.examples:,} {one.split}",
            estimate(one.ntk_similarity, 3),
            estimate(one.centred_alignment, 3),
        ]
        for one in student.kernels
    ]
    caption = (
        f"Tangent kernels at the last epochs, {student.kernels[0].probes} random vectors; 1 is the same "
        "up to a factor. On few examples unrelated kernels are far above 0 too, so compare the rows."
    )
    heads = ["kernels", "examples", "NTK similarity", "centred alignment"]
    return join(element("h2", "Kernels"), table(heads, body, caption))


def _notes(student: StudentAudit) -> list[Safe]:
    said = dict.fromkeys(student.notes)
    for split in student.audit.splits:
        said.update(dict.fromkeys(f"{split.split}: {note}" for note in split.notes))
    return [element("p", note, class_="note") for note in said]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
