"""The numbers of confidence analyses as tables: the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from distillens.report.figures.over_training import moment
from distillens.report.tables.grid import Grid, terminal_table
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
from distillens.results.base import Estimate, Interval
from distillens.results.confidence import (
    Audit,
    Calibration,
    Confidence,
    Infinite,
    Kernels,
    LedgerEntry,
    OverTraining,
    SplitAudit,
    StudentAudit,
    StudentKernels,
    StudentOverTraining,
    SwitchChange,
)

_SHOWN = 5
_EPOCHS_SHOWN = 6

TRUE_LABELS, GIVEN_LABELS = "accuracy, true labels %", "accuracy, given labels %"


def audit_text(audit: Audit) -> Group:
    """Return an audit for the terminal: per split the verdict, slopes, fidelity and departures."""
    parts: list[RenderableType] = [_warning(warning) for warning in audit.warnings]
    for role in dict.fromkeys(read.role for read in audit.kinds):
        reads = [read for read in audit.kinds if read.role == role]
        kinds = dict.fromkeys(f"{read.kind} ({read.how})" for read in reads)
        parts.append(Text(f"{role}: {'; '.join(kinds)}"))
    for split in audit.splits:
        title = f"\n{printable(split.split)}: {plural(split.examples, 'example')}"
        notes = (f"note: {printable(note)}" for note in split.notes)
        parts.append(Text(title, style="bold"))
        parts += [
            Text(line) for line in (*split_sentences(split), *_most_informative(split), *notes)
        ]
    grids = (slope_grid, accuracy_grid, departure_grid)
    parts += [terminal_table(grid(audit.splits)) for grid in grids]
    return Group(*parts)


def confidence_text(found: Confidence) -> Group:
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


def over_training_text(found: OverTraining) -> Group:
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


def kernels_text(found: Kernels) -> Group:
    """Return the comparison of the kernels of students and teacher for the terminal."""
    parts: list[RenderableType] = []
    for one in found.students:
        parts += [_heading(f"{one.student}, seed {one.seed}"), terminal_table(kernel_grid(one))]
    return Group(*parts, *_notes(found.notes))


def _heading(text: str) -> Text:
    return Text(f"\n{printable(text)}", style="bold underline")


def _notes(notes: Sequence[str]) -> list[Text]:
    return [Text(f"note: {printable(note)}") for note in notes]


def name_of(student: StudentAudit) -> str:
    """Return the supervision's name with the seed, where there is one."""
    return student.student if student.seed is None else f"{student.student}, seed {student.seed}"


def over_training_of(
    student: StudentAudit, over: OverTraining | None
) -> StudentOverTraining | None:
    """Return the checkpoints of a student, or None if they were not measured."""
    those = () if over is None else over.students
    return next((o for o in those if (o.student, o.seed) == (student.student, student.seed)), None)


def kernels_of(student: StudentAudit, kernels: Kernels | None) -> StudentKernels | None:
    """Return the kernels of a student, or None if they were not measured."""
    those = () if kernels is None else kernels.students
    return next((k for k in those if (k.student, k.seed) == (student.student, student.seed)), None)


def split_sentences(split: SplitAudit) -> list[str]:
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


def overview_grid(confidence: Confidence, split: str) -> Grid:
    """Return one row per student and seed with the main numbers of a split."""
    pairs = [
        (student, found)
        for student in confidence.students
        for found in student.audit.splits
        if found.split == split
    ]
    given = any(found.calibration[1].accuracy_on_given_labels for _, found in pairs)
    rows = []
    for student, found in pairs:
        shown, entry = found.exaggeration, found.ledger.all
        rows.append(
            [
                name_of(student),
                slope(shown.slope_all.ordinary),
                slope(shown.slope_low.ordinary),
                slope(shown.slope_high.ordinary),
                estimate(shown.underfit.share, 1, 100),
                estimate(found.fidelity.agreement, 1, 100),
                _mean(
                    found.fidelity.kl_teacher_student, found.fidelity.infinite_kl_teacher_student
                ),
                *_accuracies(found.calibration[1], given),
                f"{entry.gained:,}",
                f"{entry.lost:,}",
                estimate(entry.net_gain, 2, signed=True),
                shown.verdict,
            ]
        )
    headings = [
        "student", "slope, all", "slope, low", "slope, high", "low, underfit %", "same class %",
        "KL, nats", *_accuracy_headings(given), "only student right", "only teacher right",
        "net gain, points", "exaggeration",
    ]  # fmt: skip
    caption = f"{split} split, {plural(pairs[0][1].examples, 'example')}. {_teacher(pairs, given)}"
    caption += (
        "In brackets: 95 % intervals over examples. Low and high: below and above the median of the "
        "teacher's log-odds. Underfit: share of the low part on which the student is less confident "
        "than the teacher. KL(teacher ‖ student) at τ = 1. Only student, only teacher right and net "
        "gain are judged by the true labels where they are known."
    )
    return Grid(headings, rows, caption)


