"""Kernel ridge self-distillation against plain solves, and Mobahi's shrinkage."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import TheoryError
from distillens.theory import (
    ridge_filter,
    ridge_for_tolerance,
    ridge_shortfall,
    self_distil_ridge,
)
from distillens.theory.studies import ridge_study

VALUES = np.array([4.0, 2.0, 1.0, 0.3, 0.05])
LABELS = np.array([1.0, -2.0, 0.5, 1.5, -1.0])


def test_filter_equals_ridge_regressions_one_after_the_other():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(7, 2))
    gram = np.exp(-((points[:, None] - points[None]) ** 2).sum(axis=-1))
    targets = labels = rng.normal(size=7)
    for ridge in (0.3, 0.1, 0.7):
        targets = gram @ np.linalg.solve(gram + ridge * np.eye(7), targets)
    values, vectors = np.linalg.eigh(gram)
    kept = ridge_filter(values, [0.3, 0.1, 0.7])
    np.testing.assert_allclose(vectors @ (kept * (vectors.T @ labels)), targets, atol=1e-10)


@pytest.mark.parametrize("tolerance", [1e-12, 1e-3, 0.5, 1.69])
def test_ridge_meets_its_tolerance(tolerance):
    ridge = ridge_for_tolerance(VALUES, LABELS, tolerance)
    missed = LABELS - ridge_filter(VALUES, [ridge]) * LABELS
    assert (missed**2).mean() == pytest.approx(tolerance, rel=1e-8, abs=0)


def test_equal_eigenvalues_have_a_ridge_in_closed_form():
    # (c/(c + d))² = ε for unit targets.
    assert ridge_for_tolerance([2.0, 2.0], [1.0, 1.0], 0.25) == pytest.approx(2.0)


def test_rounds_shrink_the_weak_directions_ever_more_until_they_collapse():
    found = self_distil_ridge(VALUES, LABELS, 0.02, 100)
    assert found.collapsed
    assert len(found.ridges_R) >= found.sure_rounds
    assert (np.diff(found.norms_R) < 0).all()
    kept = np.vstack([np.ones(5), found.filters_RK])
    # Each round is a ridge fit of the round before, within the tolerance of it.
    for ridge, before, after in zip(found.ridges_R, kept[:-1], kept[1:], strict=True):
        np.testing.assert_allclose(after, before * VALUES / (ridge + VALUES))
        assert (((after - before) * LABELS) ** 2).mean() == pytest.approx(0.02, rel=1e-8)
    # Mobahi et al.: the ratio of a stronger to a weaker direction grows with every round.
    ratios = kept[:, :-1] / kept[:, 1:]
    assert (np.diff(ratios, axis=0) > 0).all()


def test_rounds_that_are_sure_are_reached_exactly_by_equal_eigenvalues():
    # All directions shrink alike, so that each round takes √(Nε) off the norm.
    found = self_distil_ridge(np.ones(4), np.ones(4), 0.0144, 100)
    assert found.sure_rounds == len(found.ridges_R) == 8
    np.testing.assert_allclose(-np.diff(found.norms_R), 2 * 0.12, rtol=1e-8)


def test_a_limit_on_rounds_is_no_collapse():
    found = self_distil_ridge(VALUES, LABELS, 0.02, 2)
    assert len(found.ridges_R) == 2
    assert not found.collapsed


def test_rounds_keep_less_of_the_bottom_at_equal_progress():
    rng = np.random.default_rng(1)
    for _ in range(500):
        ridges = 10 ** rng.uniform(-3, 1, size=int(rng.integers(2, 6)))
        rounds, single = ridge_shortfall(1.0, rng.uniform(0.01, 0.99), ridges.tolist())
        assert rounds < single
    rounds, single = ridge_shortfall(1.0, 0.5, [0.2, 0.4])
    # 1/((1 + 2·0.2)(1 + 2·0.4)) against 1/(1 + 2(1.2·1.4 − 1)).
    assert rounds == pytest.approx(1 / (1.4 * 1.8))
    assert single == pytest.approx(1 / (1 + 2 * (1.2 * 1.4 - 1)))


def test_without_a_second_round_or_a_gap_there_is_nothing_to_gain():
    for found in (ridge_shortfall(1.0, 0.3, [0.4]), ridge_shortfall(1.0, 1.0, [0.4, 0.2])):
        assert found[0] == pytest.approx(found[1])


def test_study_compares_at_equal_progress():
    study = ridge_study(directions=12, rounds=4).arrays
    np.testing.assert_allclose(study["ridge_GK"][:, 0], 0.9)
    np.testing.assert_allclose(study["flow_GK"][:, 0], 0.9)
    assert (np.diff(study["ridge_GK"], axis=0)[:, 1:] < 0).all()
    assert (np.diff(study["flow_GK"], axis=0)[:, 1:] < 0).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ridge_filter([0.0], [1.0]), "above 0"),
        (lambda: ridge_filter([1.0], []), "one a round"),
        (lambda: ridge_for_tolerance(VALUES, LABELS, 2.0), "zero fits them"),
        (lambda: ridge_for_tolerance(VALUES, LABELS, 0.0), "tolerance cannot be 0"),
        (lambda: self_distil_ridge(VALUES, LABELS, -1.0, 3), "tolerance cannot be -1"),
        (lambda: self_distil_ridge(VALUES, LABELS, 0.1, 0), "0 rounds"),
        (lambda: self_distil_ridge(VALUES, LABELS[:2], 0.1, 1), "shape (2,)"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(call, words):
    with pytest.raises(TheoryError) as caught:
        call()
    assert words in str(caught.value)
