"""Laws of the certified solve: the exact value lies within, whatever the iterate and the product."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillens.errors import DistillensError, KernelError, MeasureError
from distillens.linalg import certified_quadratic_form, rp_cholesky
from distillens.linalg.certified import CertifiedValues, UndeterminedError
from distillens.linalg.iteration import interval
from distillens.linalg.nystrom import LowRankKernel

# What a float64 product of a few hundred rows is off by, relative to ‖K‖‖x‖.
EXACT = 1e-13


class Spectral:
    """A kernel by its eigenvalues in a random basis, of which yᵀ(K + λI)⁻¹y is known."""

    def __init__(self, eigenvalues: np.ndarray, seed: int = 0) -> None:
        size = len(eigenvalues)
        self.rng = np.random.default_rng(seed)
        self.basis, _ = np.linalg.qr(self.rng.normal(size=(size, size)))
        self.eigenvalues = eigenvalues
        gram = (self.basis * eigenvalues) @ self.basis.T
        self.gram = 0.5 * (gram + gram.T)
        self.norm = float(eigenvalues.max())

    def value(self, targets: np.ndarray, ridge: float) -> np.ndarray:
        inside = self.basis.T @ targets.reshape(len(targets), -1)
        return np.sum(inside**2 / (self.eigenvalues + ridge)[:, None], axis=0)

    def exact(self, targets: np.ndarray, ridge: float) -> np.ndarray:
        """The value of the matrix as it is stored: refined in extended precision."""
        y = targets.reshape(len(targets), -1).astype(np.longdouble)
        matrix = self.gram.astype(np.longdouble) + np.longdouble(ridge) * np.eye(len(y))
        x = np.zeros_like(y)
        for _ in range(8):
            x = x + np.linalg.solve(matrix.astype(float), (y - matrix @ x).astype(float))
        return np.sum(y * x, axis=0).astype(float)

    def product(self, x: np.ndarray) -> np.ndarray:
        return self.gram @ x

    def nystrom(self, rank: int) -> LowRankKernel:
        return rp_cholesky(lambda rows: self.gram[:, rows], np.diag(self.gram), rank, block=8)


def solve(
    kernel: Spectral,
    targets: np.ndarray,
    ridge: float,
    *,
    product: Callable[[np.ndarray], np.ndarray] | None = None,
    product_error: float = EXACT,
    preconditioner: LowRankKernel | None = None,
    width: float = 0.02,
    max_iterations: int = 1000,
) -> CertifiedValues:
    """The result, determined or not."""
    try:
        return certified_quadratic_form(
            product or kernel.product,
            targets,
            ridge,
            product_error=product_error,
            norm=kernel.norm,
            preconditioner=preconditioner,
            width=width,
            max_iterations=max_iterations,
        )
    except UndeterminedError as error:
        return error.result


def assert_within(result: CertifiedValues, wanted: np.ndarray, tolerance: float = 0.0) -> None:
    """The value that the test compares with has its own rounding, ``tolerance``."""
    assert (result.low <= wanted * (1 + tolerance)).all(), (result.low, wanted)
    assert (wanted * (1 - tolerance) <= result.high).all(), (wanted, result.high)
    assert (result.low <= result.estimate).all()
    assert (result.estimate <= result.high).all()


@settings(max_examples=120, deadline=None)
@given(
    size=st.integers(2, 60),
    condition=st.floats(0, 12),
    ridge=st.floats(-9, 1),
    rank=st.integers(0, 20),
    steps=st.integers(1, 40),
    columns=st.integers(1, 4),
    seed=st.integers(0, 1000),
    smooth=st.booleans(),
)
def test_the_exact_value_is_within_after_any_number_of_steps(
    size: int,
    condition: float,
    ridge: float,
    rank: int,
    steps: int,
    columns: int,
    seed: int,
    smooth: bool,
):
    kernel = Spectral(np.geomspace(1, 10**-condition, size), seed)
    targets = kernel.rng.normal(size=(size, columns))
    if smooth:  # what a kernel finds easy: most of the value is in large eigenvalues
        targets = kernel.gram @ targets
    preconditioner = kernel.nystrom(min(rank, size)) if rank else None
    found = solve(kernel, targets, 10**ridge, preconditioner=preconditioner, max_iterations=steps)
    # Stored in float64, K may have an eigenvalue of -1e-16, which the certificate rules out.
    assert_within(found, kernel.exact(targets, 10**ridge), tolerance=1e-15 / 10**ridge + 1e-14)
    assert (found.width[found.converged] <= 0.02).all()


@pytest.mark.parametrize("off", [-0.5, -1e-3, 1e-3, 0.5])
def test_any_x_proves_an_interval(off: float):
    """Not only an iterate of conjugate gradients, for which rᵀx vanishes."""
    kernel = Spectral(np.geomspace(1, 1e-3, 60))
    y = kernel.rng.normal(size=(60, 2))
    shifted = kernel.gram + 0.01 * np.eye(60)
    x = np.asarray((1 + off) * np.linalg.solve(shifted, y), dtype=np.float64)
    residual = y - shifted @ x
    form = np.sum(residual * np.linalg.solve(shifted, residual), axis=0)
    found = interval(
        y, x, residual, form, 1e-12 / np.linalg.norm(x, axis=0).min(), 0.01, kernel.gram @ x
    )
    wanted = kernel.exact(y, 0.01)
    assert (found.low < wanted).all()
    assert (wanted < found.high).all()
    # With the exact form as its bound, the upper end is the value but for rounding.
    np.testing.assert_allclose(found.high, wanted, rtol=1e-8)
    np.testing.assert_allclose(found.low, wanted - form, rtol=1e-8)


def test_the_recurrence_proves_nothing():
    """The steps see a kernel that is 1.5 times too large, the looks at the residual do not."""
    kernel = Spectral(np.geomspace(1, 0.1, 40))
    targets = kernel.rng.normal(size=40)
    # One product a step, and one look at the residual.
    steps = solve(kernel, targets, 0.1, product=lambda x: 1.5 * kernel.product(x)).products - 1
    calls = 0

    def product(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return (1.5 if calls <= steps else 1.0) * kernel.product(x)

    found = solve(kernel, targets, 0.1, product=product)
    assert_within(found, kernel.value(targets, 0.1))
    # The first look sees through it, and the restart from the true residual repairs it.
    assert found.converged.all()
    assert found.products > steps + 1


def test_few_steps_give_a_wide_interval_that_shrinks():
    kernel = Spectral(np.geomspace(1, 1e-6, 200))
    targets = kernel.rng.normal(size=200)
    widths = [
        float((found.high - found.low)[0])
        for found in (solve(kernel, targets, 1e-4, max_iterations=n) for n in (1, 5, 25, 100))
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 20 * widths[-1]


def test_an_iterate_that_is_not_the_galerkin_one_needs_every_term():
    """A product with a systematic error spoils rᵀx = 0, which hides a missing term otherwise."""
    kernel = Spectral(np.geomspace(1, 1e-3, 80))
    targets = kernel.rng.normal(size=80)
    spoiled = kernel.basis @ np.diag(kernel.rng.uniform(0.9, 1.1, 80)) @ kernel.basis.T
    calls = 0

    def product(x: np.ndarray) -> np.ndarray:
        # The steps see another kernel than the last look, which counts.
        nonlocal calls
        calls += 1
        return kernel.gram @ x if calls > 12 else spoiled @ kernel.gram @ spoiled @ x

    found = solve(kernel, targets, 1e-3, product=product, max_iterations=12)
    assert_within(found, kernel.value(targets, 1e-3))


def test_the_preconditioner_narrows_the_bound_and_saves_iterations():
    eigenvalues = np.concatenate([np.geomspace(1e5, 1, 30), np.full(170, 1e-2)])
    kernel = Spectral(eigenvalues)
    targets = kernel.rng.normal(size=(200, 3))
    plain = solve(kernel, targets, 1e-3)
    helped = solve(kernel, targets, 1e-3, preconditioner=kernel.nystrom(60))
    assert plain.converged.all()
    assert helped.converged.all()
    assert helped.products < 0.5 * plain.products
    for found in (plain, helped):
        assert_within(found, kernel.value(targets, 1e-3), tolerance=1e-8)
    few = solve(kernel, targets, 1e-3, preconditioner=kernel.nystrom(60), max_iterations=1)
    assert (few.high < np.sum(targets**2, axis=0) / 1e-3).all()


def test_a_factor_of_unknown_excess_bounds_nothing():
    """Twice K is no lower bound of K: as one it would give half the value."""
    kernel = Spectral(np.geomspace(1, 1e-3, 40))
    targets = kernel.rng.normal(size=40)
    none = np.empty(0, dtype=np.intp)
    double = LowRankKernel(kernel.basis, 2 * kernel.eigenvalues, np.inf, np.inf, none)
    assert np.isinf(double.bound(targets[:, None], 1e-3)).all()
    for steps in (1, 3, 200):
        found = solve(kernel, targets, 1e-3, preconditioner=double, max_iterations=steps)
        assert_within(found, kernel.value(targets, 1e-3), tolerance=1e-10)
    assert found.converged.all()


@settings(max_examples=80, deadline=None)
@given(
    error=st.floats(-9, -2),
    ridge=st.floats(-5, 0),
    rank=st.integers(0, 15),
    steps=st.integers(1, 60),
    seed=st.integers(0, 1000),
    steady=st.booleans(),
)
def test_a_product_with_an_error_of_the_stated_size_is_covered(
    error: float, ridge: float, rank: int, steps: int, seed: int, steady: bool
):
    kernel = Spectral(np.geomspace(1, 1e-6, 40), seed)
    targets = kernel.rng.normal(size=(40, 2))
    size, lam = 10**error, 10**ridge
    skew = kernel.rng.normal(size=(40, 40))
    skew *= size / np.linalg.norm(skew, 2)

    def product(x: np.ndarray) -> np.ndarray:
        if steady:
            return kernel.gram @ x - skew @ x
        # The worst direction for the low end: along x.
        return kernel.gram @ x + size * x * kernel.rng.choice([-1, 1], size=x.shape[1])

    found = solve(
        kernel,
        targets,
        lam,
        product=product,
        product_error=size * (1 + 1e-6) + EXACT,
        preconditioner=kernel.nystrom(rank) if rank else None,
        max_iterations=steps,
    )
    assert_within(found, kernel.value(targets, lam))


def test_an_error_that_is_too_large_for_the_width_is_said_before_the_last_iteration():
    kernel = Spectral(np.geomspace(1, 1e-6, 60))
    targets = kernel.rng.normal(size=60)
    rng = np.random.default_rng(0)

    def product(x: np.ndarray) -> np.ndarray:
        noise = rng.normal(size=x.shape)
        noise *= 1e-4 * np.linalg.norm(x, axis=0) / np.linalg.norm(noise, axis=0)
        return kernel.gram @ x + noise

    with pytest.raises(UndeterminedError, match="product error and rounding alone") as caught:
        certified_quadratic_form(
            product, targets, 1e-4, product_error=1e-4, norm=1.0, max_iterations=3000
        )
    result = caught.value.result
    assert not result.converged.any()
    assert result.products < 1000
    assert_within(result, kernel.value(targets, 1e-4))


def test_the_preconditioner_knows_the_norm():
    kernel = Spectral(np.geomspace(1, 1e-3, 40))
    targets = kernel.rng.normal(size=40)
    certified_quadratic_form(
        kernel.product, targets, 1e-1, product_error=1e-9, preconditioner=kernel.nystrom(10)
    )
    with pytest.raises(KernelError, match="give norm"):
        certified_quadratic_form(kernel.product, targets, 1e-1, product_error=1e-9)


def test_a_condition_of_3e7_is_solved_to_a_narrow_interval():
    kernel = Spectral(np.geomspace(1, 1e-9, 400))
    targets = kernel.rng.normal(size=400)
    ridge = 1 / 3e7
    found = certified_quadratic_form(
        kernel.product,
        targets,
        ridge,
        product_error=1e-14,
        norm=1.0,
        preconditioner=kernel.nystrom(150),
        width=1e-3,
        max_iterations=400,
    )
    assert found.width[0] <= 1e-3
    assert_within(found, kernel.value(targets, ridge), tolerance=1e-6)


def test_a_zero_target_is_zero_and_costs_nothing():
    kernel = Spectral(np.geomspace(1, 1e-2, 20))
    found = certified_quadratic_form(kernel.product, np.zeros(20), 0.1, product_error=0)
    assert (found.low, found.high, found.estimate, found.width) == (0, 0, 0, 0)
    assert found.converged.all()
    assert found.products == 0
    beside = kernel.rng.normal(size=20)
    both = certified_quadratic_form(
        kernel.product, np.column_stack([np.zeros(20), beside]), 0.1, product_error=0
    )
    assert both.high[0] == 0
    assert_within(both, kernel.value(np.column_stack([np.zeros(20), beside]), 0.1), 1e-12)


@pytest.mark.parametrize("rank", [0, 12])
def test_columns_together_equal_columns_alone(rank: int):
    kernel = Spectral(np.geomspace(1, 1e-2, 90))
    # Of unlike difficulty, so that they end at different steps.
    targets = np.column_stack([kernel.rng.normal(size=90), kernel.basis[:, 0], kernel.basis[:, 50]])
    preconditioner = kernel.nystrom(rank) if rank else None
    together = solve(kernel, targets, 1e-2, preconditioner=preconditioner, width=1e-6)
    for column in range(3):
        alone = solve(kernel, targets[:, column], 1e-2, preconditioner=preconditioner, width=1e-6)
        np.testing.assert_allclose(alone.low[0], together.low[column], rtol=1e-9)
        np.testing.assert_allclose(alone.high[0], together.high[column], rtol=1e-9)


def test_the_targets_are_left_alone():
    kernel = Spectral(np.geomspace(1, 1e-4, 50))
    targets = kernel.rng.normal(size=50)
    before = targets.copy()
    found = certified_quadratic_form(kernel.product, targets, 1e-3, product_error=EXACT, norm=1.0)
    assert found.products > 0
    np.testing.assert_array_equal(targets, before)


def test_too_few_iterations_name_the_width_reached():
    kernel = Spectral(np.geomspace(1, 1e-6, 100))
    with pytest.raises(UndeterminedError, match="more than 3 iterations") as caught:
        certified_quadratic_form(
            kernel.product,
            kernel.rng.normal(size=100),
            1e-5,
            product_error=0,
            max_iterations=3,
        )
    result = caught.value.result
    assert f"{result.width[0]:.3g} of its value" in str(caught.value)
    assert not result.converged.any()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ridge": 0.0}, "ridge is 0.0"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"targets": np.ones((4, 1, 1))}, r"of shape \(4, 1, 1\)"),
        ({"targets": np.ones(0)}, r"of shape \(0,\)"),
        ({"targets": np.array([1, np.nan, 1, 1])}, "NaN or infinity"),
        ({"targets": np.ones(5)}, r"returned shape \(4, 1\); return \(5, 1\)"),
        ({"product": lambda x: np.full(x.shape, np.nan)}, "4 values that are NaN"),
        ({"product": lambda x: x[:, 0]}, r"returned shape \(4,\)"),
        ({"product": lambda x: -x}, "not positive semidefinite"),
        ({"product_error": -1.0}, "product error is -1.0"),
        ({"product_error": float("inf")}, "product error is inf"),
        ({"product_error": 1e-6, "norm": None}, "give norm"),
        ({"norm": float("nan")}, "norm is nan"),
        ({"width": 0.0}, "width is 0.0"),
        ({"max_iterations": 0}, "max_iterations is 0"),
        (
            {"preconditioner": rp_cholesky(lambda rows: np.eye(3)[:, rows], np.ones(3), 2)},
            "preconditioner has 3 rows and the targets have 4",
        ),
    ],
)
def test_refusals_in_one_line(change: dict, message: str):
    arguments = {
        "product": lambda x: np.diag([1.0, 2.0, 3.0, 4.0])[:, : len(x)] @ x[:4],
        "targets": np.ones(4),
        "ridge": 0.1,
        "product_error": 1e-14,
        "norm": 4.0,
    }
    with pytest.raises((KernelError, MeasureError), match=message) as caught:
        certified_quadratic_form(**(arguments | change))
    assert isinstance(caught.value, DistillensError)
    assert "\n" not in str(caught.value)
