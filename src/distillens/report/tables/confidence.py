"""The numbers of confidence analyses as tables: the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from distillens.report.figures.over_training import moment
from distillens.report.tables.grid import Grid, grid_of, terminal_table
from distillens.report.tables.text import (
    DASH,
    estimate,
    fixed,
    number,
    percent,
    plural,
    printable,
    slope,
)
from distillens.results import confidence as results
from distillens.results.base import Estimate, Interval

_SHOWN = 5
_EPOCHS_SHOWN = 6


def audit_text(audit: results.Audit) -> Group:
    """Return an audit for the terminal: per split the verdict, slopes, fidelity and departures."""
    parts: list[RenderableType] = [_warning(warning) for warning in audit.warnings]
    for role in dict.fromkeys(read.role for read in audit.kinds):
        reads = [read for read in audit.kinds if read.role == role]
        kinds = dict.fromkeys(f"{read.kind} ({read.how})" for read in reads)
        parts.append(Text(f"{role}: {'; '.join(kinds)}"))
    for split in audit.splits:
        title = f"\n{printable(split.split)}: {plural(split.examples, 'example')}"
        parts.append(Text(title, style="bold"))
        parts += [Text(line) for line in (*split_sentences(split), *_most_informative(split))]
        parts += _notes(split.notes)
    grids = (slope_grid, accuracy_grid, departure_grid)
    parts += [terminal_table(grid(audit.splits)) for grid in grids]
    return Group(*parts)


def confidence_text(found: results.Confidence) -> Group:
    """Return the analysis of the confidence of a run's students for the terminal."""
    parts: list[RenderableType] = [
        _warning(f"{name_of(student)}: {warning}")
        for student in found.students
        for warning in student.audit.warnings
    ]
    if found.other_teacher is not None:
        parts.append(Text(f"other teacher: that of the run {printable(found.other_teacher)}"))
    for student in found.students:
        parts += [_heading(name_of(student)), audit_text(student.audit), *_notes(student.notes)]
    return Group(*parts, *_notes(found.notes))


def over_training_text(found: results.OverTraining) -> Group:
    """Return the analysis of the checkpoints of students for the terminal."""
    parts: list[RenderableType] = []
    for over in found.students:
        parts += [
            _heading(f"{over.student}, seed {over.seed}"),
            terminal_table(checkpoint_grid(over)),
            Text(over_training_sentence(over)),
        ]
        if over.changes:
            parts.append(terminal_table(change_grid(over.changes)))
        parts += _notes(over.notes)
    return Group(*parts)


def kernels_text(found: results.Kernels) -> Group:
    """Return the comparison of the kernels of students and teacher for the terminal."""
    parts: list[RenderableType] = []
    for one in found.students:
        parts += [_heading(f"{one.student}, seed {one.seed}"), terminal_table(kernel_grid(one))]
    return Group(*parts, *_notes(found.notes))


def _heading(text: str) -> Text:
    return Text(f"\n{printable(text)}", style="bold underline")


def _notes(notes: Sequence[str]) -> list[Text]:
    return [Text(f"note: {printable(note)}") for note in notes]


def name_of(student: results.StudentAudit) -> str:
    """Return the supervision's name with the seed, where there is one."""
    return student.student if student.seed is None else f"{student.student}, seed {student.seed}"


def over_training_of(
    student: results.StudentAudit, over: results.OverTraining | None
) -> results.StudentOverTraining | None:
    """Return the checkpoints of a student, or None if they were not measured."""
    those = () if over is None else over.students
    return next((o for o in those if (o.student, o.seed) == (student.student, student.seed)), None)


def kernels_of(
    student: results.StudentAudit, kernels: results.Kernels | None
) -> results.StudentKernels | None:
    """Return the kernels of a student, or None if they were not measured."""
    those = () if kernels is None else kernels.students
    return next((k for k in those if (k.student, k.seed) == (student.student, student.seed)), None)


