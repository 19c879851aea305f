"""Known values and coverage of the intervals."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import MeasureError
from distillens.measures import accuracy_estimate, mean_over_seeds, paired_gain, wilson_interval


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_over_seeds([]), "give one number a seed"),
        (lambda: mean_over_seeds([0.5, float("nan")]), "each must be finite"),
        (lambda: mean_over_seeds([0.5, 0.6], level=95), "level is 95"),
        (lambda: accuracy_estimate([71.2], 100), "shares in"),
        (lambda: accuracy_estimate([0.7], 0), "of 0 examples"),
        (lambda: paired_gain([0.7, 0.8], [0.7]), "2 accuracies against 1"),
        (lambda: wilson_interval(1.2, 10), "share of 1.2"),
    ],
)
def test_refusals(call, message: str):
    with pytest.raises(MeasureError, match=message):
        call()
