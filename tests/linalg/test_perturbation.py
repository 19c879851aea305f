"""Laws of the error of a Gram and of singular ones: what a change of its size does is within."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillens.errors import KernelError, MeasureError
from distillens.linalg import (
    factorise,
    perturbed_quadratic_form,
    quadratic_form,
)


def gram_with(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))
    gram = (basis * eigenvalues) @ basis.T
    return 0.5 * (gram + gram.T)


def noise(gram: np.ndarray, relative: float, seed: int) -> np.ndarray:
    """Independent symmetric noise whose entries are ``relative`` to the root mean square of K's."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=gram.shape))
    return relative * np.sqrt(np.mean(gram**2)) * (upper + np.triu(upper, 1).T)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 40),
    condition=st.floats(0, 8),
    share=st.floats(-4, 0.5),
    seed=st.integers(0, 1000),
    ridge=st.sampled_from([0.0, 1e-3]),
)
def test_a_changed_gram_has_its_value_within(
    size: int, condition: float, share: float, seed: int, ridge: float
):
    gram = gram_with(np.geomspace(1, 10**-condition, size), seed)
    y = np.random.default_rng(seed).normal(size=(size, 2))
    change = noise(gram, 1.0, seed)
    change *= 10 ** (share - condition) / np.linalg.norm(change, 2)
    error = float(np.linalg.norm(change, 2)) * (1 + 1e-9)
    found = perturbed_quadratic_form(factorise(gram, ridge), y, error)
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()
    if np.linalg.eigvalsh(gram + ridge * np.eye(size) + change)[0] > 1e-14:
        moved = np.sum(y * np.linalg.solve(gram + ridge * np.eye(size) + change, y), axis=0)
        assert (found.low <= moved * (1 + 1e-6)).all()
        assert (moved <= found.high * (1 + 1e-6)).all()


def test_both_ends_are_reached_and_weyl_is_wider():
    eigenvalues = np.geomspace(1, 1e-3, 30)
    gram = gram_with(eigenvalues)
    y = np.random.default_rng(0).normal(size=30)
    found = perturbed_quadratic_form(factorise(gram), y, 5e-4)
    for end, shift in ((found.low, 5e-4), (found.high, -5e-4)):
        wanted = y @ np.linalg.solve(gram + shift * np.eye(30), y)
        assert end[0] == pytest.approx(wanted, rel=1e-9)
    assert found.value[0] / 1.5 <= found.low[0]
    assert found.high[0] <= found.value[0] / 0.5


def test_a_small_error_moves_by_its_first_order():
    gram = gram_with(np.geomspace(1, 1e-4, 50))
    y = np.random.default_rng(0).normal(size=50)
    found = perturbed_quadratic_form(factorise(gram), y, 1e-8)
    first_order = 1e-8 * np.sum(np.linalg.solve(gram, y) ** 2) / found.value[0]
    assert found.movement[0] == pytest.approx(first_order, rel=1e-3)
    assert found.determined.all()


def test_an_error_above_the_smallest_eigenvalue_determines_nothing():
    found = perturbed_quadratic_form(factorise(np.diag([1.0, 1e-3])), np.ones(2), 2e-3)
    assert np.isinf(found.high).all()
    assert np.isinf(found.movement).all()
    assert not found.determined.any()
    assert found.low[0] == pytest.approx(1 / 1.002 + 1 / 3e-3)


def test_a_relative_error_of_1e5_moves_by_a_third_of_a_percent_at_1e5_and_destroys_at_1e7():
    """Grams of 1000 rows, eigenvalues from 1 down in equal ratios, random targets."""
    y = np.random.default_rng(0).normal(size=1000)
    mild = gram_with(np.geomspace(1, 1e-5, 1000))
    value = quadratic_form(factorise(mild), y)[0]
    moved = []
    for seed in range(4):
        change = noise(mild, 1e-5, seed)
        other = quadratic_form(factorise(mild + change), y)[0]
        moved.append(abs(other / value - 1))
        if seed == 0:
            error = float(np.linalg.norm(change, 2))
            within = perturbed_quadratic_form(factorise(mild), y, error)
            assert within.low[0] <= other <= within.high[0]
            # The worst error of that size could do far more than an independent one does.
            assert not within.determined.any()
    assert 0.001 < np.mean(moved) < 0.01
    harsh = gram_with(np.geomspace(1, 1e-7, 1000))
    changed = harsh + noise(harsh, 1e-5, 0)
    error = float(np.linalg.norm(changed - harsh, 2))
    found = perturbed_quadratic_form(factorise(harsh), y, error)
    assert np.isinf(found.high).all()
    assert np.linalg.eigvalsh(changed)[0] < 0
    destroyed = [
        abs(y @ np.linalg.solve(harsh + noise(harsh, 1e-5, seed), y) / found.value[0] - 1)
        for seed in range(4)
    ]
    assert np.mean(destroyed) > 0.5


def test_no_error_and_a_zero_target():
    factor = factorise(gram_with(np.geomspace(1, 1e-9, 30)))
    y = np.column_stack([np.ones(30), np.zeros(30)])
    found = perturbed_quadratic_form(factor, y, 0.0)
    np.testing.assert_array_equal(found.low, found.high)
    assert found.determined.all()
    far = perturbed_quadratic_form(factor, y, 1.0)
    assert (far.low[1], far.high[1], far.movement[1]) == (0, 0, 0)
    assert far.determined.tolist() == [False, True]


@pytest.mark.parametrize("error", [-1.0, float("nan"), float("inf")])
def test_bad_errors(error: float):
    with pytest.raises(KernelError, match="error of the Gram is"):
        perturbed_quadratic_form(factorise(np.eye(2)), np.ones(2), error)


def test_targets_of_another_length():
    with pytest.raises(MeasureError, match="targets of shape"):
        perturbed_quadratic_form(factorise(np.eye(2)), np.ones(3), 0.1)
