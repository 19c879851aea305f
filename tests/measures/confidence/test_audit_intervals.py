"""Intervals of the audit cover at their nominal rate, and cheap resamples equal plain ones."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import MeasureError
from distillens.measures.confidence.departures import net_gain
from distillens.measures.confidence.exaggeration import measure_exaggeration
from distillens.measures.statistics.bootstrap import (
    UNBOUNDED,
    Resampler,
    huber_columns,
    huber_line,
    huber_slopes,
)

TRIALS = 200


def cloud(rng: np.random.Generator, examples: int):
    x = rng.uniform(0.5, 4, size=examples)
    # Noise grows with x, so that the textbook interval would be wrong; one in twenty is far off.
    noise = 0.3 * x * rng.normal(size=examples)
    far = rng.random(examples) < 0.05
    noise[far] += 3 * rng.normal(size=np.count_nonzero(far))
    return x, 1.3 * x + noise


def near_nominal(hits: np.ndarray) -> None:
    # Of 200 trials at 95 %, the count lies within 0.90 and 0.99 with probability 0.99.
    assert (hits > 0.88).all(), hits
    assert (hits <= 0.995).all(), hits


@pytest.mark.parametrize("blocks", [2000, 100])
def test_slopes_and_shares_cover(blocks: int):
    rng = np.random.default_rng(0)
    truth_x, truth_y = cloud(np.random.default_rng(99), 400_000)
    truth_low = truth_x < 2.25
    truth_share = np.mean(truth_y[truth_low] < truth_x[truth_low])
    hits = np.zeros(7)
    for trial in range(TRIALS):
        x, y = cloud(rng, 300)
        found, _ = measure_exaggeration(x, y, {}, None, 0, Resampler(300, 200, trial, blocks))
        parts = (found.slope_all, found.slope_low, found.slope_high)
        shown = [(part.ordinary, 1.3) for part in parts] + [(part.robust, 1.3) for part in parts]
        shown.append((found.underfit.share, float(truth_share)))
        for i, (value, truth) in enumerate(shown):
            assert value.interval is not None
            hits[i] += value.interval.low <= truth <= value.interval.high
    near_nominal(hits / TRIALS)


def test_the_difference_to_a_reference_covers_and_is_paired():
    rng = np.random.default_rng(1)
    hits, widths = 0, []
    for trial in range(TRIALS):
        x, y = cloud(rng, 200)
        other = 0.8 * y
        resampler = Resampler(200, 200, trial)
        found, _ = measure_exaggeration(x, y, {"other": other}, None, 0, resampler)
        (reference,) = found.slope_all.references
        assert reference.steeper.interval is not None
        assert found.slope_all.ordinary.interval is not None
        hits += reference.steeper.interval.low <= 0.2 * 1.3 <= reference.steeper.interval.high
        own = found.slope_all.ordinary.interval
        widths.append(
            (reference.steeper.interval.high - reference.steeper.interval.low)
            / (own.high - own.low)
        )
    near_nominal(np.array([hits / TRIALS]))
    # 0.2 y against y: with one resample for both the width is exactly a fifth.
    np.testing.assert_allclose(widths, 0.2, rtol=1e-6)


def test_the_net_gain_covers():
    rng = np.random.default_rng(2)
    hits = np.zeros(2)
    for _ in range(1000):
        for i, (examples, odds) in enumerate(((60, (0.1, 0.05, 0.85)), (500, (0.02, 0.02, 0.96)))):
            gained, lost, _ = rng.multinomial(examples, odds)
            interval = net_gain(int(gained), int(lost), examples).interval
            assert interval is not None
            hits[i] += interval.low <= 100 * (odds[0] - odds[1]) <= interval.high
    assert (hits / 1000 > 0.93).all(), hits
    assert (hits / 1000 < 0.985).all(), hits


def test_the_bootstrap_is_a_plain_resampling():
    x, y = cloud(np.random.default_rng(5), 50)
    found, _ = measure_exaggeration(x, y, {}, None, 0, Resampler(50, 100, 7))
    rng = np.random.default_rng(7)
    slopes = []
    for _ in range(100):
        rows = rng.integers(50, size=50)
        low = x[rows] < found.threshold
        slopes.append([np.polyfit(x[rows][p], y[rows][p], 1)[0] for p in (low | ~low, low, ~low)])
    wanted = np.quantile(slopes, [0.025, 0.975], axis=0).T
    for part, ends in zip(
        (found.slope_all, found.slope_low, found.slope_high), wanted, strict=True
    ):
        assert part.ordinary.interval is not None
        np.testing.assert_allclose([part.ordinary.interval.low, part.ordinary.interval.high], ends)
    assert found.slope_all.ordinary.interval is not None
    assert found.slope_all.ordinary.interval.method == (
        "bootstrap percentiles over examples, 100 resamples"
    )


def test_blocks_are_as_wide_as_single_examples():
    x, y = cloud(np.random.default_rng(3), 20_000)
    rng = np.random.default_rng(0)
    drawn = rng.integers(20_000, size=(300, 20_000))
    plain = np.array([np.polyfit(x[rows], y[rows], 1)[0] for rows in drawn[:150]])
    sums = Resampler(20_000, 1000, 0).sums(
        huber_columns(UNBOUNDED, x, y, np.ones(20_000, dtype=bool))
    )
    assert huber_slopes(UNBOUNDED, sums).std() == pytest.approx(plain.std(), rel=0.2)


def test_one_step_resamples_are_near_the_full_robust_fit():
    x, y = cloud(np.random.default_rng(4), 500)
    line = huber_line(x, y)
    assert line.converged
    everything = np.ones(500, dtype=bool)
    resampler = Resampler(500, 200, 0)
    steps = huber_slopes(line, resampler.sums(huber_columns(line, x, y, everything)))
    rng = np.random.default_rng(0)
    full = []
    for _ in range(200):
        rows = rng.integers(500, size=500)
        full.append(huber_line(x[rows], y[rows]).slope)
    assert steps.std() == pytest.approx(np.std(full), rel=0.2)
    assert steps.mean() == pytest.approx(np.mean(full), abs=0.01)


def test_huber_is_least_squares_without_outliers_and_shrugs_off_one():
    x = np.linspace(0, 1, 50)
    y = 2 * x + 0.1 * np.where(np.arange(50) % 2, 1, -1)
    assert huber_line(x, y).slope == pytest.approx(np.polyfit(x, y, 1)[0], abs=1e-9)
    y[-1] += 1000
    assert huber_line(x, y).slope == pytest.approx(2, abs=0.1)
    assert np.polyfit(x, y, 1)[0] > 50


def test_too_few_resamples_are_refused():
    with pytest.raises(MeasureError, match="10 resamples are too few"):
        Resampler(100, 10)
