"""Reference values of the complexity against sampling, closed forms and the kernels that meet them."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import MeasureError
from distillens.measures import (
    decompose_gram,
    diagonal_reference,
    factorise_gram,
    random_label_targets,
    random_target_level,
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


def level(gram: np.ndarray, form: KernelForm, ridge: float = 0.0) -> float:
    eigenvalues = decompose_gram(gram, form).eigenvalues_K
    return random_target_level(eigenvalues, form, 1 if form == "binary" else C, ridge)


@pytest.mark.parametrize("ridge", [0.0, 2.0])
@pytest.mark.parametrize("form", FORMS)
def test_random_labels_agree_with_draws(form: KernelForm, ridge: float):
    meter = factorise_gram(gram_of(form), form, ridge)
    classes, coding = (2, "binary") if form == "binary" else (C, "centred")
    rng = np.random.default_rng(0)
    values = [meter.measure(random_label_targets(N, classes, rng, coding)) for _ in range(2000)]
    # Every draw has the same size: one label for each example.
    squares = np.array([value.normalised_star for value in values]) ** 2
    error = squares.std(ddof=1) / np.sqrt(len(squares))
    found = level(gram_of(form), form, ridge)
    assert abs(squares.mean() - found**2) < 4 * error
    assert found >= (1 if form == "binary" else np.sqrt(C))


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_diagonal_meets_the_floor(form: KernelForm):
    gram = np.eye(N) * 3.0
    gram = np.stack([gram] * C) if form == "class-diagonal" else gram
    assert level(gram, form) == pytest.approx(1 if form == "binary" else np.sqrt(C))


def test_the_trace_form_is_class_diagonal_with_one_gram():
    gram = random_gram(N, 0)
    assert level(gram, "trace") == pytest.approx(level(np.stack([gram] * C), "class-diagonal"))


def test_the_level_has_the_trace_of_the_inverse():
    gram = random_gram(N, 0)
    wanted = np.sqrt(np.trace(np.linalg.inv(gram)) * np.trace(gram)) / N
    assert level(gram, "binary") == pytest.approx(wanted)


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
    ],
)
def test_what_has_no_reference(call, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
