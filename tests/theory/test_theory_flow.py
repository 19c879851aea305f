"""Closed forms of gradient flow against numerical integration and their limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from distillens.errors import TheoryError
from distillens.theory import distilled_filter, learnt_share, linear_flow, time_to_learn

SHAPES = [(6, 9), (9, 6), (5, 5)]


def problem(examples: int, weights: int, seed: int = 0, rank: int | None = None):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, weights))
    if rank is not None:
        inputs = rng.normal(size=(examples, rank)) @ rng.normal(size=(rank, weights))
    return inputs, rng.normal(size=(examples, 2)), rng.normal(size=(weights, 2))


def integrate(inputs, targets, start, time):
    """Solve dβ/dt = −Xᵀ(Xβ − Y) step by step."""

    def slope(_, flat):
        return -(inputs.T @ (inputs @ flat.reshape(start.shape) - targets)).ravel()

    found = solve_ivp(slope, (0, time), start.ravel(), rtol=1e-10, atol=1e-12)
    return found.y[:, -1].reshape(start.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("time", [0.01, 0.3, 2.0])
def test_flow_equals_the_differential_equation(shape, time):
    inputs, targets, start = problem(*shape)
    flow = linear_flow(inputs, targets, start)
    np.testing.assert_allclose(
        flow.weights(time), integrate(inputs, targets, start, time), atol=1e-7
    )
    np.testing.assert_allclose(flow.predictions(time), inputs @ flow.weights(time), atol=1e-10)


@pytest.mark.parametrize("rank", [None, 3])
def test_student_equals_the_differential_equation_on_its_teachers_predictions(rank):
    inputs, targets, start = problem(7, 8, seed=1, rank=rank)
    teacher = linear_flow(inputs, targets, start)
    student = teacher.student(0.2, start=-start)
    expected = integrate(inputs, inputs @ teacher.weights(0.2), -start, 0.1)
    np.testing.assert_allclose(student.weights(0.1), expected, atol=1e-7)


def test_small_steps_of_gradient_descent_follow_the_flow_along_every_eigenvector():
    inputs, targets, start = problem(8, 6, seed=2)
    flow = linear_flow(inputs, targets, start)
    step, weights = 1e-5, start.copy()
    for _ in range(5000):
        weights -= step * inputs.T @ (inputs @ weights - targets)
    measured = flow.eigenvectors_PK.T @ weights
    np.testing.assert_allclose(flow.coordinates(5000 * step), measured, atol=2e-4)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_end_is_the_least_squares_solution_nearest_to_the_start(rank):
    inputs, targets, start = problem(5, 9, seed=3, rank=rank)
    expected = start + np.linalg.pinv(inputs, rcond=1e-12) @ (targets - inputs @ start)
    flow = linear_flow(inputs, targets, start)
    np.testing.assert_allclose(flow.weights(np.inf), expected, atol=1e-9)
    np.testing.assert_array_equal(flow.weights(0.0), start)
    assert (flow.eigenvalues_K > 0).sum() == (rank or 5)


def test_student_filter_is_the_product_of_two():
    inputs, targets, _ = problem(5, 7, seed=4)
    teacher = linear_flow(inputs, targets)
    student = teacher.student(0.3)
    shares = distilled_filter(teacher.eigenvalues_K, [0.3, 0.7])
    np.testing.assert_allclose(student.coordinates(0.7), shares[:, None] * teacher.goal_KC)
    third = student.student(0.7).coordinates(0.1)
    line = distilled_filter(teacher.eigenvalues_K, [0.3, 0.7, 0.1])
    np.testing.assert_allclose(third, line[:, None] * teacher.goal_KC)


def test_no_direction_is_learnt_faster_than_its_data_allow():
    np.testing.assert_array_equal(learnt_share([0.0, 1.0], np.inf), [0.0, 1.0])
    # For small λt the share is λt; 1 − exp would return 0 here.
    assert learnt_share(1e-20, 1.0) == pytest.approx(1e-20, rel=1e-12, abs=0)


@pytest.mark.parametrize("share", [1e-12, 0.3, 0.9, 1 - 1e-12])
@pytest.mark.parametrize("generations", [1, 2, 5])
def test_time_to_learn_is_the_inverse(share, generations):
    time = float(time_to_learn(2.0, share, generations))
    found = distilled_filter([2.0], [time] * generations)[0]
    assert found == pytest.approx(share, rel=1e-12, abs=0)
    assert 1 - found == pytest.approx(1 - share, rel=1e-3, abs=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: linear_flow(np.ones(3), np.ones(3)), "inputs have shape (3,)"),
        (lambda: linear_flow(np.ones((3, 2)), np.ones(4)), "targets of shape (4,)"),
        (lambda: linear_flow(np.full((3, 2), np.nan), np.ones(3)), "nan"),
        (lambda: linear_flow(np.ones((3, 2)), np.ones(3), np.ones(3)), "initial weights"),
        (lambda: distilled_filter([-1.0], [1.0]), "-1"),
        (lambda: distilled_filter([1.0], []), "one a generation"),
        (lambda: distilled_filter([1.0], [-2.0]), "-2"),
        (lambda: time_to_learn(1.0, 1.0), "shares above 0 and below 1"),
        (lambda: time_to_learn(0.0, 0.5), "above 0"),
        (lambda: time_to_learn(1.0, 0.5, 0), "0 generations"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(call, words):
    with pytest.raises(TheoryError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
