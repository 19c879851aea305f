"""A constructed study, its measurements and the parts of a page, for the tests of the report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
from rich.console import Console

from distillens.measures.confidence import audit_with_points
from distillens.report import accuracy_table
from distillens.report.contents import Contents
from distillens.report.figures.points import Points
from distillens.results.base import Estimate, Interval
from distillens.results.complexity import (
    ComplexityCurves,
    ComplexityPoint,
    ComplexityValue,
    Spectrum,
)
from distillens.results.confidence import Confidence, StudentAudit
from distillens.results.training import Cell, Provenance, Row, StudyResult

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='alert(3)'"

# name, kind, accuracies by seed, train accuracy
STUDIED = (
    ("teacher", "teacher", (0.920,), 0.998),
    ("no KD", "one-hot", (0.844, 0.850, 0.856), 0.991),
    ("offline τ=1", "offline", (0.851, 0.856, 0.852), 0.985),
    ("offline τ=4", "offline", (0.868, 0.871, 0.866), 0.942),
    ("online τ=4", "online", (0.881, 0.886, 0.884), 0.951),
)

# The sides of the intervals: exaggerating when low, no different when high; and so on.
SLOPES = {
    "no KD": (0.78, 0.71),
    "offline τ=1": (1.02, 0.94),
    "offline τ=4": (1.21, 0.98),
    "online τ=4": (1.34, 1.12),
}


def around(value: float, half: float, method: str = "Student's t over seeds") -> Estimate:
    return Estimate(value, Interval(value - half, value + half, 0.95, method))


def row_of(name: str, kind: str, accuracies: tuple[float, ...], train: float) -> Row:
    values = np.array(accuracies)
    many = len(values) > 1
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if many else None
    accuracy = around(mean, 2.48 * spread) if spread is not None else Estimate(mean)
    differences = values - np.array(STUDIED[1][2]) if many else values
    half = 2.48 * float(differences.std(ddof=1)) if many else 0.0
    gain = None if kind in {"teacher", "one-hot"} else around(float(differences.mean()), half)
    return Row(
        position=[studied[0] for studied in STUDIED].index(name) - 1,
        name=name,
        kind=kind,
        seeds=tuple(range(len(values))),
        accuracy=accuracy,
        deviation=spread,
        gain=gain,
        train_accuracy=train,
        parameters=11_689_512 if kind == "teacher" else 61_706,
        seconds=184.0 if kind == "teacher" else 7.25,
    )


def value_of(size: float, shrink: float) -> ComplexityValue:
    return ComplexityValue(
        plain=40 * size,
        adjusted=size,
        adjusted_star=1.1 * size,
        normalised=size / shrink,
        normalised_star=1.1 * size / shrink,
        target_size=shrink,
        ridge=1e-6,
        residual=3.2e-11,
    )


def curves_of(student: str = "no KD") -> ComplexityCurves:
    points = []
    for epoch in range(0, 21, 2):
        share = epoch / 20
        dip = 1.0 - 1.6 * share * (1 - share) * np.exp(-share)
        sizes = {
            "labels": (0.95 * dip + 0.25 * share, 1.0),
            "random labels": (1.04 + 0.01 * np.sin(epoch), 1.0),
            "final teacher": (0.85 * dip + 0.2 * share, 0.93),
            "online teacher": (0.06 + 0.7 * share**1.4, 0.2 + 0.73 * share),
        }
        for targets, (size, shrink) in sizes.items():
            value = value_of(float(size), float(shrink))
            teacher_epoch = {"final teacher": 20, "online teacher": epoch}.get(targets)
            points.append(ComplexityPoint(epoch, targets, value, 0.8 * float(size), teacher_epoch))
    spectra = tuple(
        Spectrum(epoch, 5.1e5 + 100 * epoch, 0.02, 8.0e4, 4.0e6) for epoch in range(0, 21, 2)
    )
    return ComplexityCurves(
        student=student,
        seed=0,
        split="test",
        examples=512,
        form="class-diagonal",
        coding="softmax targets, centred over classes",
        temperature=1.0,
        random_draws=5,
        points=tuple(points),
        spectra=spectra,
        notes=("a ridge of 1e-06 was added to the diagonal at 2 of 11 checkpoints",),
    )


def log_odds(name: str, examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return log-odds of teacher and student, with the slopes of a student below and above 3."""
    generator = np.random.default_rng(seed)
    x = generator.gamma(3.0, 1.15, examples)
    low, high = SLOPES[name]
    y = 2.4 + np.where(x < 3, low, high) * (x - 3) + generator.normal(0, 0.4, examples)
    return x, y


