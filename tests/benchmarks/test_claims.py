"""The criteria for the papers' claims give the verdict that their text defines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import claims
import numpy as np
import pytest
from claims import FAILS, HOLDS, IN_PART, OPEN, Case, Students

import distillens
from distillens.results.base import Estimate, Interval
from distillens.results.complexity import ComplexityCurves, ComplexityPoint, ComplexityValue
from distillens.results.complexity import TemperaturePoint as Temperature


def gain(value: float, half: float) -> Estimate:
    return Estimate(value, Interval(value - half, value + half, 0.95, "made up"))


@pytest.mark.parametrize(
    ("online", "offline", "over_labels", "verdict"),
    [
        (gain(2, 1), gain(3, 1), gain(5, 1), HOLDS),
        (gain(2, 1), gain(1, 3), gain(3, 3), IN_PART),
        (gain(1, 3), gain(1, 3), gain(2, 1), FAILS),
        (gain(-1, 3), gain(3, 1), gain(2, 1), IN_PART),
        (gain(-1, 3), gain(3, 1), gain(2, 3), FAILS),
        (gain(-5, 1), gain(2, 1), gain(-3, 1), FAILS),
    ],
)
def test_the_order_of_supervisions(
    online: Estimate, offline: Estimate, over_labels: Estimate, verdict: str
) -> None:
    assert claims.order_verdict(online, offline, over_labels) == verdict


def curves(online: list[float], final: list[float], labels: list[float]) -> ComplexityCurves:
    def value(adjusted: float) -> ComplexityValue:
        return ComplexityValue(adjusted, adjusted, adjusted, adjusted, adjusted, 1, 0, 0)

    targets = {"online teacher": online, "final teacher": final, "labels": labels}
    return ComplexityCurves(
        student="no KD", seed=0, split="test", examples=4, form="binary", coding="±1",
        temperature=1, random_draws=1, spectra=(),
        points=tuple(
            ComplexityPoint(epoch, name, value(each), None, None)
            for name, values in targets.items()
            for epoch, each in enumerate(values)
        ),
        temperatures=tuple(Temperature(13, t, value(1 / t)) for t in (1, 2, 4)),
    )  # fmt: skip


def test_complexity_over_training_and_temperatures() -> None:
    simple = curves([1, 1, 2, 2, 3], [3, 2, 3, 3, 3], [3, 2, 2.2, 2.1, 2.05])
    assert claims.share_below(simple) == 1
    assert claims.rises(simple, "final teacher")
    assert not claims.rises(simple, "labels")
    judged = claims.judge_complexity([simple] * 3, [simple] * 3, 3)
    assert [each.verdict for each in judged] == [HOLDS, IN_PART, HOLDS]
    half = curves([1, 1, 4, 4, 3], [3, 2, 3, 3, 3], [3, 2, 2, 2, 2.1])
    warm = replace(half, temperatures=half.temperatures[::-1])
    assert claims.falls(warm) == (True, True)
    flat = replace(half, temperatures=(half.temperatures[0],) * 2)
    judged = claims.judge_complexity([simple, simple, half], [simple, simple, flat], 3)
    assert [each.verdict for each in judged] == [IN_PART, IN_PART, FAILS]
    assert {each.verdict for each in claims.judge_complexity([simple] * 2, [], 3)} == {OPEN}


def test_confidence_counts_cases() -> None:
    def judged(exaggerated: int, test: int, train: int) -> list[str]:
        cases = [
            Case("", split, place < exaggerated, place % 3 < (test if split == "test" else train))
            for place, split in enumerate(("test",) * 3 + ("train",) * 3)
        ]
        return [each.verdict for each in claims.judge_confidence(cases)]

    assert judged(5, 3, 2) == [HOLDS, HOLDS]
    assert judged(4, 2, 3) == [IN_PART, IN_PART]
    assert judged(1, 2, 0) == [FAILS, FAILS]
    assert [each.verdict for each in claims.judge_confidence([])] == [OPEN, OPEN]
    good, bad = gain(2, 1), gain(1, 2)
    assert claims.judge_gain({"a": (good, good), "b": (good, good)}, 2).verdict == HOLDS
    assert claims.judge_gain({"a": (good, bad), "b": (bad, bad)}, 2).verdict == IN_PART
    assert claims.judge_gain({"a": (bad, good), "b": (bad, bad)}, 2).verdict == FAILS
    assert claims.judge_gain({"a": (good, good)}, 2).verdict == OPEN


def students(**accuracies: float) -> Students:
    right = {
        name: {0: np.arange(10_000) < round(share * 10_000)} for name, share in accuracies.items()
    }
    return Students(1, 0.7, right)


def test_update_periods_and_switching() -> None:
    names = ["a", "b", "c"]
    assert claims.judge_period(students(a=0.66, b=0.65, c=0.6), names).verdict == HOLDS
    assert claims.judge_period(students(a=0.66, b=0.59, c=0.6), names).verdict == IN_PART
    assert claims.judge_period(students(a=0.6, b=0.6, c=0.6), names).verdict == FAILS
    base = students(**{"no KD": 0.5, "offline τ=4": 0.6})
    both, one, none = students(x=0.56, y=0.56), students(x=0.56, y=0.5), students(x=0.5, y=0.5)
    found = [
        claims.judge_switching(base, each, "x", "y", repaired).verdict
        for each, repaired in ((both, True), (both, False), (one, True), (none, True))
    ]
    assert found == [HOLDS, IN_PART, IN_PART, FAILS]
    assert claims.judge_switching(base, both, "x", "y", None).verdict == OPEN


def test_claims_are_read_from_runs(tmp_path: Path) -> None:
    training = {"epochs": 2, "batch_size": 64, "learning_rate": 0.05}
    kinds = [{"kind": "one-hot"}]
    kinds += [{"kind": k, "temperature": t} for k in ("offline", "online") for t in (1, 4)]
    recipe = {
        "name": "cifar100-long",
        "seeds": [0, 1],
        "data": {"source": "digits", "test_size": 300, "train_size": 300},
        "teacher": {"model": {"name": "mlp", "hidden": [16]}, "training": training},
        "student": {"model": {"name": "mlp", "hidden": [4]}, "training": training},
        "supervisions": kinds,
        "complexity": None,
    }
    folder = tmp_path / "cifar100-long"
    result = distillens.run(recipe, folder)
    judged = {each.claim: each for each in claims.judge_all(tmp_path)}
    rows = {row.name: row for row in result.rows}
    assert set(judged) == {"1a", "1b", "3a", "3b", "3c"}
    assert judged["1a"].verdict in (HOLDS, IN_PART, FAILS)
    assert claims.shown(rows["offline τ=4"].gain) in judged["1a"].numbers
    assert judged["3a"].verdict == OPEN
    # Without one of the students the claim is open, and the numbers are those of the other seed.
    next((folder / "students").glob("*offline-t4/seed-1/cell.json")).unlink()
    judged = {each.claim: each for each in claims.judge_all(tmp_path)}
    assert set(judged) == {"1a", "1b"}
    assert judged["1a"].verdict == OPEN
    assert "1 of 2 seeds" in judged["1a"].numbers
    assert judged["1b"].verdict != OPEN
