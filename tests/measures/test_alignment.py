"""Laws of kernel alignment: invariances, known values, agreement with the plain formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distillens.errors import KernelError, MeasureError
from distillens.measures import centred_alignment, kernel_target_alignment

N = 12


def random_gram(seed: int, width: int = 5) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(N, width)) + 1.0
    return features @ features.T


def plain(k: np.ndarray, m: np.ndarray, *, centred: bool = True) -> float:
    """The definition, with the centring matrix written out."""
    h = np.eye(N) - (1.0 / N if centred else 0.0)
    a, b = h @ k @ h, h @ m @ h
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_definition():
    k, m = random_gram(0), random_gram(1)
    found = centred_alignment(k, m)
    assert found.value == pytest.approx(plain(k, m))
    assert (found.centred, found.examples) == (True, N)
    y = np.random.default_rng(2).normal(size=(N, 3))
    for centred in (True, False):
        found = kernel_target_alignment(k, y, centred=centred)
        assert found.value == pytest.approx(plain(k, y @ y.T, centred=centred))
        assert found.centred is centred
    one = kernel_target_alignment(k, y[:, 0])
    assert one.value == pytest.approx(plain(k, np.outer(y[:, 0], y[:, 0])))


def test_linear_grams_give_kornblith_s_form():
    """‖YᵀX‖²/(‖XᵀX‖·‖YᵀY‖) of centred features."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 4)), rng.normal(size=(N, 6))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    wanted = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    shifted_x, shifted_y = x + 3.0, y - 2.0
    found = centred_alignment(shifted_x @ shifted_x.T, shifted_y @ shifted_y.T)
    assert found.value == pytest.approx(wanted)


@pytest.mark.parametrize(("scale", "constant"), [(1e-300, 0.0), (3.0, 100.0), (1e250, 0.0)])
def test_scale_and_constants_do_not_matter(scale: float, constant: float):
    k, m = random_gram(0), random_gram(1)
    changed = scale * (k + constant)
    assert centred_alignment(changed, m).value == pytest.approx(centred_alignment(k, m).value)
    y = np.random.default_rng(2).normal(size=N)
    assert kernel_target_alignment(changed, -2 * y + 5).value == pytest.approx(
        kernel_target_alignment(k, y).value
    )


def test_a_large_constant_costs_little_precision():
    k, m = random_gram(0), random_gram(1)
    assert centred_alignment(k + 1e6, m).value == pytest.approx(plain(k, m), rel=1e-8)


def test_symmetric_bounded_and_one_with_itself():
    k, m = random_gram(0), random_gram(1)
    assert centred_alignment(k, m).value == pytest.approx(centred_alignment(m, k).value)
    assert 0 < centred_alignment(k, m).value < 1
    assert centred_alignment(k, k).value == pytest.approx(1)
    order = np.random.default_rng(0).permutation(N)
    mixed = centred_alignment(k[np.ix_(order, order)], m[np.ix_(order, order)])
    assert mixed.value == pytest.approx(centred_alignment(k, m).value)


def test_known_values():
    y = np.where(np.arange(N) % 2, 1.0, -1.0)
    assert kernel_target_alignment(np.outer(y, y), y).value == pytest.approx(1)
    # Every direction alike: 1/√(N − 1) once the mean is gone, 1/√N before.
    assert kernel_target_alignment(np.eye(N), y).value == pytest.approx(1 / np.sqrt(N - 1))
    before = kernel_target_alignment(np.eye(N), y, centred=False)
    assert before.value == pytest.approx(1 / np.sqrt(N))
    # Orthogonal targets share nothing.
    other = np.where(np.arange(N) // 2 % 2, 1.0, -1.0)
    assert kernel_target_alignment(np.outer(other, other), y).value == pytest.approx(0, abs=1e-12)


def test_constants_pose_as_alignment_only_without_centring():
    unbalanced = np.where(np.arange(N) == 0, -1.0, 1.0)
    constant = np.ones((N, N)) + 1e-3 * np.eye(N)
    assert kernel_target_alignment(constant, unbalanced, centred=False).value > 0.6
    assert kernel_target_alignment(constant, unbalanced).value == pytest.approx(
        1 / np.sqrt(N - 1), rel=1e-6
    )


def test_arrays_and_memory_maps_agree(tmp_path: Path):
    k, m = random_gram(0), random_gram(1)
    y = np.random.default_rng(2).normal(size=(N, 3))
    whole = centred_alignment(k, m).value, kernel_target_alignment(k, y).value
    np.save(tmp_path / "k.npy", k)
    mapped = np.load(tmp_path / "k.npy", mmap_mode="r")
    parts = centred_alignment(mapped, m).value, kernel_target_alignment(mapped, y).value
    assert parts == pytest.approx(whole)


def test_float32_grams_are_summed_in_float64():
    k, m = random_gram(0).astype(np.float32), random_gram(1).astype(np.float32)
    wanted = plain(k.astype(np.float64), m.astype(np.float64))
    assert centred_alignment(k, m).value == pytest.approx(wanted, rel=1e-12)


def broken(value: float) -> np.ndarray:
    gram = np.eye(N)
    gram[1, 2] = value
    return gram


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: centred_alignment(np.eye(3), np.eye(4)), MeasureError, "3 and 4 rows"),
        (lambda: centred_alignment(np.eye(3), np.ones((3, 3))), MeasureError, "second Gram is con"),
        (lambda: centred_alignment(np.ones((3, 3)), np.eye(3)), MeasureError, "first Gram is con"),
        (lambda: centred_alignment(np.ones((3, 2)), np.eye(3)), KernelError, r"shape \(3, 2\)"),
        (lambda: centred_alignment(np.eye(N), broken(0.5)), KernelError, "differ by up to 0.5"),
        (lambda: centred_alignment(np.eye(N), broken(np.nan)), KernelError, "second Gram .* holds"),
        (lambda: kernel_target_alignment(np.eye(3), np.ones(4)), MeasureError, "3 and 4 rows"),
        (
            lambda: kernel_target_alignment(np.eye(3), np.ones(3)),
            MeasureError,
            "targets' Gram is con",
        ),
        (
            lambda: kernel_target_alignment(np.eye(3), np.zeros(3), centred=False),
            MeasureError,
            "targets' Gram is zero",
        ),
        (
            lambda: kernel_target_alignment(np.zeros((3, 3)), [1.0, 2.0, 3.0], centred=False),
            MeasureError,
            "given Gram is zero",
        ),
        (lambda: kernel_target_alignment(np.eye(2), [np.nan, 1.0]), MeasureError, "NaN"),
    ],
)
def test_what_has_no_alignment(call, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
