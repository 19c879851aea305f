"""Eigenspace dynamics against closed forms, planted pairs and laws."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import MeasureError
from distillens.measures.eigenspace import (
    compare_pairs,
    draw_pairs,
    example_directions,
    gram_directions,
    input_directions,
    project_predictions,
    project_weights,
    summarise_bias,
)
from distillens.results.eigenspace import PairBias
from distillens.theory import linear_flow

ALL = [(top, bottom) for top in range(1, 8) for bottom in range(top + 1, 9)]


def problem(seed: int = 0):
    """Return inputs (30, 8) with well separated eigenvalues, and targets of two outputs."""
    rng = np.random.default_rng(seed)
    scores, _ = np.linalg.qr(rng.normal(size=(30, 8)))
    axes, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    return scores * 1.6 ** -np.arange(8) @ axes, rng.normal(size=(30, 2))


def descend(inputs, targets, start, step, steps, every):
    """Full-batch gradient descent on ½‖XW − Y‖²; return the weights at every so many steps."""
    weights, found = start.copy(), [start.copy()]
    for number in range(1, steps + 1):
        weights -= step * inputs.T @ (inputs @ weights - targets)
        if number % every == 0:
            found.append(weights.copy())
    return found


# With step·λ ≤ 0.002, descent follows the flow to a relative 0.001 of the distance covered.
STEP, STEPS, EVERY, NEAR = 0.002, 3000, 300, 2e-3


def test_descent_on_a_linear_model_follows_the_closed_form():
    inputs, targets = problem()
    start = 0.3 * np.random.default_rng(1).normal(size=(8, 2))
    weights, change = project_weights(
        descend(inputs, targets, start, STEP, STEPS, EVERY), input_directions(inputs, 8).vectors
    )
    flow = linear_flow(inputs, targets, start)
    for place, time in enumerate(np.arange(0, STEPS + 1, EVERY) * STEP):
        expected = flow.coordinates(float(time))
        np.testing.assert_allclose(weights[place], np.linalg.norm(expected, axis=1), atol=NEAR)
        moved = np.linalg.norm(expected - flow.coordinates(0.0), axis=1)
        np.testing.assert_allclose(change[place], moved, atol=NEAR)


def test_predictions_learn_each_direction_at_its_own_rate():
    inputs, targets = problem()
    trajectory = descend(inputs, targets, np.zeros((8, 2)), STEP, STEPS, EVERY)
    predictions = np.stack([inputs @ weights for weights in trajectory])
    course = project_predictions(predictions, gram_directions(inputs @ inputs.T, 8), targets)
    times = np.arange(0, STEPS + 1, EVERY) * STEP
    eigenvalues = input_directions(inputs, 8).eigenvalues_K
    np.testing.assert_allclose(
        course.learnt_EK, 1 - np.exp(-times[:, None] * eigenvalues), atol=NEAR
    )
    np.testing.assert_allclose(course.size_EK, course.learnt_EK * course.target_K, atol=1e-9)
    energy_E = np.sum(predictions**2, axis=(1, 2))
    np.testing.assert_allclose((course.size_EK**2).sum(1), energy_E, atol=1e-12)


def trajectories(teacher_time: float = 3.0, points: int = 1001):
    """Return the components of a teacher and of its student in gradient flow from zero."""
    inputs, targets = problem()
    flow = linear_flow(inputs, targets)
    times = np.linspace(0, teacher_time, points)
    return tuple(
        np.stack([np.linalg.norm(one.coordinates(float(t)), axis=1) for t in times])
        for one in (flow, flow.student(teacher_time))
    )


def test_in_gradient_flow_the_students_bias_is_stronger_for_every_pair():
    teacher, student = trajectories()
    found = compare_pairs(teacher, student, ALL)
    assert [(pair.top, pair.bottom) for pair in found] == ALL
    assert all(pair.stronger and pair.stronger_at_end for pair in found)
    assert all(pair.below == 1 for pair in found)


def test_the_theorem_turns_with_its_roles():
    teacher, student = trajectories()
    assert all(pair.stronger is False for pair in compare_pairs(student, teacher, ALL))


def test_a_student_equal_to_its_teacher_is_undecided():
    teacher, _ = trajectories(points=50)
    found = compare_pairs(teacher, teacher, ALL)
    assert all(pair.stronger is None and pair.stronger_at_end is None for pair in found)
    assert "same" in (found[0].undecided or "")


def test_only_the_path_counts_not_its_pace_or_scale():
    teacher, student = trajectories(points=400)
    expected = compare_pairs(teacher, student, ALL)
    # Fewer, unevenly chosen checkpoints that leave the path nearly as it is, and another unit.
    kept = np.unique((400 * np.linspace(0, 1, 200) ** 2).astype(int).clip(max=399))
    found = compare_pairs(7 * teacher, 7 * student[kept], ALL)
    assert [pair.stronger for pair in found] == [pair.stronger for pair in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.student_bottom, 7 * other.student_bottom, rtol=1e-3)


def line(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=float)


def test_planted_pairs_are_found():
    """Straight paths y = slope·x; the student's is flatter in 9 of 15 pairs, equal in 2."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 9)
    slopes = rng.uniform(0.3, 0.9, 15)
    factor = np.array([0.8] * 9 + [1.0] * 2 + [1.3] * 4)
    teacher = np.stack([x, *(slope * x for slope in slopes)], axis=1)
    student = np.stack([x, *(slope * x for slope in slopes * factor)], axis=1)
    found = compare_pairs(teacher, student, [(1, bottom) for bottom in range(2, 17)])
    assert [pair.stronger for pair in found] == [True] * 9 + [None] * 2 + [False] * 4
    # The mean of slope·x over [0, 1] is half the slope.
    np.testing.assert_allclose([pair.teacher_bottom for pair in found], slopes / 2, rtol=1e-6)


