"""Laws of the Gram solver: small residuals, known values, refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest

from distillens.errors import KernelError, MeasureError
from distillens.linalg import SingularGramError, eigen_summary, factorise, quadratic_form


def gram_with(eigenvalues: list[float] | np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with given eigenvalues in a random basis."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))
    gram = (basis * np.asarray(eigenvalues)) @ basis.T
    return 0.5 * (gram + gram.T)


def test_solve_inverts():
    gram = gram_with(np.geomspace(1, 1e4, 30))
    x = np.random.default_rng(1).normal(size=(30, 3))
    for rhs, wanted in ((gram @ x, x), (gram @ x[:, 0], x[:, 0])):
        found, residual = factorise(gram).solve(rhs)
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
        assert residual < 1e-14


def test_the_residual_is_that_of_the_solution():
    gram = gram_with(np.geomspace(1, 1e12, 40))
    y = np.random.default_rng(1).normal(size=40)
    factor = factorise(gram)
    x, residual = factor.solve(y)
    assert residual == pytest.approx(np.linalg.norm(gram @ x - y) / np.linalg.norm(y), rel=1e-3)
    assert 0 < residual < 1e-3


def test_a_damaged_factor_shows_in_the_residual():
    gram = gram_with(np.geomspace(1, 10, 10))
    factor = factorise(gram)
    factor.cholesky[5, 5] *= 3
    _, residual = factor.solve(np.ones(10))
    assert residual > 1e-3


def test_one_step_of_refinement_repairs_a_slightly_wrong_factor():
    gram = gram_with(np.geomspace(1, 10, 10))
    factor = factorise(gram)
    factor.cholesky[...] *= 1 + 1e-6
    _, residual = factor.solve(np.ones(10))
    assert residual < 1e-10  # 4e-6 squared, where without the step it would be 4e-6


def test_the_ridge_is_in_the_solve():
    gram = gram_with([0.0, 1.0, 2.0])
    y = np.array([1.0, -2.0, 0.5])
    x, _ = factorise(gram, ridge=0.5).solve(y)
    np.testing.assert_allclose((gram + 0.5 * np.eye(3)) @ x, y, rtol=1e-12)


def test_zero_has_the_solution_zero():
    x, residual = factorise(np.eye(3)).solve(np.zeros(3))
    assert not x.any()
    assert residual == 0


def test_the_quadratic_form_of_a_diagonal_and_of_columns():
    factor = factorise(np.diag([1.0, 2.0, 4.0]))
    value, _ = quadratic_form(factor, [1.0, 2.0, 2.0])
    assert float(value) == 1 + 2 + 1
    values, _ = quadratic_form(factor, np.array([[1.0, 0.0], [2.0, 0.0], [2.0, 2.0]]))
    np.testing.assert_array_equal(values, [4.0, 1.0])


def test_the_input_is_left_alone():
    gram = gram_with(np.geomspace(1, 10, 8))
    before = gram.copy()
    factorise(gram, ridge=1.0).solve(np.ones(8))
    np.testing.assert_array_equal(gram, before)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [20, 150])
def test_rank_deficient_grams_are_singular_even_where_cholesky_passes(seed: int, size: int):
    jacobian = np.random.default_rng(seed).normal(size=(size, size - 1))
    with pytest.raises(SingularGramError, match=r"smallest eigenvalue .* add a ridge such as"):
        factorise(jacobian @ jacobian.T)


def test_the_advised_ridge_works():
    gram = np.ones((12, 12))
    with pytest.raises(SingularGramError) as caught:
        factorise(gram)
    said = re.search(r"a ridge such as (\S+) \((\S+) of the mean diagonal\)", str(caught.value))
    assert said is not None
    for ridge in (float(said[1]), float(said[2]) * np.trace(gram) / 12):
        _, residual = factorise(gram, ridge).solve(np.arange(12.0))
        assert residual < 1e-6


def test_conditions_up_to_1e12_are_solved():
    assert factorise(gram_with(np.geomspace(1e-12, 1, 50))).solve(np.ones(50))[1] < 1e-2


def test_float32_rounding_counts_for_float32_grams():
    gram = gram_with(np.geomspace(1e-9, 1, 30))
    factorise(gram)
    with pytest.raises(SingularGramError, match="take float64 if it was made in float32"):
        factorise(gram.astype(np.float32))


def test_rounding_asymmetry_is_averaged_out():
    gram = gram_with(np.geomspace(1, 10, 6))
    skewed = gram.copy()
    skewed[0, 1] *= 1 + 1e-9
    factor = factorise(skewed)
    np.testing.assert_array_equal(factor.gram, factor.gram.T)


@pytest.mark.parametrize(
    ("gram", "ridge", "message"),
    [
        (np.ones((2, 3)), 0.0, r"square .* shape \(2, 3\)"),
        (np.ones((0, 0)), 0.0, r"shape \(0, 0\)"),
        (np.ones(4), 0.0, r"shape \(4,\)"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), 0.0, "2 values that are NaN"),
        (np.array([[2.0, 1.0], [0.9, 2.0]]), 0.0, r"not symmetric: .* up to 0.1 "),
        (np.eye(2), -1.0, "ridge is -1.0"),
        (np.eye(2), float("nan"), "ridge is nan"),
        (gram_with([-0.5, 1.0, 2.0]), 0.0, r"negative eigenvalue|smallest eigenvalue -0.5"),
        (np.zeros((2, 2)), 0.0, "singular: it is zero"),
    ],
)
def test_refusals_in_one_line(gram: np.ndarray, ridge: float, message: str):
    with pytest.raises(KernelError, match=message) as caught:
        factorise(gram, ridge)
    assert "\n" not in str(caught.value)


def test_a_negative_eigenvalue_is_more_than_singular():
    with pytest.raises(KernelError, match="not positive definite") as caught:
        factorise(gram_with([-0.5, 1.0, 2.0]))
    assert not isinstance(caught.value, SingularGramError)


@pytest.mark.parametrize("rhs", [np.ones(3), np.ones((4, 1, 1)), np.array([1, 2, np.inf, 4])])
def test_bad_right_hand_sides(rhs: np.ndarray):
    with pytest.raises(MeasureError, match="targets of shape"):
        factorise(np.eye(4)).solve(rhs)


def test_eigen_summary_of_one_and_of_blocks():
    one, two = gram_with([1.0, 2.0, 8.0]), gram_with([0.5, 2.0, 4.0])
    found = eigen_summary(one)
    np.testing.assert_allclose(
        [found.trace, found.smallest, found.largest, found.condition], [11, 1, 8, 8]
    )
    both = eigen_summary(np.stack([one, two]))
    np.testing.assert_allclose(
        [both.trace, both.smallest, both.largest, both.condition], [17.5, 0.5, 8, 16]
    )
    assert eigen_summary(np.diag([0.0, 1.0])).condition == float("inf")
