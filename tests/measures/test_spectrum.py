"""Laws of the spectrum: known ranks, energies that add up, forms that agree."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import KernelError, MeasureError
from distillens.linalg import eigen_summary, eigenpairs
from distillens.measures import decompose_gram, supervision_complexity
from distillens.results.complexity import KernelForm

N, C = 10, 3
FORMS: list[KernelForm] = ["binary", "class-diagonal", "trace", "full"]


def random_gram(size: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(size, 2 * size))
    return features @ features.T


def gram_of(form: KernelForm) -> np.ndarray:
    if form == "class-diagonal":
        return np.stack([random_gram(N, seed) for seed in range(C)])
    return random_gram(N * C if form == "full" else N, 0)


def targets_of(form: KernelForm) -> np.ndarray:
    return np.random.default_rng(7).normal(size=N if form == "binary" else (N, C))


def test_ranks_of_the_identity_and_of_rank_one():
    identity = decompose_gram(np.eye(N), "binary")
    for rank in (identity.effective_rank, identity.participation_ratio, identity.stable_rank):
        assert rank == pytest.approx(N)
    assert identity.condition == pytest.approx(1)
    v = np.arange(1.0, N + 1)
    one = decompose_gram(np.outer(v, v), "binary")
    for rank in (one.effective_rank, one.participation_ratio, one.stable_rank):
        assert rank == pytest.approx(1, abs=1e-6)
    assert one.condition > 1e12


def test_ranks_of_two_eigenvalues_by_hand():
    spectrum = decompose_gram(np.diag([1.0, 3.0]), "binary")
    np.testing.assert_allclose(spectrum.eigenvalues_K, [3, 1])
    assert spectrum.condition == pytest.approx(3)
    assert spectrum.participation_ratio == pytest.approx(16 / 10)
    assert spectrum.stable_rank == pytest.approx(10 / 9)
    # exp(−¼ ln ¼ − ¾ ln ¾) = 4/3^¾
    assert spectrum.effective_rank == pytest.approx(4 / 3**0.75)


@pytest.mark.parametrize("scale", [1e-200, 1e-5, 1e200])
def test_ranks_and_shares_do_not_depend_on_the_scale(scale: float):
    one, other = (decompose_gram(s * random_gram(N, 0), "binary") for s in (1.0, scale))
    y = targets_of("binary")
    assert other.effective_rank == pytest.approx(one.effective_rank)
    assert other.participation_ratio == pytest.approx(one.participation_ratio)
    assert other.stable_rank == pytest.approx(one.stable_rank)
    assert other.condition == pytest.approx(one.condition)
    np.testing.assert_allclose(other.energy(y).share_K, one.energy(y).share_K)


def test_ranks_are_ordered():
    """The Rényi entropies of the spectrum fall with their order: 1, 2; then the largest alone."""
    spectrum = decompose_gram(random_gram(N, 0), "binary")
    assert N > spectrum.effective_rank > spectrum.participation_ratio > spectrum.stable_rank > 1


@pytest.mark.parametrize("form", FORMS)
def test_energies_add_up_to_the_complexity(form: KernelForm):
    gram, y = gram_of(form), targets_of(form)
    spectrum = decompose_gram(gram, form)
    curve = spectrum.energy(y)
    assert np.sum(curve.energy_K / spectrum.eigenvalues_K) == pytest.approx(
        supervision_complexity(gram, y, form=form).plain
    )
    assert curve.energy_K.sum() == pytest.approx(np.sum(y**2))
    assert np.all(np.diff(curve.share_K) >= 0)
    assert curve.share_K[-1] == pytest.approx(1)
    assert np.all(np.diff(spectrum.eigenvalues_K) <= 0)
    summary = eigen_summary(gram)
    assert spectrum.condition == pytest.approx(summary.condition)
    assert spectrum.eigenvalues_K.sum() == pytest.approx(summary.trace)


def test_targets_along_one_eigenvector():
    values, vectors = np.linalg.eigh(random_gram(N, 0))
    spectrum = decompose_gram((vectors * values) @ vectors.T, "binary")
    for rank in (0, 3, N - 1):
        curve = spectrum.energy(-2.0 * vectors[:, N - 1 - rank])
        wanted = np.where(np.arange(N) >= rank, 1.0, 0.0)
        np.testing.assert_allclose(curve.share_K, wanted, atol=1e-9)
        assert curve.energy_K[rank] == pytest.approx(4)


def test_class_diagonal_is_the_block_diagonal_full_form():
    grams, y = gram_of("class-diagonal"), targets_of("class-diagonal")
    full = np.zeros((N, C, N, C))
    for c in range(C):
        full[:, c, :, c] = grams[c]
    one = decompose_gram(grams, "class-diagonal")
    other = decompose_gram(full.reshape(N * C, N * C), "full")
    np.testing.assert_allclose(one.eigenvalues_K, other.eigenvalues_K)
    assert one.effective_rank == pytest.approx(other.effective_rank)
    np.testing.assert_allclose(one.energy(y).energy_K, other.energy(y).energy_K, atol=1e-9)


def test_the_trace_form_counts_each_eigenvalue_once():
    gram, y = random_gram(N, 0), targets_of("trace")
    one = decompose_gram(gram, "trace")
    other = decompose_gram(np.stack([gram] * C), "class-diagonal")
    assert other.effective_rank == pytest.approx(C * one.effective_rank)
    np.testing.assert_allclose(
        one.energy(y).energy_K, other.energy(y).energy_K.reshape(N, C).sum(axis=1)
    )


def test_random_targets_spread_evenly():
    """For targets without direction the share of the top k is k/N in the mean."""
    spectrum, rng = decompose_gram(random_gram(N, 0), "binary"), np.random.default_rng(0)
    curves = [spectrum.energy(rng.choice([-1.0, 1.0], size=N)).share_K for _ in range(3000)]
    np.testing.assert_allclose(np.mean(curves, axis=0), np.arange(1, N + 1) / N, atol=0.02)


def test_rounding_below_zero_is_counted_and_more_is_an_error():
    spectrum = decompose_gram(np.diag([1.0, 0.5, -1e-9]), "binary")
    assert spectrum.negative == 1
    assert spectrum.condition == float("inf")
    assert spectrum.participation_ratio == pytest.approx(1.5**2 / 1.25)
    with pytest.raises(KernelError, match=r"smallest eigenvalue -0.1.* largest 1;"):
        decompose_gram(np.diag([1.0, -0.1]), "binary")


def test_eigenpairs_put_the_gram_together():
    gram = random_gram(N, 0)
    values, vectors = eigenpairs(gram)
    np.testing.assert_allclose((vectors * values) @ vectors.T, gram, atol=1e-12 * gram.max())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: decompose_gram(np.zeros((3, 3)), "binary"), KernelError, "is zero"),
        (lambda: decompose_gram(np.eye(3), "class-diagonal"), MeasureError, r"\(C, N, N\)"),
        (lambda: decompose_gram(np.eye(3), "binary").energy(np.ones(2)), MeasureError, "give"),
        (lambda: decompose_gram(np.eye(3), "binary").energy(np.zeros(3)), MeasureError, "all zero"),
    ],
)
def test_what_has_no_spectrum(call, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
