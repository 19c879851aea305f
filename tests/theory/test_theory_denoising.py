"""Thm. 4.3: exact draws against a plain simulation, and the map of where it held."""

from __future__ import annotations

import numpy as np
import pytest

from distillens.errors import TheoryError
from distillens.theory import ChannelModel, draw_cosines
from distillens.theory.studies.denoising import denoising_map


def plain_cosines(model: ChannelModel, rng: np.random.Generator):
    """One sample with whole vectors; descent directions by differences of the loss."""
    classes, size, count = model.classes, model.dimension, model.examples
    truth = np.linalg.qr(rng.normal(size=(classes, size, 1)))[0][..., 0]
    other = rng.normal(size=(classes, size))
    other -= (other * truth).sum(axis=1, keepdims=True) * truth
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    cosine = 1 - model.teacher_error
    teacher = model.teacher_norm * (cosine * truth + np.sqrt(1 - cosine**2) * other)
    x = np.zeros((count, classes, size))
    labels = rng.integers(classes, size=count)
    for example, label in enumerate(labels):
        similar = rng.choice([k for k in range(classes) if k != label])
        for channel, part in ((label, model.signal), (similar, model.signal / 2)):
            noise = rng.normal(size=size) / np.sqrt(size)
            noise -= (noise @ truth[channel]) * truth[channel]
            x[example, channel] = part * truth[channel] + noise

    def softmax(weights):
        logits = np.einsum("kd,nkd->nk", weights, x)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    found = []
    for targets in (np.eye(classes)[labels], softmax(teacher)):
        descent = np.einsum("nk,nkd->kd", targets - softmax(model.student_norm * truth), x)
        length = np.linalg.norm(descent, axis=1)
        reached = (x != 0).any(axis=(0, 2))
        along = (descent * truth).sum(axis=1)
        found.append(np.where(reached, along / np.where(reached, length, 1), np.nan))
    return found


@pytest.mark.parametrize(
    "model",
    [
        ChannelModel(4, 6, 1.0, 5, 0.2, 1.5, 0.3),
        ChannelModel(3, 12, 2.0, 20, 0.1, 1.0, 0.5),
    ],
)
def test_draws_have_the_distribution_of_whole_vectors(model):
    rng = np.random.default_rng(0)
    plain = np.array([plain_cosines(model, rng) for _ in range(600)])
    drawn = draw_cosines(model, 600, rng)
    for ours, theirs in (
        (drawn.one_hot_SK, plain[:, 0]),
        (drawn.distilled_SK, plain[:, 1]),
        # Only a joint draw from the same examples gets the spread of the difference right.
        (drawn.distilled_SK - drawn.one_hot_SK, plain[:, 1] - plain[:, 0]),
    ):
        means = [np.nanmean(values, axis=1) for values in (ours, theirs)]
        means = [values[np.isfinite(values)] for values in means]
        error = np.sqrt(sum(values.var() / len(values) for values in means))
        assert abs(means[0].mean() - means[1].mean()) < 4 * error
        assert means[0].std() == pytest.approx(means[1].std(), rel=0.2)


def test_on_one_example_the_cosines_tie_up_to_the_sign():
    drawn = draw_cosines(ChannelModel(examples=1), 200, np.random.default_rng(0))
    reached = np.isfinite(drawn.one_hot_SK)
    assert (reached.sum(axis=1) == 2).all()
    np.testing.assert_allclose(
        np.abs(drawn.one_hot_SK[reached]), np.abs(drawn.distilled_SK[reached]), rtol=1e-6
    )


def test_many_examples_bring_the_one_hot_gradient_to_the_truth():
    model = ChannelModel(classes=4, examples=100_000, dimension=50)
    drawn = draw_cosines(model, 3, np.random.default_rng(0))
    assert (drawn.one_hot_SK > 0.9999).all()
    # With a perfect teacher, so does distillation.
    perfect = ChannelModel(classes=4, examples=100_000, dimension=50, teacher_error=0.0)
    drawn = draw_cosines(perfect, 3, np.random.default_rng(0))
    assert (drawn.distilled_SK > 0.9999).all()
    assert drawn.teacher == 1


def test_it_held_for_a_small_student_and_failed_for_a_sure_one_and_a_good_teacher():
    found = denoising_map(
        ChannelModel(), "student_norm", [0.05, 3.0], "teacher_error", [0.0005, 0.3], samples=10
    )
    # α small, t and D large, as the theorem asks; a teacher with ε = 0.3.
    assert found.held_on_average()[1, 0]
    assert found.held_RQ[1, 0] > 0.95
    # A student that is surer than its teacher is pulled back, away from the truth.
    assert found.failed_on_average()[:, 1].all()
    assert (found.over_one_hot_RQ[:, 1] < 0).all()
    # Finite samples are noisier than a nearly perfect teacher.
    assert found.over_teacher_RQ[0, 0] < 0 < found.over_one_hot_RQ[0, 0]


def test_a_map_can_be_drawn_again():
    def draw(seed):
        return denoising_map(
            ChannelModel(examples=20),
            "signal",
            [1, 4],
            "dimension",
            [10, 100],
            samples=3,
            seed=seed,
        ).over_one_hot_RQ

    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).all()
    assert draw(0).shape == (2, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ChannelModel(classes=1), "classes is 1"),
        (lambda: ChannelModel(dimension=3), "dimension is 3"),
        (lambda: ChannelModel(signal=0), "signal cannot be 0"),
        (lambda: ChannelModel(student_norm=-1), "student_norm cannot be -1"),
        (lambda: ChannelModel(teacher_error=1.0), "teacher_error is 1.0"),
        (lambda: draw_cosines(ChannelModel(), 0, np.random.default_rng(0)), "0 samples"),
        (lambda: denoising_map(ChannelModel(), "t", [1], "signal", [1]), "no setting 't'"),
        (lambda: denoising_map(ChannelModel(), "signal", [1], "signal", [1]), "two settings"),
        (lambda: denoising_map(ChannelModel(), "signal", [1], "classes", [2], samples=1), "1 samples"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(call, words):
    with pytest.raises(TheoryError) as caught:
        call()
    assert words in str(caught.value)