def split_sentences(split: results.SplitAudit) -> list[str]:
    """Return the verdict, the fidelity and the place of mislabelled examples as sentences."""
    fidelity, place = split.fidelity, split.exaggeration.mislabelled
    found = [
        split.exaggeration.reading,
        f"Fidelity: same top class {estimate(fidelity.agreement, 1, 100)} %, KL(teacher ‖ student) "
        f"{_mean(fidelity.kl_teacher_student, fidelity.infinite_kl_teacher_student)}, "
        "KL(student ‖ teacher) "
        f"{_mean(fidelity.kl_student_teacher, fidelity.infinite_kl_student_teacher)} nats, "
        f"total variation {number(fidelity.total_variation.value)}.",
    ]
    if place is not None:
        found.append(
            f"Mislabelled examples ({place.examples:,}): the student is less confident than the "
            f"teacher on {estimate(place.underfit_share, 1, 100)} % of them and on "
            f"{estimate(place.underfit_share_of_others, 1, 100)} % of the others; "
            f"{estimate(place.low_confidence_share, 1, 100)} % of them lie in the low part."
        )
    return found


def overview_grid(confidence: results.Confidence, split: str) -> Grid:
    """Return one row per student and seed with the main numbers of a split."""
    pairs = [
        (student, found)
        for student in confidence.students
        for found in student.audit.splits
        if found.split == split
    ]
    given = any(found.calibration[1].accuracy_on_given_labels for _, found in pairs)
    teacher = pairs[0][1].calibration[0]
    accuracy = f"Accuracy of the teacher: {estimate(teacher.accuracy, 1, 100)} %"
    if given:
        wrong = estimate(teacher.accuracy_on_given_labels, 1, 100)
        accuracy += f" on true labels, {wrong} % on given labels"
    caption = (
        f"{split} split, {plural(pairs[0][1].examples, 'example')}. {accuracy}. "
        "In brackets: 95 % intervals over examples. Low and high: below and above the median of the "
        "teacher's log-odds. Underfit: share of the low part on which the student is less confident "
        "than the teacher. KL(teacher ‖ student) at τ = 1. Only student, only teacher right and net "
        "gain are judged by the true labels where they are known."
    )
    columns: dict[str, Callable[..., str]] = {
        "student": lambda student, _: name_of(student),
        "slope, all": lambda _, found: slope(found.exaggeration.slope_all.ordinary),
        "slope, low": lambda _, found: slope(found.exaggeration.slope_low.ordinary),
        "slope, high": lambda _, found: slope(found.exaggeration.slope_high.ordinary),
        "low, underfit %": lambda _, found: estimate(found.exaggeration.underfit.share, 1, 100),
        "same class %": lambda _, found: estimate(found.fidelity.agreement, 1, 100),
        "KL, nats": lambda _, found: _mean(
            found.fidelity.kl_teacher_student, found.fidelity.infinite_kl_teacher_student
        ),
        **_accuracies(given, lambda _, found: found.calibration[1]),
        "only student right": lambda _, found: f"{found.ledger.all.gained:,}",
        "only teacher right": lambda _, found: f"{found.ledger.all.lost:,}",
        "net gain, points": lambda _, found: estimate(found.ledger.all.net_gain, 2, signed=True),
        "exaggeration": lambda _, found: found.exaggeration.verdict,
    }
    return grid_of(pairs, columns, caption)


def slope_grid(splits: Sequence[results.SplitAudit]) -> Grid:
    """Return the slopes and the underfit share with those of the references and the verdicts."""
    references = list(
        dict.fromkeys(
            one.name for split in splits for one in split.exaggeration.underfit.references
        )
    )
    rows = []
    for split in splits:
        found, under = split.exaggeration, split.exaggeration.underfit
        for fit in (found.slope_all, found.slope_low, found.slope_high):
            others = {one.name: slope(one.ordinary) for one in fit.references}
            cells = [f"{fit.points:,}", slope(fit.ordinary), slope(fit.robust)]
            cells += [others.get(name, DASH) for name in references]
            rows.append([f"{split.split}, slope, {fit.part}", *cells, fit.verdict])
        shares = {one.name: estimate(one.share, 1, 100) for one in under.references}
        cells = [f"{under.points:,}", estimate(under.share, 1, 100), DASH]
        cells += [shares.get(name, DASH) for name in references]
        rows.append([f"{split.split}, low, underfit %", *cells, under.verdict])
    return Grid(["confidence plot", "points", "student", "robust", *references, "verdict"], rows)


