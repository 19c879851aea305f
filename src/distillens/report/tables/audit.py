"""An audit in words and tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distillens.report.figures.audit_curves import moment
from distillens.report.tables.text import estimate, fixed, number, percent, plural, printable, slope
from distillens.results.base import Estimate, Interval
from distillens.results.confidence import (
    Audit,
    Exaggeration,
    Infinite,
    LedgerEntry,
    OverTraining,
    RunAudit,
    SplitAudit,
    Verdict,
)

_SHOWN = 5
_EPOCHS_SHOWN = 6


def audit_text(audit: Audit) -> Group:
    """Return an audit for the terminal: per split the verdict, slopes, fidelity and the ledger."""
    parts: list[RenderableType] = [_warning(warning) for warning in audit.warnings]
    for role in dict.fromkeys(read.role for read in audit.kinds):
        reads = [read for read in audit.kinds if read.role == role]
        told = dict.fromkeys(f"{read.kind} ({read.how})" for read in reads)
        parts.append(Text(f"{role}: {'; '.join(told)}"))
    for split in audit.splits:
        parts += _split(split)
    return Group(*parts)


def run_audit_text(audit: RunAudit) -> Group:
    """Return the audit of a run's students for the terminal, with the way there and the kernels."""
    parts: list[RenderableType] = [
        _warning(f"{student.student}, seed {student.seed}: {warning}")
        for student in audit.students
        for warning in student.audit.warnings
    ]
    if audit.other_teacher is not None:
        parts.append(Text(f"other teacher: that of the run {printable(audit.other_teacher)}"))
    for student in audit.students:
        title = f"\n{printable(student.student)}, seed {student.seed}"
        parts += [Text(title, style="bold underline"), audit_text(student.audit)]
        if student.over_training is not None:
            parts += _way(student.over_training)
        parts += [
            Text(
                f"Kernels of {one.who} and teacher on {one.examples:,} {one.split} examples: NTK "
                f"similarity {estimate(one.ntk_similarity, 3)}, centred alignment "
                f"{estimate(one.centred_alignment, 3)}."
            )
            for one in student.kernels
        ]
        parts += [Text(f"note: {printable(note)}") for note in student.notes]
    return Group(*parts)


def _warning(text: str) -> Text:
    return Text(f"warning: {printable(text)}", style="bold red")


