"""Laws of the risk bounds: terms computed by hand, monotony, and that they cover the true risk."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from distillens.errors import KernelError, MeasureError
from distillens.measures import (
    DEFAULT_MARGINS,
    KernelFit,
    binary_bound,
    distillation_bound,
    factorise_gram,
    label_targets,
    margin_loss,
    multiclass_bound,
)
from distillens.measures.complexity.bounds import kernel_fit
from distillens.results.base import from_json, to_json
from distillens.results.complexity import KernelForm, RiskBound

N, C = 12, 3


def random_gram(size: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(size, 2 * size))
    return features @ features.T


def fit_of(predictions: np.ndarray, complexity: float, trace: float | None = None) -> KernelFit:
    """A fit with k(x, x) = 1."""
    trace = float(predictions.size) if trace is None else trace
    return KernelFit(predictions, complexity, trace, largest_diagonal=1.0)


# --- the formulas, by hand ---


def test_the_three_terms_of_theorem_3():
    labels = np.where(np.arange(10_000) % 2, 1.0, -1.0)
    bound = binary_bound(fit_of(0.5 * labels, 4.0), labels, kappa=1.0, margins=[1.0])
    assert bound.margin_loss == pytest.approx(0.5)
    assert bound.complexity_term == pytest.approx(0.06)  # (2·2 + 2)/10⁴·100
    assert bound.norms == 50  # 100/2
    assert bound.confidence_term == pytest.approx(0.0584842, abs=1e-7)  # 3√(ln 2000/20000)
    assert bound.value == pytest.approx(0.6184842, abs=1e-7)
    assert (bound.theorem, bound.vacuous, bound.covered) == ("Thm. 3", False, True)
    assert bound.notes == ()


def test_the_best_margin_pays_for_the_grid():
    labels = np.ones(10_000)
    bound = binary_bound(fit_of(0.5 * labels, 4.0), labels, kappa=1.0, margins=[1.0, 0.5])
    assert bound.margin == 0.5
    assert bound.margins == 2
    assert bound.norms == 25
    # 0 + 0.12 + 3√(ln(2·25·2/0.05)/20000)
    assert bound.value == pytest.approx(0.12 + 0.0584842, abs=1e-7)


def test_the_three_terms_of_theorem_4_with_the_root():
    labels = np.arange(10_000) % 3
    fit = fit_of(0.6 * np.eye(3)[labels], 4.0)
    bound = multiclass_bound(fit, labels, kappa=1.0, margins=[0.5])
    assert bound.margin_loss == 0
    assert bound.complexity_term == pytest.approx(36 * math.sqrt(30_000) / 5000)
    assert bound.norms == 5  # ⌈0.5·100/12⌉
    assert bound.confidence_term == pytest.approx(0.0488288, abs=1e-7)  # 3√(ln 200/20000)
    assert bound.vacuous
    assert bound.value == pytest.approx(1.2470766 + 0.0488288, abs=1e-6)
    # A margin equal to γ counts as an error in this theorem.
    assert multiclass_bound(fit, labels, margins=[0.6]).margin_loss == 1


def test_proposition_5_adds_the_teacher_s_risk():
    y = np.random.default_rng(0).uniform(-1, 1, size=500)
    fit = fit_of(y, 2.0)
    plain, student = binary_bound(fit, y), distillation_bound(fit, y, 0.125)
    assert student.value == pytest.approx(plain.value + 0.125)
    assert student.teacher_risk == 0.125
    assert student.theorem == "Prop. 5"
    assert (
        dataclasses.replace(
            student, theorem="Thm. 3", value=plain.value, teacher_risk=None, vacuous=plain.vacuous
        )
        == plain
    )


def test_identity_gram_and_labels():
    labels = np.array([1.0, -1.0, 1.0, 1.0])
    fit = kernel_fit(factorise_gram(np.eye(4), "binary"), labels)
    assert (fit.complexity, fit.trace, fit.largest_diagonal) == pytest.approx((4, 4, 1))
    bound = binary_bound(fit, labels, margins=[1.0])
    assert bound.margin_loss == pytest.approx(0, abs=1e-12)
    assert bound.complexity_term == pytest.approx(3)  # (2·2 + 2)/4·2
    assert bound.vacuous


def test_margin_loss_is_the_paper_s():
    values = [-1.0, 0.0, 0.25, 0.5, 2.0]
    np.testing.assert_allclose(margin_loss(values, 0.5), [1, 1, 0.5, 0, 0])


# --- laws ---


def bounds_of(fit: KernelFit, labels: np.ndarray, **more: object) -> RiskBound:
    if fit.predictions.ndim == 1:
        return binary_bound(fit, 2.0 * labels - 1, **more)  # type: ignore[arg-type]
    return multiclass_bound(fit, labels, **more)  # type: ignore[arg-type]


def example(classes: int, size: int = 400) -> tuple[KernelFit, np.ndarray]:
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=size)
    clean = 2.0 * labels - 1 if classes == 2 else np.eye(classes)[labels]
    return fit_of(clean + 0.3 * rng.normal(size=clean.shape), 3.0), labels


@pytest.mark.parametrize("classes", [2, 4])
def test_the_grid_is_the_best_of_its_margins_at_a_shared_delta(classes: int):
    fit, labels = example(classes)
    grid = [0.25, 0.5, 1.0, 2.0]
    whole = bounds_of(fit, labels, margins=grid, delta=0.2)
    single = [bounds_of(fit, labels, margins=[margin], delta=0.05) for margin in grid]
    best = min((one for one in single if one.covered), key=lambda one: one.value)
    assert whole.value == pytest.approx(best.value)
    assert whole.margin == best.margin


@pytest.mark.parametrize("classes", [2, 4])
def test_bounds_grow_with_complexity_and_certainty_and_shrink_with_examples(classes: int):
    fit, labels = example(classes)
    # A small κ, so that every norm here is covered.
    values = [
        bounds_of(dataclasses.replace(fit, complexity=q), labels, kappa=1e-6).value
        for q in (0.0, 1.0, 10.0, 100.0)
    ]
    assert np.all(np.diff(values) > 0)
    values = [bounds_of(fit, labels, delta=delta).value for delta in (0.2, 0.05, 1e-3)]
    assert np.all(np.diff(values) > 0)
    shape = (1,) * (fit.predictions.ndim - 1)
    values = [
        bounds_of(
            fit_of(np.tile(fit.predictions, (times, *shape)), fit.complexity),
            np.tile(labels, times),
        ).value
        for times in (1, 4, 16)
    ]
    assert np.all(np.diff(values) < 0)


def test_only_the_order_of_logits_matters_to_theorem_4():
    fit, labels = example(4)
    shifted = dataclasses.replace(
        fit, predictions=fit.predictions - fit.predictions.mean(axis=1, keepdims=True)
    )
    assert multiclass_bound(shifted, labels).value == multiclass_bound(fit, labels).value


def test_undecided_targets_are_errors():
    fit = fit_of(np.full(100, 5.0), 1.0)
    bound = binary_bound(fit, np.zeros(100), margins=[1.0])
    assert bound.margin_loss == 1
    assert bound.vacuous


# --- what the proof covers ---


def test_a_norm_above_m0_is_no_bound_however_small_the_sum():
    # One example with a large k(x, x) makes κ large and the trace stays small.
    labels = np.ones(10_000)
    fit = KernelFit(labels, complexity=100.0, trace=1_000.0, largest_diagonal=400.0)
    bound = binary_bound(fit, labels, margins=[0.9])
    assert bound.norms == 3  # ⌈0.9·100/(2·20)⌉
    assert bound.value < 1
    assert bound.vacuous
    assert not bound.covered
    assert "the norm 10 is above M₀ = 3" in bound.notes[-1]
    # A smaller κ, fixed beforehand, covers it at the price of the logarithm.
    other = binary_bound(fit, labels, margins=[0.9], kappa=1.0)
    assert other.covered
    assert not other.vacuous
    assert other.confidence_term > bound.confidence_term
    assert "no supremum" in other.notes[0]


def test_covered_margins_go_before_lower_sums():
    labels = np.ones(10_000)
    fit = KernelFit(0.4 * labels, complexity=100.0, trace=1_000.0, largest_diagonal=25.0)
    # M₀ is 4 at γ = 0.4, where the loss is 0, and 20 at γ = 2.
    bound = binary_bound(fit, labels, margins=[0.4, 2.0])
    assert bound.margin == 2.0
    assert bound.covered
    assert binary_bound(fit, labels, margins=[0.4]).value < bound.value


def test_the_largest_diagonal_is_noted_as_an_estimate():
    labels = np.ones(50)
    assert "estimate" in binary_bound(fit_of(labels, 1.0), labels).notes[0]
    assert binary_bound(fit_of(labels, 1.0), labels, kappa=1.0).notes == ()


def test_infinite_complexity_is_vacuous():
    bound = binary_bound(fit_of(np.ones(50), math.inf), np.ones(50))
    assert bound.value == math.inf
    assert bound.vacuous
    assert from_json(RiskBound, to_json(bound), "here") == bound


def test_default_margins_have_one_just_below_an_interpolant_s():
    assert max(margin for margin in DEFAULT_MARGINS if margin < 1) == pytest.approx(0.98)
    labels = np.arange(600) % C
    one_hot = fit_of(label_targets(labels, C), 1e-6)
    assert multiclass_bound(one_hot, labels).margin_loss == 0


# --- kernel fits ---


def test_without_a_ridge_the_fit_is_the_interpolant():
    gram, y = random_gram(N, 0), np.random.default_rng(1).normal(size=N)
    meter = factorise_gram(gram, "binary")
    fit = kernel_fit(meter, y)
    np.testing.assert_allclose(fit.predictions, y, rtol=1e-9)
    assert fit.complexity == pytest.approx(meter.measure(y).plain)
    assert fit.trace == pytest.approx(np.trace(gram))
    assert fit.largest_diagonal == gram.diagonal().max()
    assert fit.residual < 1e-12


@pytest.mark.parametrize("ridge", [0.1, 3.0, 100.0])
def test_a_ridge_fit_has_a_smaller_norm_than_either_complexity(ridge: float):
    gram, y = random_gram(N, 0), np.random.default_rng(1).normal(size=N)
    meter = factorise_gram(gram, "binary", ridge)
    fit = kernel_fit(meter, y)
    alpha = np.linalg.solve(gram + ridge * np.eye(N), y)
    np.testing.assert_allclose(fit.predictions, gram @ alpha)
    assert fit.complexity == pytest.approx(alpha @ gram @ alpha)
    assert fit.complexity < meter.measure(y).plain
    assert fit.trace == pytest.approx(np.trace(gram))


@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_forms_of_one_kernel_agree(ridge: float):
    gram = random_gram(N, 0)
    y = np.random.default_rng(1).normal(size=(N, C))
    grams: dict[KernelForm, np.ndarray] = {
        "trace": gram,
        "class-diagonal": np.stack([gram] * C),
        "full": np.kron(gram, np.eye(C)),
    }
    fits = [kernel_fit(factorise_gram(k, form, ridge), y) for form, k in grams.items()]
    for fit in fits[1:]:
        np.testing.assert_allclose(fit.predictions, fits[0].predictions)
        assert fit.complexity == pytest.approx(fits[0].complexity)
        assert fit.trace == pytest.approx(fits[0].trace)
        assert fit.largest_diagonal == pytest.approx(fits[0].largest_diagonal)


def test_a_singular_kernel_has_no_fit():
    meter = factorise_gram(np.ones((3, 3)), "binary")
    with pytest.raises(KernelError, match=r"no kernel fit: the Gram .* is singular"):
        kernel_fit(meter, np.ones(3))


# --- the bounds hold ---


def test_theorem_3_covers_the_risk_of_ridge_regression():
    """200 samples of noisy linear data: a bound that is not vacuous and is never broken."""
    size, ridge, noise, kappa = 400, 1.0, 0.03, 2.5
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        side = rng.choice([-1.0, 1.0], size=count)
        x = np.stack([side * rng.uniform(0.5, 1.5, count), rng.uniform(-0.5, 0.5, count)], 1)
        return x, np.where(rng.random(count) < noise, -side, side)

    x_test, y_test = draw(20_000)
    values = []
    for _ in range(200):
        x, y = draw(size)
        fit = kernel_fit(factorise_gram(x @ x.T, "binary", ridge), y)
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(2), x.T @ y)
        np.testing.assert_allclose(fit.predictions, x @ weights, rtol=1e-6)
        bound = binary_bound(fit, y, kappa=kappa)
        assert bound.covered
        assert bound.value >= np.mean(y_test * (x_test @ weights) <= 0)
        values.append(bound.value)
    assert max(values) < 1


def test_memorised_labels_are_seen_by_the_complexity_term_alone():
    """Random labels that are interpolated: no margin loss, risk 1/2, and not enough confidence."""
    size, width = 400, 2000
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = rng.normal(size=(size, width)) / math.sqrt(width)
        y = rng.choice([-1.0, 1.0], size=size)
        fit = kernel_fit(factorise_gram(x @ x.T, "binary"), y)
        bound = binary_bound(fit, y, kappa=1e-3, margins=[0.98])
        assert bound.covered
        assert bound.margin_loss + bound.confidence_term < 0.5
        assert bound.value >= 0.5


def test_theorem_4_covers_the_risk_of_a_memoriser():
    """As above with three classes, risk 2/3."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2000)) / math.sqrt(2000)
    labels = rng.integers(C, size=400)
    fit = kernel_fit(factorise_gram(x @ x.T, "trace"), label_targets(labels, C))
    bound = multiclass_bound(fit, labels, kappa=1e-4, margins=[0.98])
    assert bound.covered
    assert bound.margin_loss + bound.confidence_term < 2 / 3 < bound.value


