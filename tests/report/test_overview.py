"""The first screen: its sentences and its chart state what the results hold."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from report_cases import ATTACK, confidence, contents, own_text, study, validated

from distillens.errors import RunError
from distillens.report import render
from distillens.report.contents import Contents
from distillens.report.sections.examples import examples_part
from distillens.report.sections.overview import chart, facts, overview_part, verdict_sentence
from distillens.report.verdict import Judgement, Verdict, judge
from distillens.results.base import Estimate, Interval
from distillens.results.training import Cost, NetworkCost, StudyResult

MEANS = {"no KD": 0.9, "offline τ=1": 0.91, "offline τ=4": 0.85, "online τ=4": 0.8}


def overview(shown: Contents) -> dict[str, Any]:
    return overview_part(shown, judge(shown.result))


def judged(value: float, low: float, high: float) -> tuple[Judgement, StudyResult]:
    """A judgement of a gain in percentage points, and the study that it is about."""
    gain = Estimate(value / 100, Interval(low / 100, high / 100, 0.95, "constructed"))
    result = validated(MEANS)
    rows = tuple(replace(row, gain=gain) if row.gain else row for row in result.rows)
    result = replace(result, rows=rows)
    return judge(result), result


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (
            (2.0, 0.5, 3.5),
            "offline τ=1 gains 2.0 points over labels alone (95 % interval +0.5 to +3.5).",
        ),
        ((-2.0, -3.5, -0.5), "offline τ=1 loses 2.0 points against labels alone"),
        ((0.1, -0.2, 0.4), "by +0.1 points (95 % interval −0.2 to +0.4), which is within ±0.5"),
        (
            (1.0, -1.0, 3.0),
            "by +1.0 points (95 % interval −1.0 to +3.0), an interval that includes 0.",
        ),
    ],
)
def test_the_verdict_names_the_gain_and_its_interval(
    gain: tuple[float, float, float], words: str
) -> None:
    assert words in verdict_sentence(*judged(*gain))


def test_labels_alone_with_the_higher_validation_accuracy_are_mentioned() -> None:
    result = validated({**MEANS, "no KD": 0.95})
    part = overview(contents(result))
    assert any(re.search(r"95\.00? % against 91\.00? %", one) for one in part["remarks"])
    assert not any("labels alone" in one for one in overview(contents(validated(MEANS)))["remarks"])


def cost(parameters: int, latency: float) -> Cost:
    return Cost(parameters, 10 * parameters, 4 * parameters, latency, (latency, latency), 64,
                latency, (latency, latency), 30, 1, "cpu")  # fmt: skip


def test_costs_are_ratios_to_the_teacher() -> None:
    networks = (
        NetworkCost("teacher", "resnet8", cost(80_000, 1.0)),
        NetworkCost("student", "mlp", cost(4_000, 2.0)),
    )
    found, result = judged(2.0, 0.5, 3.5)
    shown = {fact.name: fact for fact in facts(found, replace(result, costs=networks))}
    assert shown["Parameters"].value == "20× less"
    assert shown["Parameters"].detail == "4,000 instead of 80,000"
    assert shown["Latency of one example"].value == "2.0× more"
    row = found.row
    assert row is not None
    assert (
        shown["Distance to the teacher"].value
        == f"{100 * (0.920 - row.accuracy.value):.1f} points below"
    )


def test_the_chart_places_accuracies_on_its_own_axis() -> None:
    result = study()
    drawn = chart(result, judge(result))
    assert drawn is not None
    (first_x, first), (last_x, last) = drawn.ticks[0], drawn.ticks[-1]
    assert (first_x, last_x) == (0, 100)
    low, high = float(first), float(last)
    for row, shown in zip(result.rows, drawn.rows, strict=True):
        expected = 100 * (100 * row.accuracy.value - low) / (high - low)
        assert shown.mean == pytest.approx(expected, abs=0.01)
        cells = [cell for cell in result.cells if cell.position == row.position]
        assert len(shown.dots) == len(cells)
    guides = {name: x for x, name in drawn.guides}
    assert guides["teacher"] == pytest.approx(drawn.rows[0].mean)
    assert guides["labels alone"] == pytest.approx(drawn.rows[1].mean)
    assert len(drawn.ticks) <= 8


def test_a_study_without_accuracies_has_no_chart() -> None:
    result = replace(study(), rows=(), cells=())
    assert chart(result, judge(result)) is None
    assert "Cannot be told" in render(contents(result))


def test_differing_examples_come_from_the_judged_student_and_from_each_outcome() -> None:
    found, points = confidence()
    part = overview(contents(validated(MEANS), found, points))
    assert part["differing"]
    outcomes = [one.outcome for one in part["differing"]]
    assert len(set(outcomes)) == len(set(outcomes[:3]))
    student = next(one for one in found.students if one.student == "offline τ=1")
    split = next(one for one in student.audit.splits if one.split == "test")
    rows = {f"test, row {one.row}" for one in split.ledger.telling}
    assert {one.where for one in part["differing"]} <= rows


def test_a_hostile_name_stays_text_on_the_first_screen() -> None:
    result = validated(MEANS)
    rows = tuple(
        replace(row, name=ATTACK) if row.name == "offline τ=1" else row for row in result.rows
    )
    page = own_text(render(contents(replace(result, rows=rows))))
    assert "<script>alert" not in page
    assert not re.search(r"<img[^>]+onerror", page)


def test_the_order_of_the_page_is_verdict_chart_then_sections() -> None:
    page = own_text(render(contents(validated(MEANS))))
    places = [
        page.index(part) for part in ('class="verdict', 'class="accuracies"', 'id="accuracy"')
    ]
    assert places == sorted(places)
    assert page.count('class="word"') == 1


def test_a_verdict_without_a_named_supervision_says_why() -> None:
    result = validated(dict.fromkeys(MEANS))
    part = overview(contents(result))
    assert part["verdict"] == Verdict.CANNOT_BE_TOLD
    assert "validation examples" in part["sentence"]
    assert part["facts"] == []


def gallery(points: dict[str, Any]) -> dict[str, Any]:
    found, all_points = confidence()
    changed = [{split: {**one, **points} for split, one in each.items()} for each in all_points]
    shown = contents(validated(MEANS), found, changed)
    return examples_part(shown, judge(shown.result))


@pytest.mark.parametrize(
    "points",
    [
        {"x": np.zeros((2, 2))},
        {"teacher_class": np.array([0, 5]), "student_class": np.array([0, 1])},
        {"teacher_class": np.array([0, 1]), "student_class": np.array([0])},
        {"teacher_class": np.array(["a", "b"]), "student_class": np.array([0, 1])},
    ],
)
def test_points_that_do_not_fit_are_one_line(points: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="measure"):
        gallery(points)


def test_cards_are_at_most_200_and_in_the_order_of_the_probability_that_moved() -> None:
    found, points = confidence()
    shown = contents(validated(MEANS), found, points)
    cards = examples_part(shown, judge(shown.result))["cards"]
    assert 0 < len(cards) <= 200
    moved = {
        (student.student, split.split, one.row): one.moved
        for student in found.students
        for split in student.audit.splits
        for one in split.ledger.telling
    }
    order = [
        moved[card.supervision, card.split, int(card.where.split()[-1].removesuffix(","))]
        for card in cards
    ]
    assert order == sorted(order, reverse=True)


def test_names_of_the_data_are_not_given_to_tokens() -> None:
    run: Any = SimpleNamespace(data={"classes": ["negative", "positive"]})
    shown = replace(contents(validated(MEANS)), run=run)
    assert shown.result.classes == 10
    assert shown.class_names == ()
    two = replace(shown, result=replace(shown.result, classes=2))
    assert two.class_names == ("negative", "positive")
