"""Supervisions beyond the plain ones: each against a value computed apart, and in a run."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs
from torch import Tensor, nn

import distillens
from distillens.data import Batch, Batches
from distillens.errors import RecipeError, SupervisionError
from distillens.measures import paired_interval
from distillens.models import digest_file
from distillens.results.training import Cell
from distillens.runs.layout import Run
from distillens.study import parse_recipe
from distillens.study.outcome import rows
from distillens.supervision import (
    AveragedTeacher,
    CotrainedTeacher,
    Distillation,
    Features,
    FixedTeacher,
    OneHot,
    RecordedTeacher,
    Switched,
    TemperatureSchedule,
    decoupled,
    dist,
    pace_of,
)
from distillens.training import TrainingRecipe, fit, make_optimizer

F = torch.tensor([[1.0, 2.0, -1.0], [0.5, -0.25, 0.0]], dtype=torch.float64)
G = torch.tensor([[3.0, 0.0, -2.0], [-1.0, 1.0, 0.5]], dtype=torch.float64)
Y = torch.tensor([1, 2])
BATCH = Batch(torch.zeros(2, 1), Y, torch.arange(2))


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(value) for value in row]
    return [weight / sum(weights) for weight in weights]


def test_label_smoothing_is_cross_entropy_to_the_smoothed_target() -> None:
    expected = 0.0
    for row, label in zip(F.tolist(), Y.tolist(), strict=True):
        for place, probability in enumerate(softmax(row)):
            target = 0.9 * (place == label) + 0.1 / 3
            expected -= target * math.log(probability) / 2
    assert float(OneHot(smoothing=0.1).loss(F, BATCH, 0)) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(OneHot(smoothing=0).loss(F, BATCH, 0), OneHot().loss(F, BATCH, 0))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_distillation_by_hand(temperature: float) -> None:
    expected = 0.0
    for f, g, label in zip(F.tolist(), G.tolist(), Y.tolist(), strict=True):
        p = softmax([value / temperature for value in f])
        q = softmax([value / temperature for value in g])
        target = q[label] * math.log(q[label] / p[label])
        target += (1 - q[label]) * math.log((1 - q[label]) / (1 - p[label]))
        others = [place for place in range(3) if place != label]
        rest_p, rest_q = (sum(d[place] for place in others) for d in (p, q))
        other = sum(q[k] / rest_q * math.log((q[k] / rest_q) / (p[k] / rest_p)) for k in others)
        expected += temperature**2 * (1.5 * target + 8 * other) / 2
    value = decoupled(F, G, Y, temperature, target_weight=1.5, other_weight=8)
    assert float(value) == pytest.approx(expected, rel=1e-10)


def test_decoupled_with_the_teachers_own_weights_is_the_kl_divergence() -> None:
    # KL = TCKD + (1 − q_label)·NCKD: with one example the second weight can be set to match.
    f, g, y = F[:1], G[:1], Y[:1]
    rest = float(1 - g.softmax(-1)[0, int(y)])
    kl = float((g.softmax(-1) * (g.log_softmax(-1) - f.log_softmax(-1))).sum())
    value = decoupled(f, g, y, 1, target_weight=1, other_weight=rest)
    assert float(value) == pytest.approx(kl, rel=1e-10)


def test_dist_is_one_minus_correlations() -> None:
    p, q = (F / 2).softmax(-1).numpy(), (G / 2).softmax(-1).numpy()
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    value = dist(F, G, 2, inter_weight=2, intra_weight=3)
    assert float(value) == pytest.approx(4 * (2 * inter + 3 * intra), rel=1e-10)
    assert float(dist(F, F + 5, 1)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", [lambda f: decoupled(f, G, Y, 4), lambda f: dist(f, G, 4)])
def test_gradients_of_named_losses_agree_with_differences(loss: Any) -> None:
    assert torch.autograd.gradcheck(loss, F.clone().requires_grad_())


def test_paces_are_exact_and_increase() -> None:
    assert pace_of(1)(Fraction(1, 3)) == Fraction(1, 3)
    assert pace_of(2)(Fraction(1, 3)) == Fraction(2, 3)
    assert pace_of(2)(Fraction(2, 3)) == 1
    along = pace_of([(0, 0), (0.5, 0.9), (1, 1)])
    assert [along(Fraction(k, 4)) for k in range(5)] == [
        0,
        Fraction(9, 20),
        Fraction(9, 10),
        Fraction(19, 20),
        1,
    ]
    for bad in (0, -1, math.inf, [(0, 0)], [(0, 0.5), (1, 0.2)], [(0, 0), (0.5, 1)]):
        with pytest.raises(SupervisionError, match="pace"):
            pace_of(bad)  # type: ignore[arg-type]


def test_a_switch_moves_over_its_window() -> None:
    labels, teacher = OneHot(), Distillation(RecordedTeacher(G), 4)
    switched = Switched(labels, teacher, at=10, window=3)
    weights = [switched.weight(step) for step in (0, 9, 10, 11, 12, 13, 99)]
    assert weights == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert torch.equal(switched.loss(F, BATCH, 9), labels.loss(F, BATCH, 9))
    assert torch.equal(switched.loss(F, BATCH, 13), teacher.loss(F, BATCH, 13))
    half = 0.5 * labels.loss(F, BATCH, 0) + 0.5 * teacher.loss(F, BATCH, 0)
    torch.testing.assert_close(switched.loss(F, BATCH, 11), half)
    sudden = Switched(labels, teacher, at=10)
    assert [sudden.weight(step) for step in (9, 10)] == [0, 1]


def test_a_temperature_schedule_is_a_straight_line() -> None:
    schedule = TemperatureSchedule(start=8, end=2)
    assert [schedule.at(share) for share in (0, 0.5, 1, 2)] == [8, 5, 2, 2]
    moving = Distillation(RecordedTeacher(G), lambda step: schedule.at(step / 10))
    fixed = Distillation(RecordedTeacher(G), 5)
    assert torch.equal(moving.loss(F, BATCH, 5), fixed.loss(F, BATCH, 5))


def test_an_average_of_logits_is_weighted() -> None:
    average = AveragedTeacher([RecordedTeacher(F), RecordedTeacher(G)], [1, 3])
    torch.testing.assert_close(average.logits(BATCH), 0.25 * F + 0.75 * G)
    with pytest.raises(SupervisionError, match="positive weights"):
        AveragedTeacher([], [])


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_cotrained_teacher_ends_where_it_would_have_ended_alone() -> None:
    recipe = TrainingRecipe(epochs=2, batch_size=16, learning_rate=0.05)
    batches = Batches(blobs(), 16)
    alone, beside = network(0), network(0)
    fit(alone, OneHot(), batches, recipe)
    total = 2 * len(batches)
    teacher = CotrainedTeacher(
        beside,
        make_optimizer(beside, recipe),
        OneHot(),
        lambda step: 0.05 * recipe.schedule.factor_at(step, len(batches), total),
    )
    fit(network(1), Distillation(teacher, 2), batches, recipe)
    torch.testing.assert_close(flat(beside), flat(alone))


def test_feature_losses_reach_the_students_layers_and_hooks_come_off() -> None:
    student, teacher = network(0), network(1)
    batch = next(Batches(blobs(), 8).epoch(0))
    with Features(
        OneHot(), student, teacher, {"0": "0"}, weight=2.0, loss=nn.functional.mse_loss
    ) as features:
        value = features.loss(student(batch.inputs), batch, 0)
        expected = nn.functional.cross_entropy(student(batch.inputs), batch.labels)
        gap = nn.functional.mse_loss(student[0](batch.inputs), teacher[0](batch.inputs))  # type: ignore[index]
        torch.testing.assert_close(value, expected + 2 * gap)
    assert not student[0]._forward_hooks  # type: ignore[index]
    with pytest.raises(SupervisionError, match="no layer '9'"):
        Features(OneHot(), student, teacher, {"9": "0"})


def composed(tiny: dict[str, Any], *entries: dict[str, Any]) -> dict[str, Any]:
    tiny["supervisions"] = [{"kind": "one-hot"}, *entries]
    tiny["data"]["validation_size"] = 60
    tiny["complexity"], tiny["deviation"] = None, False
    return tiny


def test_every_kind_runs_from_a_recipe(tiny: dict[str, Any], tmp_path: Path) -> None:
    offline: dict[str, Any] = {"kind": "offline", "temperature": 4}
    online: dict[str, Any] = {"kind": "online", "temperature": 4}
    result = distillens.run(
        composed(
            tiny,
            {"kind": "one-hot", "smoothing": 0.1},
            {**offline, "average": {"last": 2}},
            {**offline, "early_stop": 2},
            {**offline, "early_stop": "validation"},
            {**offline, "loss": {"name": "dkd"}},
            {**offline, "loss": {"name": "dist"}, "alpha": 0.5},
            {**offline, "temperature": {"start": 8, "end": 1}},
            {**online, "pace": 2},
            {**online, "pace": [[0, 0.2], [1, 1]], "name": "mine"},
            {**online, "period": {"epochs": 3}},
            {**online, "average": {"decay": 0.5}},
            {"kind": "co-trained", "temperature": 4},
            {"kind": "self-distillation", "generations": 2},
            {"kind": "switched", "first": {"kind": "one-hot"}, "then": offline, "at": 0.5},
        ),
        tmp_path / "run",
    )
    assert [row.name for row in result.rows] == [
        "teacher",
        "no KD",
        "smoothed ε=0.1",
        "offline τ=4 last 2",
        "offline τ=4 stop=2",
        "offline τ=4 stop=validation",
        "offline τ=4 dkd",
        "offline τ=4 α=0.5 dist",
        "offline τ=8→1",
        "online τ=4 pace=2",
        "mine",
        "online τ=4 every 3 epochs",
        "online τ=4 decay=0.5",
        "co-trained τ=4",
        "self τ=1 generation 2",
        "no KD → offline τ=4 at 0.5",
    ]
    digests = {cell.weights_digest for cell in result.cells}
    # Early stopping by validation may choose the epoch that was also named; nothing else agrees.
    assert len(digests) >= len(result.cells) - 1
    assert not result.open_cells


def test_a_period_of_the_whole_training_is_the_offline_teacher(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    result = distillens.run(
        composed(
            tiny,
            {"kind": "offline", "temperature": 4},
            {"kind": "online", "temperature": 4, "period": {"epochs": 3}},
        ),
        tmp_path / "run",
    )
    offline, online = (cell.weights_digest for cell in result.cells[2:])
    assert offline == online


def test_early_stopping_takes_the_epoch_of_lowest_validation_loss(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    stops: list[Any] = [1, 2, 3, "validation"]
    entries = [{"kind": "offline", "temperature": 4, "early_stop": stop} for stop in stops]
    result = distillens.run(composed(tiny, *entries), tmp_path / "run")
    losses = json.loads((tmp_path / "run" / "teacher" / "validation-losses.json").read_text())
    assert len(losses) == 3
    *fixed, chosen = (cell.weights_digest for cell in result.cells[2:])
    assert chosen == fixed[losses.index(min(losses))]
    assert len(set(fixed)) == 3


def test_generations_start_from_other_weights(tiny: dict[str, Any], tmp_path: Path) -> None:
    composed(tiny, {"kind": "self-distillation", "generations": 2})
    distillens.run(tiny, tmp_path / "run")
    run = Run(tmp_path / "run")
    last = run.student(1, "self τ=1 generation 2", 0)
    starts = [
        digest_file(files.weights(0))
        for files in (run.student(0, "no KD", 0), last.generation(1), last)
    ]
    assert len(set(starts)) == 3


def test_gains_are_paired_by_seed_whatever_the_order(tiny: dict[str, Any]) -> None:
    recipe = parse_recipe({**composed(tiny, {"kind": "offline"}), "seeds": [0, 1, 2]})

    def cell(name: str, seed: int, accuracy: float, position: int = -1) -> Cell:
        return Cell(name, seed, 1, 1, 1.0, 0.5, accuracy, 100, None, "", position)

    labels = [cell("no KD", seed, 0.5 + 0.1 * seed, 0) for seed in (0, 1, 2)]
    taught = [cell("offline τ=1", seed, 0.52 + 0.1 * seed, 1) for seed in (2, 0)]

    def right(place: int, seed: int) -> np.ndarray:
        correct = round(100 * (0.5 + 0.02 * place + 0.1 * seed))
        return np.arange(100) < correct

    def outcomes(cell: Cell) -> np.ndarray:
        return right(cell.position, cell.seed)

    gain = rows(recipe, cell("teacher", 9, 0.9), [labels, taught], outcomes)[2].gain
    assert gain is not None
    assert gain.value == pytest.approx(0.02)
    assert gain.interval is not None
    # The seeds agree on the difference, so only another test sample could change it.
    both = np.mean([right(1, seed).astype(float) - right(0, seed) for seed in (0, 2)], axis=0)
    examples = paired_interval(both)
    assert gain.interval.low == pytest.approx(examples.low)
    assert gain.interval.high == pytest.approx(examples.high)


def test_another_runs_teacher_is_shared(tiny: dict[str, Any], tmp_path: Path) -> None:
    first = composed(tiny, {"kind": "online", "temperature": 4})
    made = distillens.run(first, tmp_path / "first")
    second = {**first, "teacher": {"run": str(tmp_path / "first")}}
    again = distillens.run(second, tmp_path / "second")
    assert [c.weights_digest for c in made.cells] == [c.weights_digest for c in again.cells]
    assert not list((tmp_path / "second").rglob("cache/*"))
    other = {**second, "data": {**first["data"], "seed": 5}}
    with pytest.raises(distillens.DistillensError, match="the data of this recipe are not those"):
        distillens.run(other, tmp_path / "third")


def test_a_run_that_was_cut_short_names_its_open_cells(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distillens.report import markdown_table
    from distillens.runs.open import OpenRun
    from distillens.study.networks import train_network

    composed(tiny, {"kind": "offline", "temperature": 4})
    calls: list[str] = []

    def stop(*arguments: Any) -> Any:
        calls.append(arguments[1].name)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return train_network(*arguments)

    monkeypatch.setattr("distillens.study.students.train_network", stop)
    with pytest.raises(KeyboardInterrupt):
        distillens.run(tiny, tmp_path / "run")
    result = OpenRun.open(tmp_path / "run", unfinished=True).result
    assert result.open_cells == ("offline τ=4, seed 0",)
    assert "Open, not trained yet: offline τ=4, seed 0" in markdown_table(result)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "offline", "loss": {"name": "dkdd"}}, "no loss 'dkdd'"),
        ({"kind": "offline", "loss": {"name": "os:system"}}, "pass --trust-code"),
        ({"kind": "online", "pace": 0}, "pace must be positive"),
        ({"kind": "online", "period": {}}, "either epochs or steps"),
        ({"kind": "offline", "average": {"last": 2, "decay": 0.5}}, "either last or decay"),
        ({"kind": "one-hot", "smoothing": 2}, "smoothing: .*got 2"),
        ({"kind": "switched", "first": {"kind": "one-hot"}, "at": 0.5}, "then' is missing"),
        ({"kind": "self-distillation", "seeds": [4]}, "names seed 4, which seeds lacks"),
    ],
)
def test_bad_entries_are_named(tiny: dict[str, Any], entry: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(composed(tiny, entry))
    assert "\n" not in str(caught.value)


def test_a_period_that_no_checkpoint_meets_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    composed(tiny, {"kind": "online", "period": {"steps": 3}})
    with pytest.raises(SupervisionError, match="use a multiple of 4"):
        distillens.run(tiny, tmp_path / "run")


def scaled_gap(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return (student - teacher).square().mean()


def test_a_loss_of_the_users_own(tiny: dict[str, Any], tmp_path: Path) -> None:
    composed(tiny, {"kind": "offline", "loss": {"name": "test_composed:scaled_gap"}})
    result = distillens.run(tiny, tmp_path / "run", trust_code=True)
    assert result.rows[-1].name == "offline τ=1 scaled_gap"


def test_a_fixed_teacher_needs_no_advance() -> None:
    teacher = FixedTeacher(network(0))
    batch = next(Batches(blobs(), 8).epoch(0))
    assert teacher.logits(batch).shape == (8, 3)
    assert teacher.state_dict() == {}
