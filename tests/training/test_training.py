"""The loop: the same seed gives the same weights, and an interruption changes nothing."""

from __future__ import annotations

import multiprocessing
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import blobs
from torch import nn

from distillens.data import Augmentation, Batches, Normalisation, examples_from_arrays
from distillens.errors import CheckpointError, SupervisionError, TrainingError
from distillens.models import ModelRecipe, build_model, load_state
from distillens.runs.layout import NetworkFiles
from distillens.supervision import (
    CachedTeacher,
    Distillation,
    FixedTeacher,
    LogitCache,
    OneHot,
)
from distillens.supervision.compressed import compress, expand
from distillens.training import (
    EpochRecord,
    Schedule,
    TrainingRecipe,
    accelerator_for,
    fit,
    read_history,
)

RECIPE = TrainingRecipe(epochs=4, batch_size=16, learning_rate=0.05, weight_decay=1e-3)


def network(seed: int = 0, dropout: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    middle = [nn.Dropout(0.3)] if dropout else []
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), *middle, nn.Linear(8, 3))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    trained = []
    for seed in (0, 0, 1):
        model = network()
        fit(model, OneHot(), Batches(blobs(), 16, seed=seed), RECIPE)
        trained.append(weights(model))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_training_learns() -> None:
    model = network()
    history = fit(model, OneHot(), Batches(blobs(200), 16), RECIPE)
    losses = [record.loss for record in history.records]
    assert losses[-1] < 0.5 * losses[0]
    assert history.records[-1].accuracy > 0.8


def test_one_step_is_the_textbook_update() -> None:
    recipe = TrainingRecipe(epochs=1, batch_size=48, learning_rate=0.1, weight_decay=0.01)
    model, other = network(), network()
    batches = Batches(blobs(), 48, seed=None)
    fit(model, OneHot(), batches, recipe)
    batch = next(batches.epoch(0))
    nn.functional.cross_entropy(other(batch.inputs), batch.labels).backward()
    for ours, start in zip(model.parameters(), other.parameters(), strict=True):
        assert start.grad is not None
        gradient = start.grad + 0.01 * start
        # First Nesterov step: momentum buffer = gradient, so the step is (1 + 0.9) of it.
        torch.testing.assert_close(ours, start - 0.1 * 1.9 * gradient)


def test_the_first_step_of_adam_is_the_textbook_one() -> None:
    recipe = TrainingRecipe(epochs=1, batch_size=48, learning_rate=0.1, optimizer="adam")
    model, other = network(), network()
    batches = Batches(blobs(), 48, seed=None)
    fit(model, OneHot(), batches, recipe)
    batch = next(batches.epoch(0))
    nn.functional.cross_entropy(other(batch.inputs), batch.labels).backward()
    for ours, start in zip(model.parameters(), other.parameters(), strict=True):
        assert start.grad is not None
        # Corrected for their start, both moments are those of this one gradient.
        step = start.grad / (start.grad.abs() + 1e-8)
        torch.testing.assert_close(ours, start - 0.1 * step)


class KilledError(Exception):
    """Stands in for a kill between two epochs."""


@pytest.mark.parametrize(("dropout", "optimizer"), [(False, "sgd"), (True, "sgd"), (False, "adam")])
def test_a_run_killed_after_an_epoch_ends_with_the_same_bits(
    tmp_path: Path, dropout: bool, optimizer: Literal["sgd", "adam"]
) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": optimizer})
    batches = Batches(blobs(), 16, seed=2)
    whole = network(dropout=dropout)
    torch.manual_seed(7)
    expected = fit(whole, OneHot(), batches, recipe, store=NetworkFiles(tmp_path / "whole"))

    def stop(record: EpochRecord, model: nn.Module) -> None:
        if record.epoch == 2:
            raise KilledError

    files = NetworkFiles(tmp_path / "killed")
    killed = network(dropout=dropout)
    torch.manual_seed(7)
    with pytest.raises(KilledError):
        fit(killed, OneHot(), batches, recipe, store=files, hooks=[stop])
    torch.manual_seed(12345)
    resumed = network(seed=3, dropout=dropout)
    history = fit(resumed, OneHot(), batches, recipe, store=files)
    assert history.digest == expected.digest
    assert torch.equal(weights(resumed), weights(whole))
    assert len(history.records) == len(read_history(files.history, 4)) == 4
    assert files.epochs() == [0, 1, 2, 3, 4]