def slope_grid(splits: Sequence[SplitAudit]) -> Grid:
    """Return the slopes and the underfit share with those of the references and the verdicts."""
    references = list(
        dict.fromkeys(
            one.name for split in splits for one in split.exaggeration.underfit.references
        )
    )
    rows = []
    for split in splits:
        found = split.exaggeration
        for fit in (found.slope_all, found.slope_low, found.slope_high):
            others = {one.name: slope(one.ordinary) for one in fit.references}
            cells = [f"{fit.points:,}", slope(fit.ordinary), slope(fit.robust)]
            cells += [others.get(name, DASH) for name in references]
            rows.append([f"{split.split}, slope, {fit.part}", *cells, fit.verdict])
        under = found.underfit
        shares = {one.name: estimate(one.share, 1, 100) for one in under.references}
        cells = [f"{under.points:,}", estimate(under.share, 1, 100), DASH]
        cells += [shares.get(name, DASH) for name in references]
        rows.append([f"{split.split}, low, underfit %", *cells, under.verdict])
    return Grid(["confidence plot", "points", "student", "robust", *references, "verdict"], rows)


def accuracy_grid(splits: Sequence[SplitAudit]) -> Grid:
    """Return accuracies and calibration of teacher and student."""
    given = any(split.calibration[0].accuracy_on_given_labels for split in splits)
    rows = [
        [
            f"{split.split}, {found.who}",
            *_accuracies(found, given),
            f"{percent(found.ece, 2)} ({_chance(found.ece_if_calibrated)})",
            f"{percent(found.adaptive_ece, 2)} ({_chance(found.adaptive_ece_if_calibrated)})",
            number(found.brier.value),
            _mean(found.nll, found.infinite_nll),
        ]
        for split in splits
        for found in split.calibration
    ]
    headings = [
        "calibration",
        *_accuracy_headings(given),
        "ECE %",
        "adaptive ECE %",
        "Brier",
        "NLL",
    ]
    return Grid(headings, rows, "In brackets: the ECE of a calibrated classifier.")


def departure_grid(splits: Sequence[SplitAudit]) -> Grid:
    """Return the departures from the teacher and what they gained and lost, by group."""
    rows = []
    for split in splits:
        ledger = split.ledger
        worst = sorted(
            (entry for entry in ledger.by_class if entry.departures),
            key=lambda entry: (-abs(entry.gained - entry.lost), -entry.departures),
        )
        groups = (ledger.all, *ledger.by_confidence, *ledger.by_mislabelled, *worst[:_SHOWN])
        rows += [_departures(split.split, entry) for entry in groups]
    headings = [
        "departures from the teacher", "examples", "departures", "right, teacher wrong",
        "wrong, teacher right", "both wrong", "net gain, points", "McNemar p",
    ]  # fmt: skip
    caption = (
        "Right and wrong are judged by the true labels where they are known. Of the classes, the "
        f"{_SHOWN} with the largest net gain or loss."
    )
    return Grid(headings, rows, caption)


def _departures(split: str, entry: LedgerEntry) -> list[str]:
    return [
        f"{split}, {entry.group}",
        f"{entry.examples:,}",
        f"{entry.departures:,}",
        f"{entry.gained:,}",
        f"{entry.lost:,}",
        f"{entry.both_wrong:,}",
        estimate(entry.net_gain, 2, signed=True),
        number(entry.p_value, 2),
    ]


