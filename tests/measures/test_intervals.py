"""Known values and coverage of the intervals."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import MeasureError
from distillens.measures import (
    accuracy_estimate,
    mean_over_seeds,
    paired_gain,
    paired_interval,
    wilson_interval,
)


def test_student_t_of_three_seeds():
    found = mean_over_seeds([0.5, 0.6, 0.7])
    # t_{0.975, 2} = 4.302653, s = 0.1.
    assert found.value == pytest.approx(0.6)
    assert found.interval is not None
    assert found.interval.high - 0.6 == pytest.approx(4.302653 * 0.1 / np.sqrt(3), rel=1e-6)
    assert found.interval.low + found.interval.high == pytest.approx(1.2)
    assert found.interval.method == "Student t over 3 seeds"


def test_one_seed_has_no_interval_over_seeds():
    assert mean_over_seeds([0.5]).interval is None
    assert paired_gain([0.5], [0.4]).interval is None
    wide = paired_gain([0.1, 0.9], [0.6, 0.5]).interval
    assert wide is not None
    assert (wide.low, wide.high) == (-1, 1)


def test_student_t_covers():
    rng = np.random.default_rng(0)
    hits = 0
    for values in rng.normal(size=(1000, 4)):
        interval = mean_over_seeds(list(values)).interval
        assert interval is not None
        hits += interval.low <= 0 <= interval.high
    assert 0.925 < hits / 1000 < 0.975


def test_wilson_known_value_and_ends():
    found = wilson_interval(0.8, 50)  # 40 of 50, from the formula by hand
    assert (found.low, found.high) == (
        pytest.approx(0.66963, abs=1e-5),
        pytest.approx(0.88757, abs=1e-5),
    )
    assert wilson_interval(1.0, 50).high == 1.0
    assert 0.9 < wilson_interval(1.0, 50).low < 1.0
    assert wilson_interval(0.0, 50).low == 0.0


def test_wilson_covers():
    hits = np.random.default_rng(0).binomial(40, 0.9, size=2000)
    inside = 0
    for count in hits:
        interval = wilson_interval(count / 40, 40)
        inside += interval.low <= 0.9 <= interval.high
    assert 0.92 < inside / 2000 < 0.98


def test_accuracy_of_one_seed_is_wilson():
    assert accuracy_estimate([0.8], 50).interval == wilson_interval(0.8, 50)


def test_accuracy_combines_seeds_and_examples_in_quadrature():
    both = accuracy_estimate([0.79, 0.80, 0.81], 1000)
    seeds, examples = mean_over_seeds([0.79, 0.80, 0.81]).interval, wilson_interval(0.8, 1000)
    assert both.interval is not None
    assert seeds is not None
    wanted = np.hypot(0.8 - seeds.low, 0.8 - examples.low)
    assert 0.8 - both.interval.low == pytest.approx(wanted)
    assert both.interval.method == (
        "Student t over 3 seeds and Wilson over 1000 test examples, in quadrature"
    )
    # With endless examples only the seeds are left; with equal seeds only the examples.
    endless = accuracy_estimate([0.79, 0.80, 0.81], 10**12).interval
    equal = accuracy_estimate([0.8, 0.8, 0.8], 1000).interval
    assert endless is not None
    assert equal is not None
    assert endless.low == pytest.approx(seeds.low, abs=1e-6)
    assert equal.low == pytest.approx(examples.low)


def test_accuracy_stays_within_0_and_1():
    for values in ([1.0, 1.0], [0.0, 0.5, 1.0]):
        interval = accuracy_estimate(values, 10).interval
        assert interval is not None
        assert interval.low >= 0
        assert interval.high <= 1


def test_pairing_removes_what_seeds_share():
    baseline = [0.2, 0.5, 0.8]
    found = paired_gain([b + 0.1 for b in baseline], baseline)
    assert found.value == pytest.approx(0.1)
    assert found.interval is not None
    assert found.interval.high - found.interval.low < 1e-12
    assert found.interval.method == "Student t over 3 differences paired by seed"


def test_paired_interval_known_value():
    # b = 7, c = 3 of 50, half an example added to each cell: m = 4/52, variance (11/52 − m²)/52.
    differences = np.array([1] * 7 + [-1] * 3 + [0] * 40)
    found = paired_interval(differences)
    half = 1.959964 * np.sqrt((11 / 52 - (4 / 52) ** 2) / 52)
    assert (found.low, found.high) == (
        pytest.approx(4 / 52 - half, abs=1e-6),
        pytest.approx(4 / 52 + half, abs=1e-6),
    )
    # With many examples it is the interval of McNemar's variance, (b + c − (b − c)²/N)/N².
    many = paired_interval(np.repeat(differences, 1000))
    plain = 1.959964 * np.sqrt((10_000 - 4_000**2 / 50_000) / 50_000**2)
    assert many.high - 0.08 == pytest.approx(plain, rel=1e-3)
    assert 0.08 - many.low == pytest.approx(plain, rel=2e-3)


def test_equal_gains_of_seeds_leave_the_variance_over_examples():
    right = np.array([[1, 1, 1, 0, 1, 0, 0, 1], [1, 1, 0, 0, 1, 0, 1, 1]])
    baseline = np.array([[1, 0, 1, 0, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0, 1, 1]])
    differences = (right - baseline).mean(axis=0)
    found = paired_gain(right.mean(1), baseline.mean(1), differences_N=differences)
    examples = paired_interval(differences)
    assert found.interval is not None
    assert found.interval.low == pytest.approx(examples.low)
    assert found.interval.high == pytest.approx(examples.high)
    assert found.interval.method == (
        "Student t over 2 differences paired by seed and paired differences of 8 test examples, "
        "in quadrature"
    )
    alone = paired_gain([0.625], [0.5], differences_N=right[0] - baseline[0]).interval
    assert alone is not None
    assert alone.high > alone.low
    assert alone.method == "paired differences of 8 test examples only, one seed"
    # Two networks that agree on every example are not known to agree on others.
    same = paired_interval(np.zeros(100))
    assert same.low < 0 < same.high


@pytest.mark.parametrize(("seeds", "examples"), [(1, 40), (1, 400), (3, 200)])
def test_the_interval_of_a_gain_covers(seeds: int, examples: int):
    # What an example is to both networks holds for all seeds; each seed then turns a few the other
    # way round, the students by a share that differs between seeds.
    rng = np.random.default_rng(seeds + examples)
    truth = 0.04 * (1 - 2 * 0.03)
    hits, by_seeds_alone = [], []
    for _ in range(400):
        kind = rng.choice(4, size=examples, p=[0.6, 0.1, 0.06, 0.24])
        turned = rng.uniform(0, 0.06, size=(seeds, 1))
        right = (kind < 2) ^ (rng.uniform(size=(seeds, examples)) < turned)
        baseline = np.isin(kind, (0, 2)) ^ (rng.uniform(size=(seeds, examples)) < 0.03)
        differences = (right.astype(float) - baseline).mean(axis=0)
        pair = right.mean(1), baseline.mean(1)
        found = paired_gain(*pair, differences_N=differences).interval
        assert found is not None
        hits.append(found.low <= truth <= found.high)
        alone = paired_gain(*pair).interval
        by_seeds_alone.append(alone is not None and alone.low <= truth <= alone.high)
    assert 0.92 < np.mean(hits) <= 1
    assert np.mean(by_seeds_alone) < 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_over_seeds([]), "give one number a seed"),
        (lambda: mean_over_seeds([0.5, float("nan")]), "each must be finite"),
        (lambda: mean_over_seeds([0.5, 0.6], level=95), "level is 95"),
        (lambda: accuracy_estimate([71.2], 100), "shares in"),
        (lambda: accuracy_estimate([0.7], 0), "of 0 examples"),
        (lambda: paired_gain([0.7, 0.8], [0.7]), "2 accuracies against 1"),
        (
            lambda: paired_gain([0.7], [0.5], differences_N=np.zeros(9)),
            "mean of differences_N is 0",
        ),
        (lambda: paired_interval(np.array([0.5, 2])), "go from 0.5 to 2"),
        (lambda: paired_interval(np.array([])), "one number within"),
        (lambda: paired_interval(np.array([np.nan])), "one number within"),
        (lambda: wilson_interval(1.2, 10), "share of 1.2"),
    ],
)
def test_refusals(call, message: str):
    with pytest.raises(MeasureError, match=message):
        call()
