"""Reference values of the complexity against sampling, closed forms and the kernels that meet them."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import KernelError, MeasureError
from distillens.measures import (
    diagonal_reference,
    factorise_gram,
    random_label_reference,
    random_label_targets,
    supervision_complexity,
)
from distillens.results.complexity import KernelForm

N, C = 14, 3


def random_gram(size: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(size, 2 * size))
    return features @ features.T


def gram_of(form: KernelForm) -> np.ndarray:
    if form == "class-diagonal":
        return np.stack([random_gram(N, seed) for seed in range(C)])
    return random_gram(N, 0)


FORMS: list[KernelForm] = ["binary", "class-diagonal", "trace"]


@pytest.mark.parametrize("ridge", [0.0, 2.0])
@pytest.mark.parametrize("form", FORMS)
def test_random_labels_agree_with_draws(form: KernelForm, ridge: float):
    meter = factorise_gram(gram_of(form), form, ridge)
    classes, coding = (2, "binary") if form == "binary" else (C, "centred")
    rng = np.random.default_rng(0)
    values = [meter.measure(random_label_targets(N, classes, rng, coding)) for _ in range(2000)]
    draws = np.array([value.plain for value in values])
    found = random_label_reference(meter, classes)
    assert abs(draws.mean() - found.plain) < 4 * draws.std(ddof=1) / np.sqrt(len(draws))
    squares = np.array([value.adjusted_star for value in values]) ** 2
    error = squares.std(ddof=1) / np.sqrt(len(draws))
    assert abs(squares.mean() - found.adjusted_star**2) < 4 * error
    assert found.plain >= found.plain_floor
    assert found.adjusted_star >= found.adjusted_star_floor
    assert found.ridge == ridge
    assert found.residual < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_diagonal_meets_the_floors(form: KernelForm):
    gram = np.eye(N) * 3.0
    classes = 2 if form == "binary" else C
    gram = np.stack([gram] * C) if form == "class-diagonal" else gram
    found = random_label_reference(factorise_gram(gram, form), classes)
    assert found.plain == pytest.approx(found.plain_floor)
    assert found.adjusted_star == pytest.approx(found.adjusted_star_floor)
    if form == "binary":
        assert found.plain == pytest.approx(N / 3)
        assert found.adjusted_star == pytest.approx(1)
    else:
        # Uniform centred labels: C·√((1/C)(1 − 1/C)) = √(C − 1).
        assert found.adjusted_star == pytest.approx(np.sqrt(C - 1))


def test_second_moments_weigh_the_classes():
    meter = factorise_gram(gram_of("class-diagonal"), "class-diagonal")
    inverses = [np.trace(np.linalg.inv(gram)) for gram in gram_of("class-diagonal")]
    moments = np.array([1.0, 0.0, 0.5])
    found = random_label_reference(meter, C, moments)
    assert found.plain == pytest.approx(moments @ inverses)
    assert found.adjusted_star_floor == pytest.approx(1 + np.sqrt(0.5))
    assert random_label_reference(meter, C, 2.0).plain == pytest.approx(2 * sum(inverses))


def test_the_trace_form_is_class_diagonal_with_one_gram():
    gram = random_gram(N, 0)
    one = random_label_reference(factorise_gram(gram, "trace"), C)
    other = random_label_reference(factorise_gram(np.stack([gram] * C), "class-diagonal"), C)
    assert one.plain == pytest.approx(other.plain)
    assert one.plain_floor == pytest.approx(other.plain_floor)
    assert one.adjusted_star == pytest.approx(other.adjusted_star)
    assert one.adjusted_star_floor == pytest.approx(other.adjusted_star_floor)


def test_random_labels_have_the_trace_of_the_inverse():
    gram = random_gram(N, 0)
    found = random_label_reference(factorise_gram(gram, "binary"))
    assert found.plain == pytest.approx(np.trace(np.linalg.inv(gram)))


@pytest.mark.parametrize("form", [*FORMS, "full"])
def test_no_diagonal_kernel_goes_below_its_reference(form: KernelForm):
    rng = np.random.default_rng(0)
    y = rng.normal(size=N) if form == "binary" else rng.normal(size=(N, C))
    reference = diagonal_reference(y, form)

    def on(diagonal: np.ndarray) -> float:
        gram = (
            np.stack([np.diag(column) for column in diagonal.T])
            if form == "class-diagonal"
            else np.diag(diagonal.reshape(-1))
        )
        return supervision_complexity(gram, y, form=form).adjusted_star

    shape = (N,) if form in ("binary", "trace") else (N, C)
    for _ in range(20):
        assert on(rng.exponential(size=shape) + 0.01) > reference
    # Cauchy-Schwarz: equal where the kernel is in proportion to the targets' size.
    tight = np.linalg.norm(y, axis=1) if form == "trace" else np.abs(y)
    assert on(tight) == pytest.approx(reference)


def test_the_binary_reference_of_labels_is_one():
    assert diagonal_reference([1.0, -1.0, 1.0], "binary") == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: diagonal_reference([1.0], "odd"),  # type: ignore[arg-type]
            MeasureError,
            "unknown form 'odd'",
        ),
        (lambda: diagonal_reference([1.0], "trace"), MeasureError, r"give \(N, C\)"),
        (lambda: diagonal_reference([np.inf], "binary"), MeasureError, "NaN or infinity"),
        (
            lambda: random_label_reference(factorise_gram(np.eye(4), "full")),
            MeasureError,
            "full form has no closed reference",
        ),
        (
            lambda: random_label_reference(factorise_gram(np.ones((3, 3)), "binary")),
            KernelError,
            "no reference value: the Gram .* singular",
        ),
        (
            lambda: random_label_reference(factorise_gram(np.eye(3), "binary"), 3),
            MeasureError,
            "3 classes do not fit a binary Gram",
        ),
        (
            lambda: random_label_reference(factorise_gram(np.ones((2, 1, 1)), "class-diagonal"), 3),
            MeasureError,
            "3 classes do not fit",
        ),
        (
            lambda: random_label_reference(factorise_gram(np.eye(3), "trace"), 3, [1.0, 2.0]),
            MeasureError,
            r"give a number or \(3,\)",
        ),
        (
            lambda: random_label_reference(factorise_gram(np.eye(3), "binary"), 2, -1.0),
            MeasureError,
            "second moment is -1.0",
        ),
    ],
)
def test_what_has_no_reference(call, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