def dissection_grid(splits: Sequence[SplitAudit]) -> Grid:
    """Return where the points of the confidence plot lie, by who is right."""
    known = {None: "", True: ", mislabelled", False: ", not mislabelled"}
    rows = [
        [
            f"{split.split}, {part.who}{known[part.mislabelled]}",
            f"{part.examples:,}",
            estimate(part.low_confidence_share, 1, 100),
            estimate(part.underfit_share, 1, 100),
        ]
        for split in splits
        for part in split.dissection
    ]
    caption = (
        "Underfit: the student is less confident than the teacher in the teacher's top class. Who is "
        "right is judged by the true labels where they are known."
    )
    return Grid(["who is right", "examples", "in the low part %", "underfit %"], rows, caption)


def checkpoint_grid(over: StudentOverTraining) -> Grid:
    """Return the numbers of a few checkpoints."""
    epochs = sorted({point.epoch for point in over.points})
    shown = {*epochs[:: max(1, -(-len(epochs) // _EPOCHS_SHOWN))], epochs[-1]}
    rows = [
        [
            f"{point.split}, epoch {point.epoch}",
            slope(point.slope_low),
            slope(point.slope_all),
            estimate(point.underfit, 1, 100),
            estimate(point.agreement, 1, 100),
            estimate(point.net_gain, 2, signed=True),
            estimate(point.mislabelled_right, 1, 100),
        ]
        for point in sorted(over.points, key=lambda point: (point.split, point.epoch))
        if point.epoch in shown
    ]
    headings = [
        "over training", "slope low", "slope all", "low, underfit %", "same class %",
        "net gain, points", "mislabelled right %",
    ]  # fmt: skip
    return Grid(headings, rows)


def over_training_sentence(over: StudentOverTraining) -> str:
    """Return which examples were measured, and the moment of a switch."""
    counts = ", ".join(f"{count:,} {split}" for split, count in over.examples.items())
    words = f"Over training: {counts} examples, compared with the final teacher."
    return words if over.switch is None else f"{words} Switch: {printable(moment(over.switch))}."


def change_grid(changes: Sequence[SwitchChange]) -> Grid:
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


def kernel_grid(kernels: StudentKernels) -> Grid:
    """Return how similar the kernels are to the teacher's."""
    rows = [
        [
            f"{one.who} and teacher",
            f"{one.examples:,} {one.split}",
            estimate(one.ntk_similarity, 3),
            estimate(one.centred_alignment, 3),
        ]
        for one in kernels.likenesses
    ]
    caption = (
        f"Tangent kernels at the last epochs, {kernels.likenesses[0].probes} random vectors; 1 is equal "
        "up to a factor. On few examples unrelated kernels are far above 0 too, so compare the rows."
    )
    return Grid(["kernels", "examples", "NTK similarity", "centred alignment"], rows, caption)


def _accuracy_headings(given: bool) -> list[str]:
    return [TRUE_LABELS, GIVEN_LABELS] if given else ["accuracy %"]


def _accuracies(found: Calibration, given: bool) -> list[str]:
    cells = [estimate(found.accuracy, 1, 100)]
    return [*cells, estimate(found.accuracy_on_given_labels, 1, 100)] if given else cells


def _teacher(pairs: Sequence[tuple[StudentAudit, SplitAudit]], given: bool) -> str:
    found = pairs[0][1].calibration[0]
    if not given:
        return f"Accuracy of the teacher: {estimate(found.accuracy, 1, 100)} %. "
    true, wrong = _accuracies(found, given)
    return f"Accuracy of the teacher: {true} % on true labels, {wrong} % on given labels. "


def _warning(text: str) -> Text:
    return Text(f"warning: {printable(text)}", style="bold red")


def _mean(value: Estimate, infinite: Infinite | None) -> str:
    if infinite is None:
        return number(value.value)
    return f"∞ at {infinite.examples:,}, {number(infinite.others.value)} at the others"


def _chance(interval: Interval) -> str:
    return f"{percent(interval.low, 2)}–{percent(interval.high, 2)} if calibrated"


def _most_informative(split: SplitAudit) -> list[str]:
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