# --- errors ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary_bound(fit_of(np.ones(3), 1.0), np.ones(4)), r"shape \(3,\) and .* \(4,\)"),
        (lambda: binary_bound(fit_of(np.ones((3, 2)), 1.0), np.ones(3)), "use multiclass_bound"),
        (lambda: binary_bound(fit_of(np.ones(3), 1.0), [0.0, 1.0, 2.0]), "go from 0 to 2"),
        (lambda: binary_bound(fit_of(np.ones(3), 1.0), [0.0, 1.0, np.nan]), "binary coding"),
        (lambda: binary_bound(fit_of(np.ones(3), -1.0), np.ones(3)), "complexity is -1.0"),
        (lambda: binary_bound(fit_of(np.ones(3), 1.0, 0.0), np.ones(3)), "trace is 0.0"),
        (lambda: binary_bound(fit_of(np.ones(3), 1.0), np.ones(3), delta=1.0), "delta is 1.0"),
        (lambda: binary_bound(fit_of(np.ones(3), 1.0), np.ones(3), kappa=0.0), "kappa is 0.0"),
        (lambda: binary_bound(fit_of(np.ones(3), 1.0), np.ones(3), margins=[]), "at least one"),
        (lambda: binary_bound(fit_of(np.ones(3), 1.0), np.ones(3), margins=[0.0]), "down to 0"),
        (lambda: binary_bound(fit_of(np.full(3, np.nan), 1.0), np.ones(3)), "NaN or infinity"),
        (lambda: distillation_bound(fit_of(np.ones(3), 1.0), np.ones(3), 1.5), "risk is 1.5"),
        (lambda: multiclass_bound(fit_of(np.ones(3), 1.0), [0, 1, 1]), "use binary_bound"),
        (lambda: multiclass_bound(fit_of(np.ones((3, 2)), 1.0), [0, 1]), "2 labels do not fit 3"),
        (lambda: multiclass_bound(fit_of(np.ones((2, 2)), 1.0), [0, 2]), "labels go from 0 to 2"),
        (lambda: margin_loss([1.0], -1.0), "down to -1"),
    ],
)
def test_what_has_no_bound(call, message: str):
    with pytest.raises(MeasureError, match=message):
        call()