@cache
def audited(name: str, seed: int = 0) -> tuple[StudentAudit, dict[str, Points]]:
    """Return the audit of a student of two classes and its points by split."""
    roles: dict[str, dict[str, np.ndarray]] = {"teacher": {}, "student": {}, "labels": {}}
    for place, split in enumerate(("train", "test")):
        x, y = log_odds(name, (300, 400)[place], 2 * seed + place)
        roles["teacher"][split], roles["student"][split] = (np.stack([z, 0 * z], 1) for z in (x, y))
        labels = np.random.default_rng(seed).random(len(x)) < 0.2
        roles["labels"][split] = labels.astype(int)
    audit, points = audit_with_points(roles, kind="logits", resamples=100)
    student = StudentAudit(name, "offline", seed, audit)
    return student, {split: each.arrays() for split, each in points.items()}


def measured(*students: tuple[StudentAudit, dict[str, Points]]) -> Confidence:
    return Confidence(1, None, tuple(student for student, _ in students))


def confidence() -> tuple[Confidence, list[dict[str, Points]]]:
    students = [audited(name) for name in SLOPES]
    return measured(*students), [points for _, points in students]


def study() -> StudyResult:
    rows = tuple(row_of(*studied) for studied in STUDIED)
    cells = tuple(
        Cell(
            name,
            seed,
            61_706,
            20,
            7.25,
            train,
            accuracy,
            4000,
            accuracy + 0.003,
            "9f" * 32,
            place - 1,
        )
        for place, (name, _, accuracies, train) in enumerate(STUDIED)
        for seed, accuracy in enumerate(accuracies)
    )
    return StudyResult(
        schema_version=StudyResult.SCHEMA_VERSION,
        name="digits: ResNet-20 to LeNet",
        description="Which supervision can a LeNet of 61,706 parameters learn from a ResNet-20?",
        loss="cross-entropy",
        classes=10,
        train_examples=9_000,
        validation_examples=1_000,
        test_examples=4_000,
        changed_labels=0,
        rows=rows,
        cells=cells,
        provenance=Provenance(
            command="distillens run digits --out runs/demo",
            started="2026-11-22T03:25:10+00:00",
            finished="2026-11-22T03:31:02+00:00",
            seconds=352.0,
            versions={"distillens": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
            machine="2 cores, x86_64, CPU",
            data_fingerprint="sha256:5d2f" + "0" * 60,
            teacher_digest="sha256:77ab" + "1" * 60,
        ),
        notes=("the validation split is small: checkpoints were not chosen on it",),
    )


def contents(
    result: StudyResult | None = None,
    found: Confidence | None = None,
    points: Sequence[Mapping[str, Points]] = (),
    complexity: tuple[ComplexityCurves, ...] | None = None,
) -> Contents:
    """Return what a report of the study shows, with curves unless others are given."""
    return Contents(
        study() if result is None else result,
        (curves_of(),) if complexity is None else complexity,
        found,
        points,
    )


def validated(accuracies: Mapping[str, float | None]) -> StudyResult:
    """Return the study with other mean validation accuracies of some students."""
    result = study()
    return replace(
        result,
        cells=tuple(
            replace(cell, validation_accuracy=accuracies[cell.supervision])
            if cell.supervision in accuracies
            else cell
            for cell in result.cells
        ),
    )


def terminal(result: StudyResult, width: int = 160, colour: bool = False) -> str:
    console = Console(
        width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    with console.capture() as capture:
        console.print(accuracy_table(result))
    return capture.get()


def own_text(page: str) -> str:
    """Return the page without the one script that is Vega's."""
    scripts = re.findall(r"<script>.*?</script>", page, flags=re.DOTALL)
    return page.replace(max(scripts, key=len), "")


class Elements(HTMLParser):
    """The tags and the (attribute, value) pairs that a browser finds in a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(key, value or "") for key, value in attrs}


def figures(page: str) -> dict[str, dict]:
    blocks = re.findall(
        r'<script type="application/json" id="([^"]*)">(.*?)</script>', page, flags=re.DOTALL
    )
    return {identity: json.loads(text) for identity, text in blocks}


def drawn(figure: dict) -> dict[str, tuple[list, list]]:
    """Return x and y of each curve of a figure by its name."""
    found = {}
    for curve in figure["layer"][-1]["layer"]:
        x, y, *_ = zip(*curve["data"]["values"], strict=True)
        found[json.loads(curve["transform"][0]["calculate"])] = (list(x), list(y))
    return found


def colours(figure: dict) -> dict[str, str]:
    """Return the colour of each curve of a figure by its name."""
    scale = figure["layer"][-1]["layer"][0]["encoding"]["color"]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))
