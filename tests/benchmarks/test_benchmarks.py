"""The training benchmark runs, and its loops do what distillens does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cached_step import measure_cached_step
from grid import WAYS, Setting, hyperparameters
from public_loop import (
    Compose,
    Normalise,
    Pictures,
    RandomCrop,
    RandomHorizontalFlip,
    ToTensor,
    distillation_loss,
)
from training import benchmark, table

from distillens.data import Normalisation, Splits, examples_from_arrays
from distillens.supervision import distillation_cross_entropy
from distillens.training import Schedule, TrainingRecipe

CELLS = {"teacher", "no KD", "offline τ=1", "offline τ=4", "online τ=1", "online τ=4"}


def noise(count: int, seed: int):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return examples_from_arrays(images, np.arange(count) % 5)


def test_all_ways_give_every_cell() -> None:
    setting = Setting(
        Splits(noise(64, 0), None, noise(20, 1)),
        teacher={"name": "resnet8"},
        student={"name": "lenet5", "width": 1},
        epochs=1,
        seeds=2,
        batch_size=32,
    )
    said: list[str] = []
    result = benchmark(setting, (1, 2), pairs=4, say=said.append)
    assert set(result["accuracy"]["by_supervision"]) == CELLS
    for way in WAYS:
        numbers = result["ways"][way]
        found = {(cell["supervision"], cell["seed"]) for cell in numbers["networks"]}
        students = {(name, seed) for name in CELLS - {"teacher"} for seed in (0, 1)}
        assert found == {("teacher", 1000), *students}
        seconds = [cell["seconds"] for cell in numbers["networks"]]
        assert numbers["grid_seconds"]["2"] == pytest.approx(sum(seconds))
        assert numbers["grid_seconds"]["1"] < numbers["grid_seconds"]["2"]
        assert numbers["grid_with_evaluation_seconds"]["2"] > numbers["grid_seconds"]["2"]
    assert set(result["ratios"]["grid_seconds"]["public/distillens"]) == {"1", "2"}
    assert result["step"]["cached_step_over_one_hot_step"] > 0
    assert len(said) == 1 + 3 * 11
    assert json.loads(json.dumps(result)) is not None
    assert "cached step / one-hot step" in table(result)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_loss_equals_ours_up_to_the_teachers_entropy(temperature: float) -> None:
    torch.manual_seed(0)
    student = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(7, 5, dtype=torch.float64)
    public = distillation_loss(student, teacher, temperature)
    ours = distillation_cross_entropy(student, teacher, temperature)
    sure = torch.softmax(teacher / temperature, 1)
    entropy = -(sure * sure.log()).sum(1).mean()
    torch.testing.assert_close(ours, public + temperature**2 * entropy)
    theirs, own = (torch.autograd.grad(loss, student)[0] for loss in (public, ours))
    torch.testing.assert_close(own, theirs)


def test_pictures_are_those_of_distillens_and_their_crops_and_mirrors() -> None:
    examples = noise(6, 0)
    scale = Normalisation.of(examples)
    normalise = Normalise(scale.mean.flatten().tolist(), scale.deviation.flatten().tolist())
    pictures_NHWC = examples.inputs.permute(0, 2, 3, 1).numpy()
    plain = Pictures(pictures_NHWC, examples.labels, Compose(ToTensor(), normalise))
    value, label = plain[2]
    assert label == 2
    torch.testing.assert_close(value, scale(examples.inputs)[2])
    torch.manual_seed(0)
    augmented = Pictures(
        pictures_NHWC,
        examples.labels,
        Compose(RandomCrop(4), RandomHorizontalFlip(), ToTensor()),
    )
    padded = torch.nn.functional.pad(examples.inputs[1].float() / 255, (4, 4, 4, 4))
    crops = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    known = torch.cat([crops, crops.flip(-1)])
    seen = set()
    for _ in range(40):
        matches = (known == augmented[1][0]).flatten(1).all(1).nonzero()[:, 0]
        assert len(matches) == 1
        seen.add(int(matches[0]))
    assert len(seen) > 20
    assert min(seen) < 81 <= max(seen)


@pytest.mark.parametrize("epochs", [1, 3, 8])
def test_both_follow_one_schedule(epochs: int) -> None:
    schedule = Schedule(warmup=0.5)
    recipe = TrainingRecipe(epochs=epochs, batch_size=32, learning_rate=0.1, schedule=schedule)
    loop = hyperparameters(recipe, examples=150)
    ours = [schedule.factor_at(step, 5, 5 * epochs) for step in range(5 * epochs)]
    assert [loop.rate_factor(step) for step in range(5 * epochs)] == pytest.approx(ours)
    assert min(ours) < 0.02


def test_a_step_is_timed_for_both_supervisions(tmp_path) -> None:
    student = {"name": "lenet5", "width": 1}
    step = measure_cached_step(
        noise(64, 0), {"name": "resnet8"}, student, tmp_path, 6, batch_size=16
    )
    low, high = step["interval"]
    assert low <= step["cached_step_over_one_hot_step"] <= high
    assert step["one_hot_milliseconds"] > 0
