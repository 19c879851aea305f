"""Thm. 4.1 on random draws, its precision against 400 digits, and where its premise is missing."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest

from distillens.errors import TheoryError
from distillens.theory import (
    compare_at_equal_progress,
    distilled_filter,
    learnt_share,
    student_time,
    time_to_learn,
    witness,
)
from distillens.theory.studies import bias_study


def exact_shortfall(top: float, bottom: float, teacher: float, student: float) -> float:
    """ln(one-hot/student) of the bottom direction, from the definition, with 400 digits."""
    with localcontext() as context:
        context.prec = 400
        first, second = Decimal(top), Decimal(bottom)

        def share(eigenvalue: Decimal, time: float) -> Decimal:
            return 1 - (-eigenvalue * Decimal(time)).exp()

        progress = share(first, teacher) * share(first, student)
        one_hot = 1 - ((1 - progress).ln() * second / first).exp()
        return float((one_hot / (share(second, teacher) * share(second, student))).ln())


def test_it_holds_on_ten_thousand_draws():
    study = bias_study(draws=10_000, seed=0).arrays
    ratio = study["bottom_M"] / study["top_M"]
    assert ((1 - ratio) < 1e-6).sum() > 2000
    assert (study["progress_M"] > 0.99).sum() > 500
    assert (study["progress_M"] < 0.01).sum() > 500
    assert (study["log_shortfall_M"] > 0).all()
    # Both networks are where the comparison says they are.
    for shares in (
        learnt_share(study["top_M"], study["teacher_time_M"])
        * learnt_share(study["top_M"], study["student_time_M"]),
        compare_at_equal_progress(
            study["top_M"], study["bottom_M"], study["teacher_time_M"], study["student_time_M"]
        ).progress,
    ):
        np.testing.assert_allclose(shares, study["progress_M"], rtol=1e-6)


def test_plain_code_would_have_lost_it():
    study = bias_study(draws=10_000, seed=0).arrays
    assert (study["one_hot_bottom_M"] <= study["student_bottom_M"]).sum() > 1000


def test_it_fails_without_its_premise():
    study = bias_study(draws=2000, seed=1).arrays
    # The bottom eigenvalue above the top one: the sign turns, for every draw.
    assert (study["swapped_M"] < 0).all()
    # A one-hot network that has got less far along the top direction.
    assert (study["earlier_M"] < 0).mean() > 0.8
    equal = compare_at_equal_progress(2.0, 2.0, [0.1, 1.0, 5.0], [0.3, 1.0, 2.0])
    np.testing.assert_array_equal(equal.log_shortfall, 0)


@pytest.mark.parametrize("gap", [1e-13, 1e-9, 1e-4, 0.05, 0.3, 0.9, 0.9999])
def test_the_shortfall_has_its_digits(gap):
    rng = np.random.default_rng(5)
    times = 10 ** rng.uniform(-6, 2.2, size=(12, 2))
    times = np.concatenate([times, [[100.0, 1e-4], [150.0, 150.0], [1e-6, 1e-6]]])
    bottom = 1.5 * (1 - gap)
    found = compare_at_equal_progress(1.5, bottom, times[:, 0], times[:, 1]).log_shortfall
    expected = [exact_shortfall(1.5, bottom, *pair) for pair in times.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("gap", [-1e-9, -0.05, -3.0])
def test_a_missing_premise_is_computed_as_well(gap):
    times = 10 ** np.random.default_rng(5).uniform(-4, 0.5, size=(12, 2))
    bottom = 1.5 * (1 - gap)
    found = compare_at_equal_progress(1.5, bottom, times[:, 0], times[:, 1]).log_shortfall
    expected = [exact_shortfall(1.5, bottom, *pair) for pair in times.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_shares_are_those_of_the_definition():
    found = compare_at_equal_progress(1.0, 0.3, 2.0, 0.7)
    assert found.student_bottom == pytest.approx(distilled_filter([0.3], [2.0, 0.7])[0])
    assert learnt_share(1.0, found.one_hot_time) == pytest.approx(float(found.progress))
    assert found.one_hot_bottom == pytest.approx(float(learnt_share(0.3, found.one_hot_time)))
    ratio = np.log(found.one_hot_bottom / found.student_bottom)
    assert found.log_shortfall == pytest.approx(float(ratio), rel=1e-12)


def test_witness_of_the_paper():
    progress = np.array([0.01, 0.5, 0.99])
    found = witness(3.0, 1.2, progress)
    np.testing.assert_allclose(found.progress, progress, rtol=1e-12)
    np.testing.assert_allclose(found.one_hot_bottom, 1 - (1 - progress) ** 0.4, rtol=1e-12)
    np.testing.assert_allclose(
        found.student_bottom, (1 - (1 - np.sqrt(progress)) ** 0.4) ** 2, rtol=1e-12
    )
    # The theorem: every t at which the one-hot network has reached α* or more.
    later = found.one_hot_time * np.array([[1.0], [1.5], [10.0]])
    assert (learnt_share(1.2, later) > found.student_bottom).all()


def test_limits():
    # Trained to the end, the student is its teacher; for small times the ratio is λ₂/λ₁.
    late = compare_at_equal_progress(1.0, 0.5, 1.0, 600.0)
    assert 0 < late.log_shortfall < 1e-100
    early = compare_at_equal_progress(1.0, 0.5, 1e-9, 1e-9)
    assert early.log_shortfall == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.parametrize("generations", [2, 3, 6])
def test_each_generation_has_less_of_the_bottom(generations):
    rng = np.random.default_rng(generations)
    for _ in range(200):
        top, ratio = 1.0, rng.uniform(0.05, 0.95)
        times = rng.uniform(0.1, 4.0, size=generations).tolist()
        line = distilled_filter([top, ratio], times)
        alone = learnt_share(ratio, time_to_learn(top, line[0]))
        assert line[1] < alone


def test_student_time_reaches_the_progress():
    time = student_time(2.0, 1.0, [0.1, 0.86])
    np.testing.assert_allclose(
        learnt_share(2.0, time) * learnt_share(2.0, 1.0), [0.1, 0.86], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: witness(1.0, 1.0, 0.5), "swap them"),
        (lambda: witness(1.0, 0.5, 1.5), "below 1"),
        (lambda: student_time(1.0, 0.1, 0.5), "stop it later"),
        (lambda: compare_at_equal_progress(1.0, 0.5, 0.0, 1.0), "above 0"),
        (lambda: compare_at_equal_progress(1.0, 0.5, 1e4, 1.0), "at most 700"),
        (lambda: compare_at_equal_progress(1.0, 0.5, 1e-200, 1e-200), "give later ones"),
        (lambda: bias_study(draws=0), "0 draws"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(call, words):
    with pytest.raises(TheoryError) as caught:
        call()
    assert words in str(caught.value)
