"""Risk formulas against Monte Carlo, and the best stop times against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import TheoryError
from distillens.theory import (
    best_time,
    best_times,
    distilled_filter,
    learnt_share,
    linear_flow,
    linear_model_spectra,
    spectra,
)
from distillens.theory.studies import risk_study

VALUES = np.arange(1, 21) ** -1.5


def steep(noise: float = 1e-3):
    return spectra(VALUES, np.arange(1, 21) ** -3.0, noise)


@pytest.mark.parametrize("on_test", [False, True])
def test_risk_equals_monte_carlo_on_real_regressions(on_test):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(8, 5)) * np.array([2.0, 1.5, 1.0, 0.6, 0.3])
    truth, noise, draws = rng.normal(size=5), 0.5, 20_000
    targets = (inputs @ truth)[:, None] + noise * rng.normal(size=(8, draws))
    teacher = linear_flow(inputs, targets)
    student = teacher.student(0.4)
    error = student.weights(0.2) - truth[:, None]
    along = teacher.eigenvectors_PK.T @ truth
    variances = rng.uniform(0.5, 2, size=5) if on_test else None
    if variances is None:
        # Mean squared error over the K directions in which the inputs lie.
        losses = ((inputs @ error) ** 2).sum(axis=0) / 5
    else:
        losses = variances @ (teacher.eigenvectors_PK.T @ error) ** 2
    problem = linear_model_spectra(teacher.eigenvalues_K, along, noise**2, variances)
    expected = float(problem.risk(distilled_filter(teacher.eigenvalues_K, [0.4, 0.2])))
    assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(draws)
    assert losses.std() / np.sqrt(draws) < 0.02 * expected


def test_risk_is_bias_and_variance_and_wiener_is_the_least():
    problem = steep()
    rng = np.random.default_rng(1)
    filters = rng.uniform(size=(500, 20))
    assert problem.risk(np.zeros(20)) == pytest.approx(problem.signal_K.mean())
    assert problem.risk(np.ones(20)) == pytest.approx(1e-3)
    best = problem.best_filter()
    assert (problem.risk(filters) > problem.risk(best)).all()
    around = best + 1e-4 * rng.normal(size=(500, 20))
    assert (problem.risk(around) >= problem.risk(best)).all()


def test_shrinking_an_overfit_direction_helps_and_another_hurts():
    problem = steep()
    kept = learnt_share(VALUES, 3.0)
    for place, over in enumerate(problem.overfit(kept)):
        less = kept.copy()
        less[place] *= 0.999
        assert (problem.risk(less) < problem.risk(kept)) == over


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 0.5])
def test_best_time_is_no_worse_than_a_fine_grid(noise):
    problem = steep(noise)
    for above in (None, learnt_share(VALUES, 30.0)):
        found = best_time(problem, above)
        grid = np.geomspace(1e-5, 1e6, 20_001)
        filters = learnt_share(VALUES, grid[:, None]) * (1.0 if above is None else above)
        assert found.risk <= problem.risk(filters).min() * (1 + 1e-9)
        again = learnt_share(VALUES, found.times_G[0]) * (1.0 if above is None else above)
        assert problem.risk(again) == pytest.approx(found.risk, rel=1e-12)


def test_without_noise_nobody_stops_and_without_signal_nobody_starts():
    clean = best_time(spectra(VALUES, 1.0, 0.0))
    assert clean.times_G == (np.inf,)
    assert clean.risk == 0
    assert best_time(spectra(VALUES, 0.0, 1.0)).risk < 1e-6


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("time", [0.05, 0.5, 5.0, 50.0, 500.0])
def test_a_nearly_finished_student_helps_where_the_slowest_direction_is_overfit(time, order):
    # Turned round, the signal lies in the slow directions, and only the fast ones are overfit.
    problem = spectra(VALUES, (np.arange(1, 21) ** -3.0)[::order], 1e-2)
    teacher = learnt_share(VALUES, time)
    late = problem.risk(teacher * learnt_share(VALUES, 25 / VALUES[-1]))
    # e⁻²⁵ of the slowest direction is above rounding only in the difference of the filters.
    student = problem.risk(teacher * learnt_share(VALUES, 12 / VALUES[-1]))
    assert bool(problem.slow_student_helps(teacher)) == bool(student < problem.risk(teacher))
    assert late == pytest.approx(problem.risk(teacher), rel=1e-9)


def test_an_underfit_teacher_is_not_helped():
    strong = spectra(VALUES, 1.0, 1e-6)
    teacher = learnt_share(VALUES, 1.0)
    assert not strong.slow_student_helps(teacher)
    assert best_time(strong, teacher).times_G == (np.inf,)


def test_one_more_generation_is_no_worse_and_one_direction_gains_nothing():
    problem = steep()
    risks = [best_times(problem, count).risk for count in (1, 2, 3)]
    assert risks[0] > risks[1] >= risks[2] >= problem.risk(problem.best_filter())
    pair = best_times(problem, 2)
    kept = distilled_filter(VALUES, pair.times_G)
    assert problem.risk(kept) == pytest.approx(pair.risk, rel=1e-9)
    alone = spectra([1.0], [1.0], [0.3])
    # One direction reaches Wiener's filter alone; a student can only match it.
    assert best_times(alone, 2).risk == pytest.approx(best_time(alone).risk, rel=1e-9)
    assert best_time(alone).risk == pytest.approx(0.3 / 1.3, rel=1e-9)


def test_best_pair_is_no_worse_than_a_grid_of_pairs():
    problem = steep()
    kept = learnt_share(VALUES, np.geomspace(1e-2, 1e4, 200)[:, None])
    pairs = problem.risk(kept[:, None] * kept[None])
    assert best_times(problem, 2).risk <= pairs.min() * (1 + 1e-9)


def test_study_tells_steep_signals_from_flat_ones():
    study = risk_study(directions=20, decays=3, generations=2).arrays
    gain = study["best_risk_BG"][:, 1] / study["best_risk_BG"][:, 0]
    assert gain[0] > 1 - 1e-6
    assert gain[-1] < 0.8
    assert (study["best_risk_BG"] >= study["wiener_B"][:, None] * (1 - 1e-9)).all()
    assert (study["best_student_H"] <= study["teacher_risk_H"] * (1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: spectra([1.0, 2.0], [1.0], 0.1), "shape (1,)"),
        (lambda: spectra([1.0], 1.0, -0.1), "-0.1"),
        (lambda: spectra([0.0], 1.0, 0.1), "all eigenvalues are 0"),
        (lambda: spectra([], 1.0, 0.1), "shape (0,)"),
        (lambda: steep().risk([0.5]), "filter of shape (1,)"),
        (lambda: best_time(steep(), np.ones(3)), "teacher's filter"),
        (lambda: best_times(steep(), 0), "0 generations"),
        (lambda: linear_model_spectra([0.0], [1.0], 1.0), "above 0"),
        (lambda: risk_study(directions=1), "at least 2"),
        (lambda: risk_study(noise=0.0), "noise"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(call, words):
    with pytest.raises(TheoryError) as caught:
        call()
    assert words in str(caught.value)