def _way(over: OverTraining) -> list[RenderableType]:
    epochs = sorted({point.epoch for point in over.points})
    step = max(1, -(-len(epochs) // _EPOCHS_SHOWN))
    shown = {*epochs[::step], epochs[-1]}
    heads = ["over training", "slope low", "slope all", "low, underfit %", "same class %"]
    table = _table([*heads, "net gain, points", "mislabelled right %"])
    for point in sorted(over.points, key=lambda point: (point.split, point.epoch)):
        if point.epoch in shown:
            cells = (
                f"{point.split}, epoch {point.epoch}",
                slope(point.slope_low),
                slope(point.slope_all),
                estimate(point.underfit, 1, 100),
                estimate(point.agreement, 1, 100),
                estimate(point.net_gain, 2, signed=True),
                estimate(point.mislabelled_right, 1, 100),
            )
            table.add_row(*(Text(cell) for cell in cells))
    counts = ", ".join(f"{count:,} {split}" for split, count in over.examples.items())
    parts: list[RenderableType] = [
        table,
        Text(f"Over training: {counts} examples, against the final teacher."),
    ]
    if over.switch is not None:
        parts.append(Text(f"Switch: {printable(moment(over.switch))}."))
    for change in over.changes:
        if change.quantity == "underfit":
            parts.append(
                Text(
                    f"{change.split}: {percent(change.before, 1)} % of the low part underfit before the "
                    f"switch; {estimate(change.soon, 1, 100, signed=True)} points soon after, "
                    f"{estimate(change.last, 1, 100, signed=True)} at the end ({change.direction})."
                )
            )
    return parts


def _split(split: SplitAudit) -> list[RenderableType]:
    exaggeration = split.exaggeration
    title = f"\n{printable(split.split)}: {plural(split.examples, 'example')}"
    parts: list[RenderableType] = [
        Text(title, style="bold"),
        Text(exaggeration.reading),
        _slopes(exaggeration),
    ]
    place = exaggeration.mislabelled
    if place is not None:
        parts.append(
            Text(
                f"Mislabelled ({place.examples:,}): "
                f"{estimate(place.underfit_share, 1, 100)} % less sure than the teacher, "
                f"others {estimate(place.underfit_share_of_others, 1, 100)} %; "
                f"{estimate(place.low_confidence_share, 1, 100)} % in the low part."
            )
        )
    fidelity = split.fidelity
    parts.append(
        Text(
            f"Fidelity: same top class {estimate(fidelity.agreement, 1, 100)} %, "
            f"KL(teacher ‖ student) "
            f"{_mean(fidelity.kl_teacher_student, fidelity.infinite_kl_teacher_student)}, "
            f"KL(student ‖ teacher) "
            f"{_mean(fidelity.kl_student_teacher, fidelity.infinite_kl_student_teacher)} nats, "
            f"total variation {number(fidelity.total_variation.value)}."
        )
    )
    parts += [_calibration(split), _ledger(split), *_telling(split)]
    parts += [Text(f"note: {printable(note)}") for note in split.notes]
    return parts


def _slopes(found: Exaggeration) -> Table:
    fits = (found.slope_all, found.slope_low, found.slope_high)
    references = [reference.name for reference in found.slope_all.references]
    heads = ["confidence plot", "points", "slope", "robust", *references, "verdict"]
    table = _table(heads)
    for fit in fits:
        others = {reference.name: slope(reference.ordinary) for reference in fit.references}
        cells = [f"{fit.points:,}", slope(fit.ordinary), slope(fit.robust)]
        _row(
            table, f"{fit.part}, slope", cells, [others.get(n, "–") for n in references],
            fit.verdict,
        )  # fmt: skip
    underfit = found.underfit
    shares = {one.name: estimate(one.share, 1, 100) for one in underfit.references}
    cells = [f"{underfit.points:,}", estimate(underfit.share, 1, 100), "–"]
    _row(
        table, "low, underfit %", cells, [shares.get(n, "–") for n in references],
        underfit.verdict,
    )  # fmt: skip
    return table


def _row(table: Table, name: str, cells: list[str], others: list[str], verdict: Verdict) -> None:
    table.add_row(*(Text(cell) for cell in (name, *cells, *others, verdict)))


def _calibration(split: SplitAudit) -> Table:
    heads = ["calibration", "accuracy %", "ECE %", "adaptive ECE %", "Brier", "NLL"]
    table = _table(heads)
    for found in split.calibration:
        cells = (
            found.who,
            estimate(found.accuracy, 1, 100),
            f"{percent(found.ece, 2)} ({_chance(found.ece_if_calibrated)})",
            f"{percent(found.adaptive_ece, 2)} ({_chance(found.adaptive_ece_if_calibrated)})",
            number(found.brier.value),
            _mean(found.nll, found.infinite_nll),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _mean(value: Estimate, infinite: Infinite | None) -> str:
    if infinite is None:
        return number(value.value)
    return f"∞ at {infinite.examples:,}, {number(infinite.others.value)} at the others"


def _chance(interval: Interval) -> str:
    return f"{percent(interval.low, 2)}–{percent(interval.high, 2)} if calibrated"


def _ledger(split: SplitAudit) -> Table:
    ledger = split.ledger
    heads = ["departs from the teacher", "of", "right, teacher wrong", "wrong, teacher right"]
    table = _table([*heads, "both wrong", "net gain, points", "McNemar p"])
    worst = sorted(
        (entry for entry in ledger.by_class if entry.departures),
        key=lambda entry: (-abs(entry.gained - entry.lost), -entry.departures),
    )
    entries = (ledger.all, *ledger.by_confidence, *ledger.by_mislabelled, *worst[:_SHOWN])
    for entry in entries:
        table.add_row(*(Text(cell) for cell in _cells(entry)))
    return table


def _cells(entry: LedgerEntry) -> Sequence[str]:
    return (
        f"{entry.group}: {entry.departures:,}",
        f"{entry.examples:,}",
        f"{entry.gained:,}",
        f"{entry.lost:,}",
        f"{entry.both_wrong:,}",
        estimate(entry.net_gain, 2, signed=True),
        number(entry.p_value, 2),
    )


def _telling(split: SplitAudit) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for one in split.ledger.telling[:_SHOWN]:
        place = f"row {one.row}" if one.index is None else f"index {one.index}"
        text = f": {printable(one.text)}" if one.text is not None else ""
        lines.append(
            Text(
                f"{place}, label {one.label}: teacher {one.teacher_class} "
                f"({fixed(one.teacher_on_its_class, 2)}), student {one.student_class} "
                f"({fixed(one.student_on_its_class, 2)}), {one.outcome}{text}"
            )
        )
    return [Text("Most telling:"), *lines] if lines else []


def _table(heads: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if place else "left")
    return table
