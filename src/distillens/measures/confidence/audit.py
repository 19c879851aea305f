"""Audit a student against its teacher: exaggeration, fidelity, calibration and departures.

Shapes: N examples, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from distillens.errors import MeasureError, nearest
from distillens.measures.confidence.calibration import measure_calibration
from distillens.measures.confidence.departures import departure_ledger
from distillens.measures.confidence.exaggeration import dissect, measure_exaggeration
from distillens.measures.confidence.log_odds import Points
from distillens.measures.confidence.outputs import SUM_TOLERANCE, OutputKind
from distillens.measures.confidence.per_example_statistics import (
    PerExampleStatistics,
    per_example_statistics,
)
from distillens.measures.confidence.splits import (
    OUTPUT_ROLES,
    Given,
    Split,
    by_split,
    check_split,
)
from distillens.measures.statistics.bootstrap import Resampler, shared_resampler
from distillens.measures.statistics.intervals import observed_share
from distillens.results.base import SCHEMA
from distillens.results.confidence import Audit, Fidelity, KindRead, SplitAudit


def audit(
    teacher: Given,
    student: Given,
    labels: Given,
    *,
    inputs: Given | None = None,
    given_labels: Given | None = None,
    mislabelled: Given | None = None,
    reference: Given | None = None,
    other_teacher: Given | None = None,
    kind: str | Mapping[str, str] | None = None,
    tolerance: float = SUM_TOLERANCE,
    resamples: int = 1000,
    bootstrap_seed: int = 0,
    listed_departures: int = 10,
) -> Audit:
    """Audit a student against its teacher, in one pass over the arrays.

    Each array may be a NumPy array, a tensor or array of another library, a table of pandas,
    polars or PyArrow, `Rows` with a stable index, or a mapping from the name of a split to one of
    these. Without a mapping there is one split, "all". Rows are matched by index where arrays have
    one, and columns by name where both networks have names.

    Parameters
    ----------
    teacher, student
        Outputs (N, C) at τ = 1, or (N, 1) for one output that speaks of class 1. Memory maps are
        read in chunks. A logit of −∞ masks a class.
    labels
        True classes (N,), integers in 0 … C−1, or names of classes where the outputs have a header;
        or one-hot rows (N, C).
    inputs
        (N, …); text and single numbers are shown with the listed departures.
    given_labels
        The classes (N,) that the networks were trained on, if some of them are known to be wrong;
        ``labels`` then holds the true classes. Predictions are judged by the true classes, and
        accuracies are also reported on the given labels.
    mislabelled
        Mask (N,), 1 or True where the label is known to be wrong. By default the examples whose given
        label is not the true one.
    reference
        Outputs of a student trained on labels alone (one-hot).
    other_teacher
        Outputs of a teacher trained with another seed.
    kind
        "logits" or "probabilities" for all outputs, or a mapping from role ("teacher", "student",
        "one-hot student", "other teacher") to one of them. What is not stated is detected, and the
        result gives the reason; it is an error if it cannot be detected.
    tolerance
        Largest accepted deviation of the sum of a row of rounded probabilities from one. Rows
        are divided by their sum, and the result notes by how much they were off.
    resamples, bootstrap_seed
        Number of bootstrap resamples and their seed; see `distillens.measures.statistics.bootstrap`.
    listed_departures
        Number of departures to list of each outcome: gained, lost, both wrong.

    Returns
    -------
    Audit
        One `SplitAudit` per split.

    Raises
    ------
    MeasureError
        Arrays do not fit each other, a value is NaN or +∞, rows of probabilities do not sum to one,
        a column looks like row numbers or predicted classes, labels are out of range or all the
        same, a split is empty.
    """
    given = {
        "teacher": teacher, "student": student, "labels": labels, "inputs": inputs,
        "given labels": given_labels, "mislabelled": mislabelled, "one-hot student": reference,
        "other teacher": other_teacher,
    }  # fmt: skip
    return audit_with_points(
        given, kind=kind, tolerance=tolerance, resamples=resamples, bootstrap_seed=bootstrap_seed,
        listed_departures=listed_departures,
    )[0]  # fmt: skip


def audit_with_points(
    given: Mapping[str, Given | None],
    *,
    kind: str | Mapping[str, str] | None = None,
    tolerance: float = SUM_TOLERANCE,
    resamples: int = 1000,
    bootstrap_seed: int = 0,
    listed_departures: int = 10,
) -> tuple[Audit, dict[str, Points]]:
    """Return `audit`'s result, and the points of the confidence plot by split.

    ``given`` holds the arrays of `audit` by role: those of `OUTPUT_ROLES`, "labels", "inputs",
    "given labels" and "mislabelled". A value of None leaves a role out.
    """
    started = time.perf_counter()
    kinds = _stated(kind)
    splits: dict[str, Split] = {}
    for name, roles in by_split(given).items():
        with _about(name):
            splits[name] = check_split(roles, kinds, tolerance)
    _check_classes(splits)
    audits, points = [], {}
    for name, split in splits.items():
        resampler = shared_resampler(len(split.labels_N), resamples, bootstrap_seed)
        references = {
            role: split.outputs[role] for role in OUTPUT_ROLES[2:] if role in split.outputs
        }
        with _about(name):
            found = per_example_statistics(
                split.outputs["teacher"], split.outputs["student"], split.labels_N, references
            )
        tops = (found.teacher.top_N.astype(np.int32), found.student.top_N.astype(np.int32))
        points[name] = Points(
            found.x_N, found.y_N, found.who_is_right(), split.mislabelled_N, *tops
        )
        audits.append(_audit_split(name, split, found, points[name], resampler, listed_departures))
    result = Audit(
        schema_version=SCHEMA,
        classes=next(iter(splits.values())).classes,
        kinds=tuple(
            KindRead(role, name, outputs.kind, outputs.how)
            for name, split in splits.items()
            for role, outputs in split.outputs.items()
        ),
        splits=tuple(audits),
        resamples=resamples,
        bootstrap_seed=bootstrap_seed,
        version=_version(),
        seconds=time.perf_counter() - started,
        warnings=tuple(warning for split in audits for warning in _chance_warnings(split)),
    )
    return result, points


def _audit_split(
    name: str,
    split: Split,
    found: PerExampleStatistics,
    points: Points,
    resampler: Resampler,
    listed_departures: int,
) -> SplitAudit:
    notes, labels_N = [*split.notes], split.labels_N
    notes += [note for outputs in split.outputs.values() for note in outputs.notes]
    exaggeration, more = measure_exaggeration(
        found.x_N, found.y_N, found.references, split.mislabelled_N, found.placed, resampler
    )
    if found.placed:
        notes.append(
            f"{found.placed:,} points had a probability of exactly 0 or 1 and were placed at log-odds "
            f"of ±{found.edge:.3g}; logits have no such limit"
        )
    return SplitAudit(
        split=name,
        examples=len(split.labels_N),
        exaggeration=exaggeration,
        fidelity=_fidelity(found, resampler),
        calibration=(
            measure_calibration("teacher", found.teacher, labels_N, resampler, split.given_N),
            measure_calibration("student", found.student, labels_N, resampler, split.given_N),
        ),
        ledger=departure_ledger(found, split, listed_departures),
        dissection=dissect(points),
        majority=float(np.bincount(split.labels_N).max() / len(split.labels_N)),
        notes=tuple(notes + more),
    )


def _fidelity(found: PerExampleStatistics, resampler: Resampler) -> Fidelity:
    same_N = found.teacher.top_N == found.student.top_N
    forward_N, backward_N = found.kl_teacher_student_N, found.kl_student_teacher_N
    return Fidelity(
        identical=found.differing == 0 and bool(same_N.all()),
        agreement=observed_share(same_N),
        kl_teacher_student=resampler.mean(forward_N),
        kl_student_teacher=resampler.mean(backward_N),
        total_variation=resampler.mean(found.total_variation_N),
        infinite_kl_teacher_student=resampler.without_infinite(forward_N),
        infinite_kl_student_teacher=resampler.without_infinite(backward_N),
    )


def _chance_warnings(split: SplitAudit) -> tuple[str, ...]:
    """Return a sentence for each network whose accuracy is not above chance.

    Its accuracy is above chance if the upper end of its Wilson interval is above the share of the most
    frequent class.
    """
    found = []
    for one in split.calibration:
        interval, majority = one.accuracy.interval, split.majority
        if interval is None or majority is None or interval.high > majority:
            continue
        found.append(
            f"the accuracy of the {one.who} on the split {split.split!r} is not above chance: "
            f"{100 * one.accuracy.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}], "
            f"the most frequent class has {100 * majority:.1f} %; check that labels, rows and columns "
            "belong together"
        )
    return tuple(found)


def _stated(kind: str | Mapping[str, str] | None) -> dict[str, OutputKind | None]:
    given = kind if isinstance(kind, Mapping) else dict.fromkeys(OUTPUT_ROLES, kind)
    stated: dict[str, OutputKind | None] = dict.fromkeys(OUTPUT_ROLES)
    for role, value in given.items():
        if role not in OUTPUT_ROLES:
            raise MeasureError(
                f"kind names {role!r}, which is no role{nearest(role, OUTPUT_ROLES)}"
            )
        if value == "logits" or value == "probabilities":
            stated[role] = value
        elif value is not None:
            raise MeasureError(f"the kind of outputs is {value!r}; give logits or probabilities")
    return stated


def _check_classes(splits: dict[str, Split]) -> None:
    counts = {name: split.classes for name, split in splits.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise MeasureError(f"the splits have different numbers of classes: {told}")
    seen = {int(c) for split in splits.values() for c in np.unique(split.labels_N)}
    if len(seen) == 1:
        raise MeasureError(
            f"all labels are class {seen.pop()}; an audit needs examples of at least two classes"
        )


@contextmanager
def _about(split: str) -> Iterator[None]:
    """Name the split in errors."""
    try:
        yield
    except MeasureError as error:
        raise MeasureError(f"split {split!r}: {error}") from None


def _version() -> str:
    # From the installed package: importing the root here would tie measures to every other floor.
    try:
        return version("distillens")
    except PackageNotFoundError:
        return "not installed"
