"""The page, the terminal, the JSON and `distillens.audit` give the same numbers for the same logits."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from report_cases import contents, study
from rich.console import Console

import distillens
from distillens.report import audit_text, render
from distillens.report.page import audit_page
from distillens.results.base import from_json, to_json
from distillens.results.confidence import Audit, Confidence, SplitAudit, StudentAudit

SIZES = {"train": 300, "test": 200}
TRUE, GIVEN = "accuracy, true labels %", "accuracy, given labels %"


def logits() -> dict[str, dict[str, np.ndarray]]:
    """Return logits and labels by role and split; 60 of the training labels are changed."""
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, np.ndarray]] = {
        role: {} for role in ("teacher", "student", "labels", "given_labels", "reference")
    }
    for split, size in SIZES.items():
        labels = rng.integers(4, size=size)
        teacher = 2 * rng.normal(size=(size, 4))
        teacher[np.arange(size), labels] += 2
        changed = rng.permutation(size) < (60 if split == "train" else 0)
        found["labels"][split] = labels
        found["given_labels"][split] = np.where(changed, (labels + 1) % 4, labels)
        found["teacher"][split] = teacher
        found["student"][split] = 1.3 * teacher + rng.normal(size=(size, 4))
        found["reference"][split] = rng.normal(size=(size, 4)) + teacher
    return found


@pytest.fixture(scope="module")
def audit() -> Audit:
    arrays: dict[str, Any] = logits()
    return distillens.audit(**arrays, resamples=100)


class Tables(HTMLParser):
    """The cells of all tables of a page, by the heading of the row and of the column."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: dict[tuple[str, str], str] = {}
        self._heads: list[str] = []
        self._row: list[str] = []
        self._text: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._heads = []
        elif tag == "tr":
            self._row = []
        elif tag in ("th", "td"):
            self._text = ""

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td") and self._text is not None:
            self._row.append(self._text)
            self._text = None
        elif tag == "tr" and not self._heads:
            self._heads = self._row
        elif tag == "tr":
            for head, cell in zip(self._heads[1:], self._row[1:], strict=True):
                # The first is that of the student who is shown.
                self.cells.setdefault((self._row[0], head), cell)


def printed(audit: Audit) -> dict[tuple[str, str], str]:
    """Return the cells of the tables in the terminal, alike."""
    console = Console(width=400)
    with console.capture() as capture:
        console.print(audit_text(audit))
    cells, heads = {}, []
    lines = capture.get().splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        parts = re.split(r"\s{2,}", line.strip())
        if set(below.strip()) == {"─"}:
            heads = parts
        elif len(parts) == len(heads) > 1:
            cells |= {
                (parts[0], head): cell for head, cell in zip(heads[1:], parts[1:], strict=True)
            }
    return cells


def expected(split: SplitAudit) -> dict[tuple[str, str], float]:
    """Return numbers of a split by the row and column of the table that shows them."""
    name, shown, entry = split.split, split.exaggeration, split.ledger.all
    found = {
        (f"{name}, slope, all", "student"): shown.slope_all.ordinary.value,
        (f"{name}, slope, low", "student"): shown.slope_low.ordinary.value,
        (f"{name}, slope, high", "robust"): shown.slope_high.robust.value,
        (f"{name}, slope, low", "one-hot student"): shown.slope_low.references[0].ordinary.value,
        (f"{name}, low, underfit %", "student"): 100 * shown.underfit.share.value,
        (f"{name}, all", "departures"): entry.departures,
        (f"{name}, all", "right, teacher wrong"): entry.gained,
        (f"{name}, all", "wrong, teacher right"): entry.lost,
        (f"{name}, all", "net gain, points"): entry.net_gain.value,
    }
    for one in split.calibration:
        row = f"{name}, {one.who}"
        found[row, TRUE] = 100 * one.accuracy.value
        found[row, "Brier"] = one.brier.value
        if one.accuracy_on_given_labels is not None:
            found[row, GIVEN] = 100 * one.accuracy_on_given_labels.value
    return found


def first_number(cell: str) -> tuple[float, float]:
    """Return the first number of a cell and half a unit of its last decimal."""
    match = re.match(r"[+−]?[\d,]+(\.\d+)?", cell)
    assert match is not None, cell
    decimals = len(match[1] or ".") - 1
    return float(match[0].replace(",", "").replace("−", "-")), 0.5001 * 10.0**-decimals


def agree(cells: dict[tuple[str, str], str], wanted: dict[tuple[str, str], float]) -> None:
    for place, value in wanted.items():
        shown, rounding = first_number(cells[place])
        assert shown == pytest.approx(value, abs=rounding), place


def test_page_terminal_json_and_audit_have_equal_numbers(audit: Audit):
    read = from_json(Audit, to_json(audit), "audit.json")
    assert read == audit
    student = StudentAudit("online τ=4", "online", 0, read)
    confidence = from_json(Confidence, to_json(Confidence(1, None, (student,))), "confidence.json")
    report = Tables(render(contents(replace(study(), changed_labels=60), confidence))).cells
    page = Tables(audit_page("arrays", confidence, [])).cells
    terminal = printed(audit)
    for split in audit.splits:
        wanted = expected(split)
        assert len(wanted) == (15 if split.split == "train" else 13)
        for cells in (report, page, terminal):
            agree(cells, wanted)
    # The overview shows the test split first.
    test, row = audit.splits[1], "online τ=4, seed 0"
    overview = {
        "slope, low": test.exaggeration.slope_low.ordinary.value,
        "same class %": 100 * test.fidelity.agreement.value,
        "only student right": test.ledger.right.only_student,
        "only teacher right": test.ledger.right.only_teacher,
        "accuracy %": 100 * test.calibration[1].accuracy.value,
    }
    agree(report, {(row, head): value for head, value in overview.items()})
    assert report[row, "exaggeration"] == test.exaggeration.verdict
    given = audit.splits[0].calibration[1].accuracy_on_given_labels
    assert given is not None
    agree(report, {(row, GIVEN): 100 * given.value})


def test_the_numbers_are_those_of_the_logits(audit: Audit):
    arrays = logits()
    train = audit.splits[0]
    for one, role in zip(train.calibration, ("teacher", "student"), strict=True):
        top = arrays[role]["train"].argmax(axis=1)
        assert one.accuracy.value == np.mean(top == arrays["labels"]["train"])
        assert one.accuracy_on_given_labels is not None
        wanted = np.mean(top == arrays["given_labels"]["train"])
        assert one.accuracy_on_given_labels.value == wanted
    right = [
        arrays[r]["train"].argmax(1) == arrays["labels"]["train"] for r in ("student", "teacher")
    ]
    assert train.ledger.right.only_student == np.count_nonzero(right[0] & ~right[1])
    assert train.ledger.right.only_teacher == np.count_nonzero(right[1] & ~right[0])
    changed = arrays["labels"]["train"] != arrays["given_labels"]["train"]
    assert train.exaggeration.mislabelled is not None
    assert train.exaggeration.mislabelled.examples == np.count_nonzero(changed) == 60
