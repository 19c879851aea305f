"""Laws of supervision complexity: closed forms, inequalities, invariances, agreement of forms."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import KernelError, MeasureError
from distillens.measures import (
    coding_of,
    factorise_gram,
    gradient_residual,
    label_targets,
    prediction_targets,
    random_label_targets,
    softmax,
    supervision_complexity,
    teacher_targets,
)
from distillens.results.complexity import KernelForm

N, C = 14, 3


def random_gram(size: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(size, 2 * size))
    return features @ features.T


def class_grams(seed: int = 0) -> np.ndarray:
    return np.stack([random_gram(N, seed + c) for c in range(C)])


def block_diagonal(grams_CNN: np.ndarray) -> np.ndarray:
    """The full Gram, example-major, of classes that share no gradient."""
    full = np.zeros((N, C, N, C))
    for c, gram_NN in enumerate(grams_CNN):
        full[:, c, :, c] = gram_NN
    return full.reshape(N * C, N * C)


@pytest.fixture
def targets_NC() -> np.ndarray:
    return label_targets(np.random.default_rng(5).integers(C, size=N), C)


@pytest.fixture
def outputs_NC() -> np.ndarray:
    return prediction_targets(np.random.default_rng(6).normal(size=(N, C)))


# --- the definitions ---


def test_the_paper_s_formulas():
    gram, rng = random_gram(N, 0), np.random.default_rng(1)
    y, f = rng.normal(size=N), rng.normal(size=N)
    value = supervision_complexity(gram, y, f, form="binary")
    inverse = np.linalg.inv(gram)
    star = np.sqrt(y @ inverse @ y * np.trace(gram)) / N
    residual = np.sqrt((y - f) @ inverse @ (y - f) * np.trace(gram)) / N
    size = np.sqrt(np.mean(y**2))
    assert value.plain == pytest.approx(y @ inverse @ y)
    assert value.adjusted_star == pytest.approx(star)
    assert value.adjusted == pytest.approx(residual)
    assert value.target_size == pytest.approx(size)
    assert value.normalised == pytest.approx(residual / size)
    assert value.normalised_star == pytest.approx(star / size)
    assert value.ridge == 0
    assert value.residual < 1e-12


def test_class_diagonal_sums_over_classes(targets_NC: np.ndarray):
    grams = class_grams()
    value = supervision_complexity(grams, targets_NC, form="class-diagonal")
    plain = sum(y @ np.linalg.inv(k) @ y for k, y in zip(grams, targets_NC.T, strict=True))
    assert value.plain == pytest.approx(plain)
    trace = np.trace(grams.sum(axis=0))
    assert value.adjusted_star == pytest.approx(np.sqrt(plain * trace) / N)
    assert value.adjusted is None
    assert value.normalised is None


def test_full_uses_the_example_major_order(targets_NC: np.ndarray):
    gram = random_gram(N * C, 3)
    value = supervision_complexity(gram, targets_NC, form="full")
    blocks = gram.reshape(N, C, N, C)
    stacked = np.array([targets_NC[n, c] for n in range(N) for c in range(C)])
    assert blocks[2, 1, 4, 0] == gram[2 * C + 1, 4 * C]
    assert value.plain == pytest.approx(stacked @ np.linalg.inv(gram) @ stacked)


# --- forms agree where they should ---


def test_full_with_block_diagonal_gram_is_class_diagonal(
    targets_NC: np.ndarray, outputs_NC: np.ndarray
):
    grams = class_grams()
    diagonal = supervision_complexity(grams, targets_NC, outputs_NC, form="class-diagonal")
    full = supervision_complexity(block_diagonal(grams), targets_NC, outputs_NC, form="full")
    for name in ("plain", "adjusted", "adjusted_star", "normalised", "target_size"):
        assert getattr(full, name) == pytest.approx(getattr(diagonal, name)), name


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_trace_is_class_diagonal_with_one_gram(
    targets_NC: np.ndarray, outputs_NC: np.ndarray, ridge: float
):
    gram = random_gram(N, 0)
    trace = supervision_complexity(gram, targets_NC, outputs_NC, form="trace", ridge=ridge)
    repeated = np.stack([gram] * C)
    diagonal = supervision_complexity(
        repeated, targets_NC, outputs_NC, form="class-diagonal", ridge=ridge
    )
    assert trace.plain == pytest.approx(diagonal.plain)
    assert trace.adjusted == pytest.approx(diagonal.adjusted)
    assert trace.ridge == ridge


def test_binary_is_trace_with_one_class():
    gram, y = random_gram(N, 0), np.random.default_rng(1).normal(size=N)
    binary = supervision_complexity(gram, y, form="binary")
    trace = supervision_complexity(gram, y[:, None], form="trace")
    assert binary.adjusted_star == pytest.approx(trace.adjusted_star)


# --- invariances ---


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e8])
def test_the_kernel_s_scale_does_not_matter_after_adjustment(
    targets_NC: np.ndarray, outputs_NC: np.ndarray, scale: float
):
    grams = class_grams()
    one = supervision_complexity(grams, targets_NC, outputs_NC, form="class-diagonal")
    other = supervision_complexity(scale * grams, targets_NC, outputs_NC, form="class-diagonal")
    assert other.adjusted == pytest.approx(one.adjusted)
    assert other.adjusted_star == pytest.approx(one.adjusted_star)
    assert other.plain == pytest.approx(one.plain / scale)


def test_targets_scale_linearly(targets_NC: np.ndarray):
    grams = class_grams()
    one = supervision_complexity(grams, targets_NC, form="class-diagonal")
    other = supervision_complexity(grams, -2.5 * targets_NC, form="class-diagonal")
    assert other.adjusted_star == pytest.approx(2.5 * one.adjusted_star)
    assert other.plain == pytest.approx(2.5**2 * one.plain)
    assert other.normalised_star == pytest.approx(one.normalised_star)


def test_the_order_of_examples_does_not_matter(targets_NC: np.ndarray, outputs_NC: np.ndarray):
    grams, order = class_grams(), np.random.default_rng(2).permutation(N)
    one = supervision_complexity(grams, targets_NC, outputs_NC, form="class-diagonal")
    other = supervision_complexity(
        grams[:, order][:, :, order], targets_NC[order], outputs_NC[order], form="class-diagonal"
    )
    assert other.adjusted == pytest.approx(one.adjusted)
    assert other.adjusted_star == pytest.approx(one.adjusted_star)


# --- reference values ---


@pytest.mark.parametrize("seed", range(5))
def test_diagonal_kernels_are_bounded_by_the_mean_size(seed: int):
    rng = np.random.default_rng(seed)
    y, diagonal = rng.normal(size=N), rng.exponential(size=N) + 0.01
    bound = np.mean(np.abs(y))
    value = supervision_complexity(np.diag(diagonal), y, form="binary")
    assert value.adjusted_star >= bound
    # Cauchy-Schwarz: equal where the kernel is in proportion to |y|.
    tight = supervision_complexity(np.diag(np.abs(y)), y, form="binary")
    assert tight.adjusted_star == pytest.approx(bound)


@pytest.mark.parametrize("form", ["binary", "class-diagonal"])
def test_random_labels_meet_the_closed_form(form: KernelForm):
    grams, rng = class_grams(), np.random.default_rng(0)
    if form == "binary":
        gram, coding, classes, variance = grams[0], "binary", 2, 1.0
        expected = np.trace(np.linalg.inv(gram))
    else:
        gram, coding, classes, variance = grams, "centred", C, (1 / C) * (1 - 1 / C)
        expected = variance * sum(np.trace(np.linalg.inv(k)) for k in grams)
    meter = factorise_gram(gram, form)
    draws = [
        meter.measure(random_label_targets(N, classes, rng, coding)).plain for _ in range(1000)
    ]
    error = np.std(draws, ddof=1) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - expected) < 4 * error
    assert error < 0.05 * expected
    # The lower bound E[Y²]·n²/Tr K, for each class.
    if form == "binary":
        assert np.mean(draws) >= variance * N**2 / np.trace(gram)


def test_a_learnt_direction_is_simpler_than_random_labels():
    eigenvalues, basis = np.linalg.eigh(random_gram(N, 0))
    meter = factorise_gram((basis * eigenvalues) @ basis.T, "binary")
    top = meter.measure(basis[:, -1]).normalised_star
    bottom = meter.measure(basis[:, 0]).normalised_star
    assert top < bottom
    # For an eigenvector v, (1/n)√(Tr K/λ)·√n.
    assert top == pytest.approx(np.sqrt(eigenvalues.mean() / eigenvalues[-1]))


# --- singular kernels, ridges, errors ---


def test_singular_is_infinite_and_a_ridge_is_reported(targets_NC: np.ndarray):
    grams = class_grams()
    grams[1] = 1.0  # one singular block
    meter = factorise_gram(grams, "class-diagonal")
    value = meter.measure(targets_NC, targets_NC)
    assert value.plain == value.adjusted == value.adjusted_star == float("inf")
    assert value.normalised == value.normalised_star == value.residual == float("inf")
    assert np.isfinite(value.target_size)
    assert meter.singular is not None
    assert "singular" in meter.singular
    ridged = supervision_complexity(grams, targets_NC, form="class-diagonal", ridge=0.1)
    assert np.isfinite(ridged.plain)
    assert ridged.ridge == 0.1


@pytest.mark.parametrize("form", ["binary", "full"])
def test_a_ridge_is_part_of_the_kernel(form: KernelForm, targets_NC: np.ndarray):
    gram = random_gram(N if form == "binary" else N * C, 0)
    targets = targets_NC[:, 0] if form == "binary" else targets_NC
    ridged = supervision_complexity(gram, targets, form=form, ridge=2.0)
    added = supervision_complexity(gram + 2.0 * np.eye(len(gram)), targets, form=form)
    assert ridged.adjusted_star == pytest.approx(added.adjusted_star)


def test_zero_targets_have_no_normalised_value():
    value = supervision_complexity(np.eye(3), np.zeros(3), form="binary")
    assert value.plain == value.adjusted_star == 0
    assert np.isnan(value.normalised_star)


def test_an_indefinite_matrix_is_an_error_even_behind_a_singular_one():
    grams = np.stack([np.ones((3, 3)), np.diag([1.0, -1.0, 1.0])])
    with pytest.raises(KernelError, match="not positive definite"):
        factorise_gram(grams, "class-diagonal")


@pytest.mark.parametrize(
    ("gram_shape", "form", "targets_shape", "message"),
    [
        ((4, 4), "class-diagonal", (4, 2), r"class-diagonal Gram has shape \(C, N, N\)"),
        ((2, 4, 4), "trace", (4, 2), r"trace Gram has shape \(N, N\)"),
        ((4, 4), "binary", (4, 1), r"targets of shape \(4, 1\) .* give \(4,\)"),
        ((4, 4), "binary", (3,), r"give \(4,\)"),
        ((4, 4), "trace", (4,), r"give \(4, C\)"),
        ((4, 4), "full", (3, 2), r"N·C = 4"),
        ((2, 4, 4), "class-diagonal", (4, 3), r"give \(4, 2\)"),
        ((4, 4), "diagonal", (4,), r"unknown form 'diagonal'; known: binary"),
    ],
)
def test_arrays_that_do_not_fit(gram_shape, form, targets_shape, message: str):
    gram = np.broadcast_to(np.eye(4), gram_shape)
    with pytest.raises(MeasureError, match=message):
        supervision_complexity(gram, np.ones(targets_shape), form=form)


def test_predictions_must_fit_and_be_finite():
    meter = factorise_gram(np.eye(4), "trace")
    with pytest.raises(MeasureError, match="code both the same way"):
        meter.measure(np.ones((4, 2)), np.ones((4, 3)))
    with pytest.raises(MeasureError, match="predictions hold NaN"):
        meter.measure(np.ones((4, 2)), np.full((4, 2), np.nan))


# --- coding ---


def test_labels_as_targets():
    np.testing.assert_allclose(
        label_targets([2, 0], 3), [[-1 / 3, -1 / 3, 2 / 3], [2 / 3, -1 / 3, -1 / 3]]
    )
    np.testing.assert_array_equal(label_targets([1, 0], 2, "binary"), [1, -1])
    assert coding_of(1) == "binary"
    assert coding_of(2) == "centred"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_teacher_s_single_output(temperature: float):
    g = np.array([-30.0, -1.0, 0.0, 2.0])
    wanted = 2 / (1 + np.exp(-g / temperature)) - 1
    np.testing.assert_allclose(teacher_targets(g[:, None], temperature), wanted, rtol=1e-12)
    two = np.stack([np.full(4, 7.0), g + 7.0], axis=1)
    np.testing.assert_allclose(teacher_targets(two, temperature, "binary"), wanted, rtol=1e-12)
    # Two outputs carry half of it each.
    np.testing.assert_allclose(
        teacher_targets(g[:, None], temperature, "centred")[:, 1], wanted / 2, atol=1e-15
    )
    np.testing.assert_allclose(
        teacher_targets(two, temperature)[:, 1], wanted / 2, rtol=1e-9, atol=1e-15
    )


def test_a_sure_teacher_is_the_labels_and_a_hot_one_says_nothing():
    labels = np.array([0, 2, 1, 1])
    logits = 1e4 * np.eye(3)[labels]
    np.testing.assert_allclose(teacher_targets(logits), label_targets(labels, 3), atol=1e-12)
    np.testing.assert_allclose(teacher_targets(logits, 1e12), 0, atol=1e-7)


def test_targets_and_predictions_are_centred():
    logits = np.random.default_rng(0).normal(size=(6, 5)) * 100
    for array in (teacher_targets(logits, 2.0), prediction_targets(logits)):
        np.testing.assert_allclose(array.sum(axis=1), 0, atol=1e-12)
    assert prediction_targets(logits[:, :1]).shape == (6,)
    np.testing.assert_array_equal(prediction_targets(logits[:, :1]), logits[:, 0])


def test_softmax_is_stable():
    np.testing.assert_allclose(softmax([[1e5, 1e5, -1e5]]), [[0.5, 0.5, 0.0]])


def test_random_labels_are_uniform_over_classes():
    targets = random_label_targets(40_000, 4, np.random.default_rng(0))
    shares = (targets > 0).mean(axis=0)
    assert np.abs(shares - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 40_000)


def test_gradient_residual_vanishes_where_the_student_is_the_teacher():
    meter = factorise_gram(class_grams(), "class-diagonal")
    logits = np.random.default_rng(0).normal(size=(N, C))
    teacher = teacher_targets(logits, 4.0)
    assert gradient_residual(meter, teacher, logits, 4.0) == 0
    assert gradient_residual(meter, teacher, logits, 1.0) > 0
    # A student that says nothing leaves the targets themselves.
    silent = gradient_residual(meter, teacher, np.zeros((N, C)))
    assert silent == pytest.approx(meter.measure(teacher).adjusted_star)


def test_gradient_residual_of_one_output():
    meter = factorise_gram(random_gram(N, 0), "binary")
    z = np.random.default_rng(0).normal(size=(N, 1))
    labels = np.arange(N) % 2
    found = gradient_residual(meter, label_targets(labels, 2, "binary"), z)
    twice = 2 * (labels - 1 / (1 + np.exp(-z[:, 0])))
    assert found == pytest.approx(meter.measure(twice).adjusted_star)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_targets([0, 3], 3), r"labels go from 0 to 3; .* 0 to 2"),
        (lambda: label_targets([-1, 1], 3), "labels go from -1"),
        (lambda: label_targets([0.0, 1.0], 3), "type float64; give integers"),
        (lambda: label_targets([0, 1], 3, "binary"), "needs 2 classes, there are 3"),
        (lambda: label_targets([0, 0], 1), "1 classes"),
        (lambda: teacher_targets(np.ones(3)), r"shape \(3,\)"),
        (lambda: teacher_targets(np.ones((3, 3)), 0.0), "temperature is 0.0"),
        (lambda: teacher_targets(np.ones((3, 3)), 1.0, "binary"), "needs 2 classes"),
        (lambda: teacher_targets([[np.nan, 1.0]]), "NaN"),
    ],
)
def test_codings_that_are_not_defined(call, message: str):
    with pytest.raises(MeasureError, match=message):
        call()
