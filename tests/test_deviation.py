"""Laws of the deviation plot: exact slopes, planted counts, coverage, chunks, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distillens.errors import MeasureError
from distillens.measures import deviation, phi_from_logits, phi_from_probabilities
from distillens.measures.confidence import points as confidence
from distillens.measures.confidence.points import compare
from distillens.results.confidence import Agreement, Deviation

NAMED = {"student": "offline", "seed": 3, "split": "test"}


def made(examples: int = 300, classes: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    teacher = 3 * rng.normal(size=(examples, classes))
    student = 2 * teacher + rng.normal(size=(examples, classes))
    return teacher, student, rng.integers(classes, size=examples)


def measured(teacher, student, labels, **more) -> Deviation:
    return deviation(teacher, student, labels, **NAMED, **more)[0]


# --- φ ---


def test_phi_is_the_logit_of_the_probability():
    logits = np.random.default_rng(0).normal(size=(20, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    k = np.arange(20) % 5
    wanted = np.log(p[np.arange(20), k] / (1 - p[np.arange(20), k]))
    np.testing.assert_allclose(phi_from_logits(logits, k), wanted, rtol=1e-9)
    from_p, clipped = phi_from_probabilities(p[np.arange(20), k])
    np.testing.assert_allclose(from_p, wanted, rtol=1e-9)
    assert not clipped.any()


def test_phi_of_logits_does_not_saturate_or_overflow():
    np.testing.assert_array_equal(
        phi_from_logits([[900.0, 100.0], [0.0, 1e4]], [0, 0]), [800, -1e4]
    )
    # One output: z for class 1, -z for class 0.
    np.testing.assert_array_equal(phi_from_logits([[50.0], [50.0]], [1, 0]), [50, -50])


def test_phi_of_probabilities_is_clipped():
    phi, clipped = phi_from_probabilities([0.0, 0.5, 1.0, -0.2, 1.3], clip=0.01)
    edge = np.log(99)
    np.testing.assert_allclose(phi, [-edge, 0, edge, -edge, edge], atol=1e-12)
    np.testing.assert_array_equal(clipped, [True, False, True, True, True])


# --- students with a known answer ---


def test_the_teacher_itself():
    teacher, _, labels = made()
    found = measured(teacher, teacher.copy(), labels)
    assert found.slope.value == found.slope_low.value == found.slope_high.value == 1.0
    assert found.top_agreement == 1.0
    assert found.kl == 0.0
    assert found.underfit_share.value == 0.0
    assert found.right.only_student == found.right.only_teacher == 0
    assert found.slope.interval is not None
    assert found.slope.interval.low == pytest.approx(1.0)
    assert found.slope.interval.high == pytest.approx(1.0)
    assert found.notes == ()


@pytest.mark.parametrize("outputs", [1, 2])
def test_twice_the_logits_of_two_classes_is_slope_two(outputs: int):
    rng = np.random.default_rng(0)
    teacher, labels = rng.normal(size=(200, outputs)), rng.integers(2, size=200)
    found = measured(teacher, 2 * teacher, labels)
    assert found.slope.value == found.slope_low.value == found.slope_high.value == 2.0
    assert found.top_agreement == 1.0
    assert found.kl > 0


def test_a_less_sure_student_underfits_everywhere():
    teacher = np.random.default_rng(0).normal(size=(200, 2))
    found = measured(teacher, 0.5 * teacher, np.zeros(200, int))
    assert found.underfit_share.value == 1.0
    assert found.slope.value == 0.5
    assert found.underfit_share.interval is not None
    assert 0.9 < found.underfit_share.interval.low < 1
    assert "Wilson over 100" in found.underfit_share.interval.method


def test_low_and_high_slopes_are_of_their_parts():
    x = np.linspace(1, 5, 101)
    y = np.where(x < 3, 2 * x, 6 + 0.5 * (x - 3))
    zeros = np.zeros_like(x)
    found = measured(np.stack([x, zeros], 1), np.stack([y, zeros], 1), np.zeros(101, int))
    assert found.threshold == 3
    assert found.slope_low.value == pytest.approx(2)
    assert found.slope_high.value == pytest.approx(0.5)
    assert 0.5 < found.slope.value < 2


def test_slopes_are_of_y_on_x_of_the_teacher_s_class():
    teacher, student, labels = made()
    found, points = deviation(teacher, student, labels, **NAMED)
    k = teacher.argmax(axis=1)
    x, y = phi_from_logits(teacher, k), phi_from_logits(student, k)
    np.testing.assert_array_equal(points.x_N, x)
    np.testing.assert_array_equal(points.y_N, y)
    assert found.slope.value == pytest.approx(np.polyfit(x, y, 1)[0])
    low = x < np.median(x)
    assert found.slope_low.value == pytest.approx(np.polyfit(x[low], y[low], 1)[0])
    assert found.slope_high.value == pytest.approx(np.polyfit(x[~low], y[~low], 1)[0])
    assert found.underfit_share.value == np.mean(y[low] < x[low])
    assert (found.student, found.seed, found.split, found.examples) == ("offline", 3, "test", 300)


def test_kl_known_value_in_nats():
    teacher, student = np.log([[0.5, 0.5]] * 12), np.log([[0.9, 0.1]] * 12)
    wanted = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert measured(teacher, student, [0] * 12).kl == pytest.approx(wanted)
    # Softmax does not see a constant added to all logits.
    assert measured(teacher + 300, student - 40, [0] * 12).kl == pytest.approx(wanted)


def test_one_output_is_two_classes():
    rng = np.random.default_rng(0)
    g, f, labels = rng.normal(size=(80, 1)), rng.normal(size=(80, 1)), rng.integers(2, size=80)
    pair = [np.concatenate([np.zeros((80, 1)), z], axis=1) for z in (g, f)]
    assert measured(g, f, labels) == measured(pair[0], pair[1], labels)
    assert measured(g, f, labels) == measured(g, pair[1], labels)


def test_planted_counts():
    labels = np.zeros(100, int)
    planted = Agreement(both=50, only_student=7, only_teacher=12, neither=31)
    who = np.repeat([0, 1, 2, 3], [50, 7, 12, 31])
    order = np.random.default_rng(0).permutation(100)
    teacher_right, student_right = np.isin(who, [0, 2]), np.isin(who, [0, 1])
    # Where both are wrong, they are so in different ways.
    teacher = np.eye(3)[np.where(teacher_right, 0, 1)]
    student = np.eye(3)[np.where(student_right, 0, 2)]
    found, points = deviation(teacher[order], student[order], labels, **NAMED)
    assert found.right == planted
    np.testing.assert_array_equal(points.who_N, who[order])
    assert found.top_agreement == 0.5


# --- probabilities ---


def test_probabilities_and_logits_agree():
    teacher, student, labels = made(classes=3)
    p = np.exp(student - student.max(1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    clip = 1e-15
    by_logits = compare(teacher, student, labels)
    by_probabilities = compare(teacher, p, labels, student_kind="probabilities", clip=clip)
    assert by_probabilities.clipped == 0
    np.testing.assert_allclose(by_probabilities.points.y_N, by_logits.points.y_N, atol=1e-3)
    assert by_probabilities.kl == pytest.approx(by_logits.kl, rel=1e-6)


def test_clipped_points_are_counted_and_noted():
    teacher = np.tile([2.0, 0.0], (20, 1)) + np.linspace(0, 1, 20)[:, None] * [1, 0]
    student = np.full((20, 2), 0.5)
    student[:3] = [1.2, -0.2]
    student[3:5] = [-0.1, 1.1]
    found = measured(teacher, student, [0] * 20, student_kind="probabilities")
    assert found.clipped == 5
    assert np.isfinite(found.kl)
    assert "student's outputs were read as probabilities" in found.notes[0]


def test_one_probability_is_that_of_class_1():
    found = compare(
        [[0.9], [0.2]], [[0.6], [0.6]], [1, 0], teacher_kind="probabilities",
        student_kind="probabilities",
    )  # fmt: skip
    np.testing.assert_allclose(found.points.x_N, [np.log(9), np.log(4)])
    np.testing.assert_allclose(found.points.y_N, [np.log(1.5), -np.log(1.5)])
    assert found.right == Agreement(1, 0, 1, 0)


# --- intervals ---


def test_the_bootstrap_covers():
    hits = np.zeros(3)
    rng = np.random.default_rng(0)
    trials, examples = 200, 120
    for trial in range(trials):
        x = rng.uniform(0.5, 4, size=examples)
        # Noise grows with x, so that the textbook interval would be wrong.
        y = 1.3 * x + 0.3 * x * rng.normal(size=examples)
        zeros = np.zeros(examples)
        found = measured(
            np.stack([x, zeros], 1), np.stack([y, zeros], 1), np.zeros(examples, int),
            resamples=300, bootstrap_seed=trial,
        )  # fmt: skip
        for i, slope in enumerate((found.slope, found.slope_low, found.slope_high)):
            assert slope.interval is not None
            hits[i] += slope.interval.low <= 1.3 <= slope.interval.high
    assert (hits / trials > 0.88).all(), hits / trials
    assert (hits / trials < 0.99).all(), hits / trials


def test_the_bootstrap_is_a_plain_resampling():
    teacher, student, labels = made(examples=50)
    found, points = deviation(teacher, student, labels, **NAMED, resamples=100, bootstrap_seed=7)
    rng = np.random.default_rng(7)
    slopes_R3 = []
    for _ in range(100):
        chosen = rng.integers(50, size=50)
        x, y = points.x_N[chosen], points.y_N[chosen]
        low = x < found.threshold
        slopes_R3.append([np.polyfit(x[p], y[p], 1)[0] for p in (low | ~low, low, ~low)])
    wanted = np.quantile(slopes_R3, [0.025, 0.975], axis=0).T
    for slope, ends in zip((found.slope, found.slope_low, found.slope_high), wanted, strict=True):
        assert slope.interval is not None
        np.testing.assert_allclose([slope.interval.low, slope.interval.high], ends)
    assert found.slope.interval is not None
    assert found.slope.interval.method == ("bootstrap percentiles over examples, 100 resamples")


# --- chunks and memory maps ---


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    teacher, student, labels = made(examples=101)
    whole = measured(teacher, student, labels)
    maps = []
    for name, array in (("teacher", teacher), ("student", student)):
        np.save(tmp_path / f"{name}.npy", array)
        maps.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    monkeypatch.setattr(confidence, "_CHUNK_NUMBERS", 4 * 7)
    parts = measured(maps[0], maps[1], labels)
    assert parts.kl == pytest.approx(whole.kl, rel=1e-13)
    assert parts.slope == whole.slope
    assert parts.right == whole.right


def test_the_order_of_examples_does_not_matter():
    teacher, student, labels = made()
    order = np.random.default_rng(1).permutation(len(labels))
    one, other = measured(teacher, student, labels), measured(
        teacher[order], student[order], labels[order]
    )  # fmt: skip
    assert other.slope.value == pytest.approx(one.slope.value)
    assert other.right == one.right


# --- what is not defined ---


def test_an_equally_sure_teacher_has_no_slope():
    found = measured(np.tile([1.0, 0.0], (30, 1)), np.eye(2)[np.zeros(30, int)], [0] * 30)
    for slope in (found.slope, found.slope_low, found.slope_high):
        assert np.isnan(slope.value)
        assert slope.interval is None
    assert np.isnan(found.underfit_share.value)
    assert any("equally sure (1) at all 30 all points" in note for note in found.notes)
    assert any("0 low-confidence points are too few" in note for note in found.notes)


def test_small_parts_have_no_slope():
    teacher, student, labels = made(examples=15)
    found = measured(teacher, student, labels)
    assert np.isfinite(found.slope.value)
    assert found.slope.interval is not None
    assert np.isnan(found.slope_low.value)
    assert found.slope_low.interval is None
    assert len(found.notes) == 2


def test_one_point_that_differs_gives_no_interval():
    x = np.r_[np.ones(30), 2.0]
    logits = np.stack([x, np.zeros(31)], axis=1)
    found = measured(logits, logits, [0] * 31)
    assert found.slope.value == 1
    assert found.slope.interval is None
    assert any("no interval" in note for note in found.notes)


@pytest.mark.parametrize(
    ("teacher", "student", "labels", "message"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), [0, 0, 0], r"teacher \(3, 2\), student \(4, 2\)"),
        (np.ones((3, 2)), np.ones((3, 3)), [0, 0, 0], "same examples and classes"),
        (np.ones((3, 2)), np.ones((3, 2)), [0, 0], r"labels \(2,\)"),
        (np.ones(3), np.ones((3, 2)), [0, 0, 0], r"teacher's outputs have shape \(3,\)"),
        (np.ones((0, 2)), np.ones((0, 2)), np.zeros(0, int), r"shape \(0, 2\)"),
        (np.ones((3, 2)), np.ones((3, 2)), [0, 1, 2], "labels go from 0 to 2"),
        (np.ones((3, 2)), np.ones((3, 2)), [0.5, 1.0, 1.0], "give integers"),
        (np.ones((3, 1)), np.ones((3, 1)), [0, 1, 2], "with 2 classes"),
        ([[1, 0], [1, np.nan]], np.ones((2, 2)), [0, 0], "teacher's outputs .* at example 1"),
        (np.ones((2, 2)), [[1, 0], [np.inf, 0]], [0, 0], "student's outputs .* at example 1"),
    ],
)
def test_arrays_that_do_not_fit(teacher, student, labels, message: str):
    with pytest.raises(MeasureError, match=message):
        measured(teacher, student, labels)


def test_options_out_of_range():
    teacher, student, labels = made(20)
    with pytest.raises(MeasureError, match=r"clip is 0\.5"):
        measured(teacher, student, labels, clip=0.5)
    with pytest.raises(MeasureError, match="10 resamples are too few"):
        measured(teacher, student, labels, resamples=10)
