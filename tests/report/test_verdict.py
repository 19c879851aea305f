"""The verdict: which intervals mean what, whom it is about, and how many seeds decide."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from report_cases import study, validated
from scipy import stats

from distillens.measures import paired_gain
from distillens.report.verdict import (
    Verdict,
    classify,
    further_seeds,
    judge,
    paired_differences,
)
from distillens.results.base import Estimate, Interval


def gain(value: float, low: float, high: float) -> Estimate:
    """A gain in percentage points."""
    return Estimate(value / 100, Interval(low / 100, high / 100, 0.95, "constructed"))


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.2, 0.1, 0.4, Verdict.DOES_NOT_MATTER),
        (0.0, -0.5, 0.5, Verdict.DOES_NOT_MATTER),
        (-0.3, -0.4, -0.2, Verdict.DOES_NOT_MATTER),
        (0.3, 0.1, 0.51, Verdict.HELPS),
        (2.0, 0.001, 4.0, Verdict.HELPS),
        (2.0, 0.0, 4.0, Verdict.PROBABLY_HELPS),
        (-2.0, -4.0, -0.001, Verdict.HURTS),
        (-2.0, -4.0, 0.0, Verdict.CANNOT_BE_TOLD),
        (0.51, -1.0, 2.0, Verdict.PROBABLY_HELPS),
        (0.5, -1.0, 2.0, Verdict.CANNOT_BE_TOLD),
        (0.0, -0.51, 0.5, Verdict.CANNOT_BE_TOLD),
        (1.0, math.nan, 2.0, Verdict.CANNOT_BE_TOLD),
    ],
)
def test_the_first_matching_verdict_counts(
    value: float, low: float, high: float, verdict: Verdict
) -> None:
    assert classify(gain(value, low, high), seeds=3) is verdict


def test_one_seed_and_no_interval_cannot_be_told() -> None:
    assert classify(gain(3, 2, 4), seeds=1) is Verdict.CANNOT_BE_TOLD
    assert classify(Estimate(0.03), seeds=3) is Verdict.CANNOT_BE_TOLD
    assert classify(None, seeds=3) is Verdict.CANNOT_BE_TOLD


def test_a_larger_margin_widens_what_does_not_matter() -> None:
    assert classify(gain(1, 0.2, 1.8), seeds=3) is Verdict.HELPS
    assert classify(gain(1, 0.2, 1.8), seeds=3, margin=0.02) is Verdict.DOES_NOT_MATTER


def test_validation_names_the_supervision_and_test_accuracies_do_not() -> None:
    result = validated({"no KD": 0.9, "offline τ=1": 0.91, "offline τ=4": 0.85, "online τ=4": 0.8})
    found = judge(result)
    assert found.row is not None
    assert found.row.name == "offline τ=1"
    worst_on_test = tuple(
        replace(cell, test_accuracy=0.1) if cell.supervision == "offline τ=1" else cell
        for cell in result.cells
    )
    again = judge(replace(result, cells=worst_on_test))
    assert again.row is not None
    assert again.row.name == "offline τ=1"


def test_without_validation_examples_no_supervision_is_named() -> None:
    none: dict[str, float | None] = dict.fromkeys(
        ("no KD", "offline τ=1", "offline τ=4", "online τ=4")
    )
    found = judge(validated(none))
    assert (found.verdict, found.row) == (Verdict.CANNOT_BE_TOLD, None)
    assert "no validation examples" in found.reason


def test_without_labels_alone_the_gain_is_unknown() -> None:
    result = validated({"no KD": 0.9, "offline τ=1": 0.91, "offline τ=4": 0.85, "online τ=4": 0.8})
    rows = tuple(row for row in result.rows if row.name != "no KD")
    cells = tuple(cell for cell in result.cells if cell.supervision != "no KD")
    found = judge(replace(result, rows=rows, cells=cells))
    assert found.verdict is Verdict.CANNOT_BE_TOLD
    assert "labels alone" in found.reason


def test_differences_are_paired_by_seed() -> None:
    result = study()
    rows = {row.name: row for row in result.rows}
    found = paired_differences(result, rows["online τ=4"], rows["no KD"])
    np.testing.assert_allclose(found, [0.881 - 0.844, 0.886 - 0.850, 0.884 - 0.856])


def half_width(differences: np.ndarray, level: float) -> float:
    quantile = stats.t.ppf(0.5 + level / 2, len(differences) - 1)
    return float(quantile * differences.std(ddof=1) / math.sqrt(len(differences)))


def test_the_likely_number_of_seeds_is_the_fewest_that_exclude_zero() -> None:
    differences = np.array([0.02, 0.05, -0.01])
    half = half_width(differences, 0.95)
    mean = float(differences.mean())
    found = further_seeds(
        Estimate(mean, Interval(mean - half, mean + half, 0.95, "t")), differences
    )
    assert found is not None
    assert found.likely is not None

    def later(count: int) -> float:
        spread = differences.std(ddof=1)
        return float(stats.t.ppf(0.9875, count - 1) * spread / math.sqrt(count))

    assert later(3 + found.likely) <= mean < later(3 + found.likely - 1)
    assert found.fewest is not None
    assert found.fewest <= found.likely
    assert found.most is None or found.most >= found.likely


def test_test_examples_limit_what_seeds_can_decide() -> None:
    differences = np.array([0.010, 0.011, 0.009])
    wide = Estimate(0.01, Interval(-0.03, 0.05, 0.95, "few test examples"))
    found = further_seeds(wide, differences)
    assert found is not None
    assert (found.fewest, found.likely, found.most) == (None, None, None)


def test_a_mean_near_zero_is_decided_by_the_margin() -> None:
    differences = np.array([0.004, -0.004, 0.001, -0.001])
    half = half_width(differences, 0.95)
    found = further_seeds(Estimate(0.0, Interval(-half, half, 0.95, "t")), differences)
    assert found is not None
    assert found.likely is not None
    assert found.likely > 0


def test_one_seed_gives_no_range() -> None:
    assert further_seeds(gain(1, 0, 2), [0.01]) is None


def test_the_judgement_of_real_gains_is_that_of_their_interval() -> None:
    values = np.array([0.03, 0.05, 0.04])
    found = paired_gain(values.tolist(), [0.0, 0.0, 0.0])
    assert classify(found, 3) is Verdict.HELPS