def accuracy_grid(splits: Sequence[results.SplitAudit]) -> Grid:
    """Return accuracies and calibration of teacher and student."""
    given = any(split.calibration[0].accuracy_on_given_labels for split in splits)
    columns: dict[str, Callable[..., str]] = {
        "calibration": lambda split, found: f"{split}, {found.who}",
        **_accuracies(given, lambda _, found: found),
        "ECE %": lambda _, found: _ece(found.ece, found.ece_if_calibrated),
        "adaptive ECE %": lambda _, found: _ece(
            found.adaptive_ece, found.adaptive_ece_if_calibrated
        ),
        "Brier": lambda _, found: number(found.brier.value),
        "NLL": lambda _, found: _mean(found.nll, found.infinite_nll),
    }
    found = [(split.split, each) for split in splits for each in split.calibration]
    return grid_of(found, columns, "In brackets: the ECE of a calibrated classifier.")


def departure_grid(splits: Sequence[results.SplitAudit]) -> Grid:
    """Return the departures from the teacher and what they gained and lost, by group."""
    entries = []
    for split in splits:
        ledger = split.ledger
        worst = sorted(
            (entry for entry in ledger.by_class if entry.departures),
            key=lambda entry: (-abs(entry.gained - entry.lost), -entry.departures),
        )
        groups = (ledger.all, *ledger.by_confidence, *ledger.by_mislabelled, *worst[:_SHOWN])
        entries += [(split.split, entry) for entry in groups]
    caption = (
        "Right and wrong are judged by the true labels where they are known. Of the classes, the "
        f"{_SHOWN} with the largest net gain or loss."
    )
    return grid_of(
        entries,
        {
            "departures from the teacher": lambda split, entry: f"{split}, {entry.group}",
            "examples": lambda _, entry: f"{entry.examples:,}",
            "departures": lambda _, entry: f"{entry.departures:,}",
            "right, teacher wrong": lambda _, entry: f"{entry.gained:,}",
            "wrong, teacher right": lambda _, entry: f"{entry.lost:,}",
            "both wrong": lambda _, entry: f"{entry.both_wrong:,}",
            "net gain, points": lambda _, entry: estimate(entry.net_gain, 2, signed=True),
            "McNemar p": lambda _, entry: number(entry.p_value, 2),
        },
        caption,
    )


def dissection_grid(splits: Sequence[results.SplitAudit]) -> Grid:
    """Return where the points of the confidence plot lie, by who is right."""
    known = {None: "", True: ", mislabelled", False: ", not mislabelled"}
    caption = (
        "Underfit: the student is less confident than the teacher in the teacher's top class. Who is "
        "right is judged by the true labels where they are known."
    )
    return grid_of(
        [(split.split, part) for split in splits for part in split.dissection],
        {
            "who is right": lambda split, part: f"{split}, {part.who}{known[part.mislabelled]}",
            "examples": lambda _, part: f"{part.examples:,}",
            "in the low part %": lambda _, part: estimate(part.low_confidence_share, 1, 100),
            "underfit %": lambda _, part: estimate(part.underfit_share, 1, 100),
        },
        caption,
    )


