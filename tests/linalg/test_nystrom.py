"""Laws of the partial Cholesky: below the kernel, stable to apply, and honest about rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillens.errors import KernelError
from distillens.linalg import rp_cholesky
from distillens.linalg.nystrom import LowRankKernel


def kernel_of(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))
    gram = (basis * eigenvalues) @ basis.T
    return 0.5 * (gram + gram.T)


def of_factor(factor: np.ndarray, excess: float = np.inf) -> LowRankKernel:
    basis, roots, _ = np.linalg.svd(factor, full_matrices=False)
    return LowRankKernel(basis, roots**2, excess, np.inf, np.empty(0, dtype=np.intp))


def approximate(gram: np.ndarray, rank: int, **more) -> LowRankKernel:
    return rp_cholesky(lambda rows: gram[:, rows], np.diag(gram), rank, **more)


def dense(kernel: LowRankKernel) -> np.ndarray:
    return (kernel.basis * kernel.eigenvalues) @ kernel.basis.T


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(2, 60),
    condition=st.floats(0, 16),
    rank=st.integers(1, 60),
    block=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_it_lies_below_the_kernel(size: int, condition: float, rank: int, block: int, seed: int):
    gram = kernel_of(np.geomspace(1, 10**-condition, size), seed)
    found = approximate(gram, min(rank, size), block=block, seed=seed)
    left = np.linalg.eigvalsh(gram - dense(found))
    # eigvalsh has rounding of its own.
    assert left[0] >= -found.excess - 1e-15 * size
    assert found.norm >= 1 - 1e-12
    assert found.norm <= np.trace(gram) * (1 + 1e-12)


def test_its_excess_is_about_rounding():
    for decay in (1e-3, 1e-8, 1e-14):
        found = approximate(kernel_of(np.geomspace(1, decay, 300)), 150)
        assert found.excess < 1e-10


def test_columns_in_float32_make_the_excess_large_and_true():
    gram = kernel_of(np.geomspace(1, 1e-9, 120))
    rough = gram.astype(np.float32).astype(np.float64)
    error = np.linalg.norm(rough - gram) / np.linalg.norm(gram)
    found = rp_cholesky(
        lambda rows: rough[:, rows], np.diag(rough), 60, column_error=4 * float(error)
    )
    assert np.linalg.eigvalsh(gram - dense(found))[0] >= -found.excess
    assert found.excess > 1e-9
    # A ridge below it: nothing is certain of LLᵀ.
    assert np.isinf(found.bound(np.ones((120, 1)), 0.5 * found.excess)).all()


def test_the_kernel_agrees_in_the_columns_used_and_all_of_it_at_full_rank():
    gram = kernel_of(np.geomspace(1, 1e-3, 50))
    found = approximate(gram, 20)
    np.testing.assert_allclose(dense(found)[:, found.pivots], gram[:, found.pivots], atol=1e-13)
    assert len(set(found.pivots)) == 20
    np.testing.assert_allclose(dense(approximate(gram, 50)), gram, atol=1e-12)


def test_a_kernel_of_low_rank_is_found_and_the_rest_dropped():
    factor = np.random.default_rng(0).normal(size=(80, 5))
    found = approximate(factor @ factor.T, 30)
    assert len(found.eigenvalues) == 5
    np.testing.assert_allclose(dense(found), factor @ factor.T, atol=1e-10)


def test_duplicate_rows_are_one_column():
    found = approximate(np.ones((12, 12)), 6)
    assert len(found.eigenvalues) == 1
    np.testing.assert_allclose(dense(found), 1, rtol=1e-12)


def test_randomly_pivoted_is_near_the_best_approximation():
    eigenvalues = np.geomspace(1, 1e-10, 200)
    gram = kernel_of(eigenvalues)
    lost = np.trace(gram) - approximate(gram, 60).eigenvalues.sum()
    assert lost < 20 * eigenvalues[60:].sum() + 20 * eigenvalues[60] * 60


@pytest.mark.parametrize("ridge", [1e-14, 1e-8, 1.0])
def test_solving_is_stable_at_any_ridge(ridge: float):
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    roots = np.geomspace(1, 1e-3, 12)
    kernel = of_factor(basis[:, :12] * roots)
    inside, outside = basis[:, 2], basis[:, 30]
    found = kernel.solve(np.column_stack([inside, outside]), ridge)
    np.testing.assert_allclose(basis[:, 2] @ found[:, 0], 1 / (roots[2] ** 2 + ridge), rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], outside / ridge, rtol=1e-6, atol=1e-6 / ridge)


@settings(max_examples=40, deadline=None)
@given(ridge=st.floats(-12, 2), rank=st.integers(1, 30), seed=st.integers(0, 100))
def test_the_bound_is_above_the_form_and_equal_to_it_for_the_factor(
    ridge: float, rank: int, seed: int
):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(30, rank))
    kernel = of_factor(factor, excess=1e-13)
    r = rng.normal(size=(30, 2))
    # By the singular values in another order of the arithmetic.
    left, roots, _ = np.linalg.svd(factor)
    values = np.zeros(30)
    values[:rank] = roots**2
    wanted = np.sum((left.T @ r) ** 2 / (values + 10**ridge)[:, None], axis=0)
    found = kernel.bound(r, 10**ridge)
    if kernel.excess < 0.1 * 10**ridge:
        np.testing.assert_allclose(found, wanted, rtol=1e-9 + 2 * kernel.excess / 10**ridge)
    assert (found >= wanted * (1 - 1e-9)).all()


def test_the_draws_repeat_with_the_seed():
    gram = kernel_of(np.geomspace(1, 1e-4, 60))
    one, same, other = (approximate(gram, 20, seed=seed).pivots for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert set(one) != set(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diagonal": np.ones((3, 3))}, r"shape \(N,\), this has \(3, 3\)"),
        ({"diagonal": np.array([1.0, -0.5, 1.0])}, "goes down to -0.5"),
        ({"diagonal": np.array([1.0, np.nan, 1.0])}, "1 values that are NaN"),
        ({"diagonal": np.zeros(3)}, "all zero"),
        ({"diagonal": 2 * np.ones(3)}, "differ by 1 where they meet"),
        ({"columns": lambda rows: np.eye(3)}, r"came in shape \(3, 3\); return \(3, 2\)"),
        ({"columns": lambda rows: np.full((3, len(rows)), np.inf)}, "6 values that are NaN"),
        ({"rank": 0}, "rank is 0; give 1 to 3"),
        ({"rank": 4}, "rank is 4; give 1 to 3"),
        ({"block": 0}, "block is 0"),
        ({"column_error": -1.0}, "column error is -1.0"),
        ({"column_error": 0.5}, "no column is above the stated column error 0.5"),
    ],
)
def test_refusals_in_one_line(change: dict, message: str):
    arguments = {"columns": lambda rows: np.eye(3)[:, rows], "diagonal": np.ones(3), "rank": 2}
    with pytest.raises(KernelError, match=message) as caught:
        rp_cholesky(**(arguments | change))
    assert "\n" not in str(caught.value)