def test_a_student_that_overshoots_counts_where_it_first_passes():
    teacher = line((0, 0), (1, 1))
    # Reaches twice the teacher's top with little of the bottom, then comes back with more of it.
    student = line((0, 0), (2, 0.4), (1, 3), (0.5, 3))
    (found,) = compare_pairs(teacher, student, [(1, 2)])
    assert (found.stronger, found.below, found.high) == (True, 1.0, 1.0)
    assert found.student_bottom == pytest.approx(0.1)
    # A path that stalls along the top has jumped when it goes on.
    stalled = line((0, 0), (0.5, 0.1), (0.4, 2), (1, 2))
    (found,) = compare_pairs(teacher, stalled, [(1, 2)])
    assert found.stronger is False
    assert found.student_bottom == pytest.approx(0.5 * 0.05 + 0.5 * 2, abs=0.01)


@pytest.mark.parametrize(
    ("student", "why"),
    [
        (line((2, 0), (3, 1)), "common range is 0"),
        (line((0.95, 0), (3, 1)), "common range is 0.05"),
        (line((0.5, 0), (0.4, 1), (0.5, 2)), "the student never rises"),
    ],
)
def test_ranges_that_do_not_meet_are_undecided_and_say_why(student, why):
    (found,) = compare_pairs(line((0, 0), (1, 1)), student, [(1, 2)])
    assert found.stronger is None
    assert found.stronger_at_end is None
    assert why in (found.undecided or "")


@pytest.mark.parametrize(
    ("teacher", "pairs", "message"),
    [
        (np.zeros((1, 2)), [(1, 2)], "at least 2 checkpoints"),
        (line((0, np.nan), (1, 1)), [(1, 2)], "NaN"),
        (line((0, -1), (1, 1)), [(1, 2)], "below 0"),
        (line((0, 0), (1, 1)), [(2, 1)], "top < bottom"),
        (line((0, 0), (1, 1)), [(1, 3)], "none of 2 directions"),
    ],
)
def test_what_cannot_be_compared_is_refused(teacher, pairs, message):
    with pytest.raises(MeasureError, match=message):
        compare_pairs(teacher, line((0, 0), (1, 1)), pairs)


def test_drawn_pairs_lie_in_their_ranges_and_differ():
    pairs = draw_pairs(15 * 41, 3)
    assert len(set(pairs)) == 15 * 41
    assert {top for top, _ in pairs} == set(range(1, 16))
    assert {bottom for _, bottom in pairs} == set(range(20, 61))
    assert draw_pairs(15, 0) == draw_pairs(15, 0) != draw_pairs(15, 1)
    with pytest.raises(MeasureError, match="1 to 615"):
        draw_pairs(616, 0)
    with pytest.raises(MeasureError, match="make no pairs"):
        draw_pairs(1, 0, top=5, bottom=(5, 9))