def checkpoint_grid(over: results.StudentOverTraining) -> Grid:
    """Return the numbers of a few checkpoints."""
    epochs = sorted({point.epoch for point in over.points})
    shown = {*epochs[:: max(1, -(-len(epochs) // _EPOCHS_SHOWN))], epochs[-1]}
    points = sorted(over.points, key=lambda point: (point.split, point.epoch))
    return grid_of(
        [(point,) for point in points if point.epoch in shown],
        {
            "over training": lambda point: f"{point.split}, epoch {point.epoch}",
            "slope low": lambda point: slope(point.slope_low),
            "slope all": lambda point: slope(point.slope_all),
            "low, underfit %": lambda point: estimate(point.underfit, 1, 100),
            "same class %": lambda point: estimate(point.agreement, 1, 100),
            "net gain, points": lambda point: estimate(point.net_gain, 2, signed=True),
            "mislabelled right %": lambda point: estimate(point.mislabelled_right, 1, 100),
        },
    )


def over_training_sentence(over: results.StudentOverTraining) -> str:
    """Return which examples were measured, and the moment of a switch."""
    counts = ", ".join(f"{count:,} {split}" for split, count in over.examples.items())
    words = f"Over training: {counts} examples, compared with the final teacher."
    return words if over.switch is None else f"{words} Switch: {printable(moment(over.switch))}."


def change_grid(changes: Sequence[results.SwitchChange]) -> Grid:
    """Return the changes of each quantity at a switch."""
    rows = []
    for change in changes:
        share = change.quantity not in ("slope_all", "slope_low", "slope_high", "net_gain")
        digits, scale = (1, 100.0) if share else (3, 1.0)
        rows.append(
            [
                f"{change.split}, {change.quantity.replace('_', ' ')}{' %' if share else ''}",
                percent(change.before, 1) if share else number(change.before),
                estimate(change.soon, digits, scale, signed=True),
                estimate(change.last, digits, scale, signed=True),
                change.direction,
            ]
        )
    caption = (
        "Paired by example: changes up to the first checkpoint after the switch, and to the last."
    )
    return Grid(["at the switch", "before", "soon after", "at the end", ""], rows, caption)


def kernel_grid(kernels: results.StudentKernels) -> Grid:
    """Return how similar the kernels are to the teacher's."""
    caption = (
        f"Tangent kernels at the last epochs, {kernels.likenesses[0].probes} random vectors; 1 is equal "
        "up to a factor. On few examples unrelated kernels are far above 0 too, so compare the rows."
    )
    return grid_of(
        zip(kernels.likenesses),
        {
            "kernels": lambda one: f"{one.who} and teacher",
            "examples": lambda one: f"{one.examples:,} {one.split}",
            "NTK similarity": lambda one: estimate(one.ntk_similarity, 3),
            "centred alignment": lambda one: estimate(one.centred_alignment, 3),
        },
        caption,
    )


def _accuracies(
    given: bool, calibration: Callable[..., results.Calibration]
) -> dict[str, Callable[..., str]]:
    """Return the columns of accuracies, two if labels were changed on purpose."""

    def true(*item: Any) -> str:
        return estimate(calibration(*item).accuracy, 1, 100)

    def on_given(*item: Any) -> str:
        return estimate(calibration(*item).accuracy_on_given_labels, 1, 100)

    if not given:
        return {"accuracy %": true}
    return {"accuracy, true labels %": true, "accuracy, given labels %": on_given}


def _warning(text: str) -> Text:
    return Text(f"warning: {printable(text)}", style="bold red")


def _mean(value: Estimate, infinite: results.Infinite | None) -> str:
    if infinite is None:
        return number(value.value)
    return f"∞ at {infinite.examples:,}, {number(infinite.others.value)} at the others"


def _ece(value: float, chance: Interval) -> str:
    low, high = percent(chance.low, 2), percent(chance.high, 2)
    return f"{percent(value, 2)} ({low}–{high} if calibrated)"


def _most_informative(split: results.SplitAudit) -> list[str]:
    lines = []
    for one in split.ledger.telling[:_SHOWN]:
        place = f"row {one.row}" if one.index is None else f"index {one.index}"
        text = f": {printable(one.text)}" if one.text is not None else ""
        lines.append(
            f"{place}, label {one.label}: teacher {one.teacher_class} "
            f"({fixed(one.teacher_on_its_class, 2)}), student {one.student_class} "
            f"({fixed(one.student_on_its_class, 2)}), {one.outcome}{text}"
        )
    return ["Departures that moved the most probability:", *lines] if lines else []
