"""Losses against values computed by hand in plain Python, and the laws that join supervisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from distillens.data import Batch
from distillens.errors import SupervisionError
from distillens.supervision import (
    Distillation,
    FixedTeacher,
    Loss,
    Mixed,
    OneHot,
    OnlineTeacher,
    RecordedTeacher,
    TeacherCheckpoint,
    cross_entropy,
    distillation_cross_entropy,
    distillation_squared_error,
    squared_error,
)

F = torch.tensor([[1.0, 2.0, -1.0], [0.5, -0.25, 0.0]], dtype=torch.float64)
G = torch.tensor([[3.0, 0.0, -2.0], [-1.0, 1.0, 0.5]], dtype=torch.float64)
Y = torch.tensor([1, 2])
F1 = torch.tensor([[0.7], [-1.2]], dtype=torch.float64)
G1 = torch.tensor([[2.0], [0.4]], dtype=torch.float64)
Y1 = torch.tensor([1, 0])


def batch_of(labels: Tensor = Y, mask: Tensor | None = None) -> Batch:
    return Batch(torch.zeros(len(labels), 1), labels, torch.arange(len(labels)), mask=mask)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (cross_entropy(F, Y), 0.7904248917812933),
        (squared_error(F, Y), 1.078125),
        (distillation_cross_entropy(F, G, 1), 1.3255788737752225),
        (distillation_cross_entropy(F, G, 4), 17.543324218097204),
        (distillation_squared_error(F, G, 1), 1.4520275446372692),
        (distillation_squared_error(F, G, 4), 5.152548429292514),
        (cross_entropy(F1, Y1), 0.3332342581117445),
        (squared_error(F1, Y1), 0.0325),
        (distillation_cross_entropy(F1, G1, 1), 0.7341678768869568),
        (distillation_cross_entropy(F1, G1, 4), 11.099112387319451),
        (distillation_squared_error(F1, G1, 1), 0.48911290640538896),
        (distillation_squared_error(F1, G1, 4), 1.7694949629557732),
    ],
)
def test_losses_have_their_pre_computed_values(value: Tensor, expected: float) -> None:
    assert float(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_distillation_gradient_is_tau_times_the_difference_of_softmaxes(
    temperature: float,
) -> None:
    logits = F.clone().requires_grad_()
    distillation_cross_entropy(logits, G, temperature).backward()
    expected = temperature * ((F / temperature).softmax(-1) - (G / temperature).softmax(-1)) / 2
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
def test_alpha_0_is_one_hot_and_alpha_1_is_the_teacher(loss: Loss) -> None:
    teacher = RecordedTeacher(G)
    labels, taught = OneHot(loss), Distillation(teacher, 4, loss)
    batch = batch_of()
    assert torch.equal(Mixed(labels, taught, 0).loss(F, batch, 0), labels.loss(F, batch, 0))
    assert torch.equal(Mixed(labels, taught, 1).loss(F, batch, 0), taught.loss(F, batch, 0))
    half = Mixed(labels, taught, 0.25).loss(F, batch, 0)
    expected = 0.75 * labels.loss(F, batch, 0) + 0.25 * taught.loss(F, batch, 0)
    torch.testing.assert_close(half, expected)


@pytest.mark.parametrize(("logits", "labels"), [(F, Y), (F1, Y1)])
def test_a_teacher_sure_of_the_labels_is_one_hot(logits: Tensor, labels: Tensor) -> None:
    if logits.shape[1] == 1:
        sure = (2.0 * labels.double() - 1)[:, None] * 1e3
    else:
        sure = torch.nn.functional.one_hot(labels, 3).double() * 1e3
    torch.testing.assert_close(
        distillation_cross_entropy(logits, sure, 1), cross_entropy(logits, labels)
    )
    torch.testing.assert_close(
        distillation_squared_error(logits, sure, 1), squared_error(logits, labels)
    )


def test_one_output_is_the_two_class_softmax() -> None:
    two_f = torch.cat([torch.zeros_like(F1), F1], 1)
    two_g = torch.cat([torch.zeros_like(G1), G1], 1)
    torch.testing.assert_close(cross_entropy(F1, Y1), cross_entropy(two_f, Y1))
    for temperature in (1, 4):
        torch.testing.assert_close(
            distillation_cross_entropy(F1, G1, temperature),
            distillation_cross_entropy(two_f, two_g, temperature),
        )


def test_masked_positions_do_not_count() -> None:
    logits = torch.stack([F, F.flip(0)])
    teacher = torch.stack([G, G])
    mask = torch.tensor([[True, True], [False, True]])
    labels = torch.tensor([[1, 2], [-100, 0]])
    chosen, taught = logits[mask], teacher[mask]
    torch.testing.assert_close(
        cross_entropy(logits, labels, mask), cross_entropy(chosen, labels[mask])
    )
    torch.testing.assert_close(
        distillation_cross_entropy(logits, teacher, 2, mask),
        distillation_cross_entropy(chosen, taught, 2),
    )


def test_the_student_gets_no_gradient_through_the_teacher() -> None:
    module = torch.nn.Linear(1, 3)
    teacher = FixedTeacher(module)
    logits = torch.zeros(2, 3, requires_grad=True)
    Distillation(teacher, 1).loss(logits, batch_of(), 0).backward()
    assert all(p.grad is None for p in module.parameters())
    assert logits.grad is not None


def constant(value: float) -> RecordedTeacher:
    return RecordedTeacher(np.full((2, 1), value))


def online(steps: list[int], student_steps: int) -> OnlineTeacher:
    made = [TeacherCheckpoint(s, lambda s=s: constant(s)) for s in steps]
    return OnlineTeacher(made, student_steps)


def followed(teacher: OnlineTeacher, step: int) -> float:
    teacher.advance(batch_of(), step)
    return float(teacher.logits(batch_of())[0, 0])


def test_online_follows_the_first_checkpoint_after_its_step() -> None:
    teacher = online([3, 6, 9], 9)
    assert [followed(teacher, t) for t in range(10)] == [3, 3, 3, 6, 6, 6, 9, 9, 9, 9]


def test_online_goes_by_share_of_training_where_step_counts_differ() -> None:
    teacher = online([10, 20, 30], student_steps=6)
    assert [followed(teacher, t) for t in range(6)] == [10, 10, 20, 20, 30, 30]


def test_online_loads_only_what_it_needs_and_once() -> None:
    loaded: list[int] = []

    def load(step: int) -> RecordedTeacher:
        loaded.append(step)
        return constant(step)

    teacher = OnlineTeacher([TeacherCheckpoint(s, lambda s=s: load(s)) for s in (9, 3, 6)], 9)
    for step in (4, 5, 6, 7):
        teacher.advance(batch_of(), step)
    assert loaded == [6, 9]


def test_online_with_one_checkpoint_is_offline() -> None:
    one = OnlineTeacher([TeacherCheckpoint(5, lambda: RecordedTeacher(G))], 50)
    for step in (0, 4, 5, 49):
        taught = Distillation(one, 4)
        taught.advance(batch_of(), step)
        offline = Distillation(RecordedTeacher(G), 4).loss(F, batch_of(), step)
        assert torch.equal(taught.loss(F, batch_of(), step), offline)


def test_recorded_logits_are_looked_up_by_index() -> None:
    teacher = RecordedTeacher(G, torch.tensor([17, 4]))
    batch = Batch(torch.zeros(2, 1), Y, torch.tensor([4, 17]))
    assert torch.equal(teacher.logits(batch), G.flip(0))
    with pytest.raises(SupervisionError, match="index 5"):
        teacher.logits(Batch(torch.zeros(1, 1), Y[:1], torch.tensor([5])))
    with pytest.raises(SupervisionError, match="index -1"):
        RecordedTeacher(G).logits(Batch(torch.zeros(1, 1), Y[:1], torch.tensor([-1])))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(SupervisionError, match="temperature must be positive"):
        Distillation(RecordedTeacher(G), temperature)


def test_bad_supervisions_are_refused() -> None:
    with pytest.raises(SupervisionError, match=r"alpha must lie in \[0, 1\], got 1.5"):
        Mixed(OneHot(), OneHot(), 1.5)
    with pytest.raises(SupervisionError, match="at least one checkpoint"):
        OnlineTeacher([], 3)
    with pytest.raises(SupervisionError, match="same classes"):
        Distillation(RecordedTeacher(G[:, :2]), 1).loss(F, batch_of(), 0)
    with pytest.raises(SupervisionError, match="NaN"):
        RecordedTeacher(torch.full((2, 3), torch.nan)).logits(batch_of())