def test_randomised_svd_agrees_with_the_exact_one():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 120)) * 1.1 ** -np.arange(120.0)
    exact, fast = (input_directions(inputs, 30, exact=how) for how in (True, False))
    assert (exact.decomposition, fast.decomposition) == ("exact SVD", "randomised SVD")
    np.testing.assert_allclose(fast.eigenvalues_K, exact.eigenvalues_K, rtol=1e-6)
    overlap = np.abs(np.sum(fast.vectors * exact.vectors, axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-4)
    assert max(exact.residual, fast.residual) < 1e-6


def test_directions_of_examples_are_those_of_the_gram():
    inputs, _ = problem()
    short = example_directions(inputs, input_directions(inputs, 8))
    long = gram_directions(inputs @ inputs.T, 8)
    np.testing.assert_allclose(short.eigenvalues_K, long.eigenvalues_K, rtol=1e-9)
    np.testing.assert_allclose(np.abs(short.vectors.T @ long.vectors), np.eye(8), atol=1e-8)
    assert short.residual < 1e-9


@pytest.mark.parametrize(
    ("inputs", "count", "message"),
    [
        (np.ones((5, 4)), 2, "1 directions to rounding"),
        (np.eye(4), 5, "at most 4"),
        (np.full((3, 3), np.inf), 1, "NaN or infinity"),
        (np.ones(3), 1, r"give \(N, D\)"),
    ],
)
def test_inputs_without_directions_are_refused(inputs, count, message):
    with pytest.raises(MeasureError, match=message):
        input_directions(inputs, count)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(MeasureError, match="give \\(D, H\\)"):
        project_weights([np.ones((3, 2))], np.eye(4))
    with pytest.raises(MeasureError, match="checkpoint 1 has 5 units"):
        project_weights([np.ones((4, 2)), np.ones((4, 5))], np.eye(4))
    with pytest.raises(MeasureError, match="no checkpoint"):
        project_weights([], np.eye(4))


def marks(*stronger: bool | None) -> list[PairBias]:
    return [
        PairBias(1, 20 + n, "change", mark, mark, 1.0, 1.0, 1.0, 0.0, 1.0, None if mark else "why")
        for n, mark in enumerate(stronger)
    ]


def test_shares_are_over_teachers_and_leave_undecided_pairs_out():
    found = summarise_bias(
        "KD",
        "change",
        [
            ("a", marks(True, True, None, None)),  # 1
            ("b", marks(True, True, True, False)),  # 3/4, and with the next 1/2
            ("b", marks(False, False, True, False)),
            ("c", marks(True, True, True, True)),
        ],
    )
    assert (found.students, found.teachers, found.pairs) == (4, 3, 4)
    assert (found.stronger, found.not_stronger, found.undecided) == (10, 4, 2)
    assert found.share.value == pytest.approx((1 + 0.5 + 1) / 3)
    assert found.share.interval is not None
    # t of 2 degrees of freedom is 4.303, the standard error 0.5/3; above 1 it is cut.
    assert found.share.interval.low == pytest.approx(2.5 / 3 - 4.3027 * 0.5 / 3, abs=1e-3)
    assert found.share.interval.high == 1
    assert "over 3 teachers" in found.share.interval.method
    assert found.majority.value == pytest.approx(2 / 3)


def test_where_all_teachers_agree_the_majority_keeps_a_width():
    found = summarise_bias("KD", "change", [(str(n), marks(True, True)) for n in range(20)])
    assert found.share.interval is not None
    assert found.share.interval.low == found.share.interval.high == 1
    assert found.majority.interval is not None
    assert found.majority.interval.low == pytest.approx(0.839, abs=1e-3)
    assert found.majority.interval.method == "Wilson over 20 teachers"


def test_one_teacher_gives_an_interval_over_its_students():
    found = summarise_bias(
        "KD",
        "change",
        [("a", marks(True, False)), ("a", marks(True, True)), ("a", marks(None, None))],
    )
    assert found.share.value == pytest.approx(0.75)
    assert found.share.interval is not None
    assert "2 students of one teacher" in found.share.interval.method