def test_micro_batches_do_not_change_the_loss() -> None:
    plain, split = network(), network()
    fit(plain, OneHot(), Batches(blobs(50), 16), RECIPE)
    fit(split, OneHot(), Batches(blobs(50), 16), RECIPE.model_copy(update={"accumulate": 3}))
    torch.testing.assert_close(weights(plain), weights(split), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_long_gradient_is_scaled_to_clip_norm_and_a_short_one_is_left(accumulate: int) -> None:
    def moved(clip_norm: float | None) -> torch.Tensor:
        model = network()
        before = weights(model)
        constant = Schedule(kind="constant")
        recipe = TrainingRecipe(
            epochs=1, batch_size=50, learning_rate=0.5, momentum=0, schedule=constant,
            clip_norm=clip_norm, accumulate=accumulate,
        )  # fmt: skip
        fit(model, OneHot(), Batches(blobs(50), 50), recipe)
        return before - weights(model)

    free = moved(None)
    norm = float(free.norm()) / 0.5
    clipped = moved(norm / 10)
    assert float(clipped.norm()) == pytest.approx(0.5 * norm / 10, rel=1e-4)
    torch.testing.assert_close(clipped * 10, free, rtol=1e-3, atol=1e-6)
    assert torch.equal(moved(norm * 2), free)


def test_cached_logits_train_as_a_live_teacher_does(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    examples = examples_from_arrays(images, torch.arange(40) % 3)
    batches = Batches(
        examples,
        16,
        normalisation=Normalisation.of(examples),
        augmentation=Augmentation(crop=1, flip=True),
    )
    teacher = build_model(ModelRecipe(name="resnet8"), (1, 8, 8), 3, seed=0)
    students = []
    for live in (True, False):
        cache = LogitCache(tmp_path, batches, "float32")
        held = FixedTeacher(teacher) if live else CachedTeacher(cache, "digest", lambda: teacher)
        student = build_model(ModelRecipe(name="mlp"), (1, 8, 8), 3, seed=1)
        fit(student, Distillation(held, 4), batches, RECIPE)
        students.append(weights(student))
    torch.testing.assert_close(students[0], students[1], rtol=1e-4, atol=1e-5)
    assert len(list(tmp_path.glob("*.npy"))) == RECIPE.epochs


def test_bfloat16_keeps_float32_weights_and_leaves_the_model_as_it_was() -> None:
    plain, model = network(), network()
    fit(plain, OneHot(), Batches(blobs(), 16), RECIPE)
    fit(model, OneHot(), Batches(blobs(), 16), RECIPE, accelerator=accelerator_for("bfloat16"))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    difference = (weights(plain) - weights(model)).abs().max()
    assert 0 < float(difference) < 0.05
    inputs = torch.randn(4, 5)
    assert torch.equal(model(inputs), nn.Sequential.forward(model, inputs))  # type: ignore[arg-type]


def test_a_loss_that_diverges_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    files = NetworkFiles(tmp_path)
    recipe = RECIPE.model_copy(update={"learning_rate": 1e20, "epochs": 9})
    with pytest.raises(TrainingError, match=r"at step \d+ .*learning rate 1e\+20.*is kept"):
        fit(network(), OneHot(), Batches(blobs(), 16), recipe, store=files)
    kept = load_state(files.weights(files.epochs()[-1]))
    assert all(bool(torch.isfinite(t).all()) for t in kept.values())


def test_a_changed_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    files = NetworkFiles(tmp_path)
    batches = Batches(blobs(), 16)
    fit(network(), OneHot(), batches, RECIPE.model_copy(update={"epochs": 2}), store=files)
    files.weights(2).write_bytes(files.weights(1).read_bytes())
    with pytest.raises(CheckpointError, match="missing or not what"):
        fit(network(), OneHot(), batches, RECIPE, store=files)
    files.state.write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        fit(network(), OneHot(), batches, RECIPE, store=files)


def test_the_paper_schedule_drops_at_96_192_and_224_of_256() -> None:
    schedule = Schedule(warmup=10)
    rate = [schedule.factor_at(epoch * 391, 391, 256 * 391) for epoch in range(256)]
    assert rate[0] == pytest.approx(1 / 3910)
    assert rate[10] == rate[95] == 1
    assert rate[96] == pytest.approx(0.1) == rate[191]
    assert rate[192] == pytest.approx(0.01)
    assert rate[224] == pytest.approx(0.001) == rate[255]


def test_cosine_falls_from_the_peak_to_zero() -> None:
    schedule = Schedule(kind="cosine", warmup=1)
    factors = [schedule.factor_at(step, 10, 110) for step in range(111)]
    assert factors[9] == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_top_k_logits_keep_the_top_probabilities_and_share_the_rest(tmp_path: Path) -> None:
    logits = torch.randn(50, 20, dtype=torch.float64) * 3
    rows, mean, most = compress(logits, 5)
    whole = expand(rows, 20).double()
    before, after = logits.softmax(1), whole.softmax(1)
    top = logits.topk(5).indices
    torch.testing.assert_close(after.gather(1, top), before.gather(1, top), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(after.sum(1), torch.ones(50, dtype=torch.float64))
    left = 1 - before.gather(1, top).sum(1)
    assert mean == pytest.approx(float(left.mean()))
    assert most == pytest.approx(float(left.max()))
    rest = after.scatter(1, top, 0)
    assert float((rest.max(1).values - left / 15).abs().max()) < 1e-6


def test_the_cache_is_bounded_and_refuses_what_it_did_not_make(tmp_path: Path) -> None:
    batches = Batches(
        examples_from_arrays(torch.rand(30, 1, 4, 4), torch.arange(30) % 3),
        10,
        augmentation=Augmentation(crop=1),
    )
    module = build_model(ModelRecipe(name="mlp"), (1, 4, 4), 3, seed=0)
    size = 30 * 3 * 4 + 128
    cache = LogitCache(tmp_path, batches, "float32", max_bytes=2 * size)
    for epoch in range(5):
        cache.block("digest", epoch, lambda: module)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) <= 2 * size
    assert len(list(tmp_path.glob("*.npy"))) == 2
    with pytest.raises(SupervisionError, match="give it more room"):
        LogitCache(tmp_path, batches, "float32", max_bytes=100).block("d", 0, lambda: module)
    (described,) = [p for p in tmp_path.glob("*.json") if '"epoch": 4' in p.read_text()]
    described.write_text(described.read_text().replace('"digest"', '"another"'))
    with pytest.raises(SupervisionError, match="made with checkpoint 'another', not 'digest'"):
        cache.block("digest", 4, lambda: module)
    described.write_text(described.read_text().replace('"another"', '"digest"'))
    described.with_suffix(".npy").write_bytes(b"junk")
    with pytest.raises(SupervisionError, match="is damaged"):
        cache.block("digest", 4, lambda: module)


def test_processes_that_lack_the_same_block_compute_it_once(tmp_path: Path) -> None:
    batches = Batches(examples_from_arrays(torch.rand(30, 5), torch.arange(30) % 3), 10)
    module, asked = network(), tmp_path / "asked"

    def load() -> nn.Module:
        with asked.open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return module

    def ask() -> None:
        LogitCache(tmp_path, batches, "float32").block("digest", 0, load)

    together = multiprocessing.get_context("fork")
    processes = [together.Process(target=ask) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert asked.read_text() == "x"


def test_a_block_that_made_way_before_it_was_read_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(examples_from_arrays(torch.rand(30, 5), torch.arange(30) % 3), 10)
    module, read, times = network(), np.load, 0

    def load(path: Path, **arguments: Any) -> Any:
        nonlocal times
        times += 1
        if times == 1:
            path.unlink()
        return read(path, **arguments)

    monkeypatch.setattr("distillens.supervision.cache.np.load", load)
    block = LogitCache(tmp_path, batches, "float32").block("digest", 0, lambda: module)
    assert (times, len(block)) == (2, 30)


def test_a_cached_step_sees_no_teacher(tmp_path: Path) -> None:
    batches = Batches(examples_from_arrays(torch.rand(30, 5), torch.arange(30) % 3), 10)
    module = network()
    fit(
        network(1),
        Distillation(
            CachedTeacher(LogitCache(tmp_path, batches, "float32"), "d", lambda: module), 4
        ),
        batches,
        RECIPE,
    )

    def never() -> nn.Module:
        raise AssertionError("the teacher was loaded though its logits are known")

    cached = CachedTeacher(LogitCache(tmp_path, batches, "float32"), "d", never)
    fit(network(2), Distillation(cached, 1), batches, RECIPE)


@pytest.mark.slow
def test_a_compiled_model_trains_as_an_eager_one(tmp_path: Path) -> None:
    plain, compiled = network(), network()
    fit(plain, OneHot(), Batches(blobs(), 16), RECIPE)
    fit(compiled, OneHot(), Batches(blobs(), 16), RECIPE.model_copy(update={"compile": True}))
    torch.testing.assert_close(weights(plain), weights(compiled), rtol=1e-4, atol=1e-5)
