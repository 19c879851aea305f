"""Training as it is on an accelerator, on a CPU: data held on the device, captured steps, no waiting.

`tape.Tape` stands in for a CUDA graph. The tests marked ``cuda`` need a GPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tape import Tape
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distillens.data import (
    Augmentation,
    Batch,
    Batches,
    Examples,
    Normalisation,
    examples_from_arrays,
)
from distillens.data.augment import random_integers
from distillens.errors import DataError, DivergenceError, SupervisionError, TrainingError
from distillens.models import ModelRecipe, build_model
from distillens.runs import NetworkFiles
from distillens.supervision import (
    AveragedTeacher,
    CachedTeacher,
    CotrainedTeacher,
    Distillation,
    FixedTeacher,
    LogitCache,
    Mixed,
    OneHot,
    OnlineTeacher,
    RecordedTeacher,
    Supervision,
    Switched,
    TeacherCheckpoint,
)
from distillens.supervision.block_memory import BLOCKS
from distillens.training import (
    EpochRecord,
    History,
    Training,
    TrainingRecipe,
    fit,
    fit_together,
    make_optimizer,
)
from distillens.training import captured as capturing

SIZE, BATCH, EPOCHS = 44, 8, 3
STEPS = EPOCHS * 6
RECIPE = TrainingRecipe(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.05, clip_norm=5.0)


@pytest.fixture(autouse=True)
def _no_blocks() -> Iterator[None]:
    yield
    BLOCKS.clear()


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Capture steps on the CPU; the tapes that were made."""
    made: list[Tape] = []

    def new() -> Tape:
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr("distillens.training.loop.graph_for", lambda device: new)
    return made


def pictures(dtype: str = "uint8", count: int = SIZE, seed: int = 0) -> Examples:
    generator = np.random.default_rng(seed)
    inputs = generator.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return examples_from_arrays(inputs.astype(dtype), np.arange(count) % 4)


def batches(resident: bool, dtype: str = "uint8", **arguments: Any) -> Batches:
    examples = pictures(dtype)
    return Batches(
        examples,
        BATCH,
        **{
            "normalisation": Normalisation.of(examples),
            "augmentation": Augmentation(crop=2, flip=True),
            "channels_last": True,
            "resident": resident,
            **arguments,
        },
    )


def network(name: str = "conv", seed: int = 0, middle: nn.Module | None = None) -> nn.Module:
    if name != "conv":
        return build_model(ModelRecipe(name=name), (3, 8, 8), 4, seed=seed)
    torch.manual_seed(seed)
    convolution = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*convolution, middle or nn.Identity(), nn.Linear(54, 4))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


def cached(folder: Path, source: Batches, seed: int = 7) -> CachedTeacher:
    cache = LogitCache(folder, source, "float32")
    return CachedTeacher(cache, f"digest {seed}", lambda: network("mlp", seed))


def online(load: Callable[[int], Any]) -> OnlineTeacher:
    path = [TeacherCheckpoint(6 * k, lambda k=k: load(k)) for k in range(1, EPOCHS + 1)]
    return OnlineTeacher(path, STEPS)


def recorded(seed: int = 3) -> RecordedTeacher:
    generator = torch.Generator().manual_seed(seed)
    return RecordedTeacher(torch.randn(SIZE, 4, generator=generator))


SUPERVISIONS: dict[str, Callable[[Path, Batches], Supervision]] = {
    "labels": lambda folder, source: OneHot(),
    "smoothed": lambda folder, source: OneHot("squared-error", 0.1),
    "offline": lambda folder, source: Distillation(cached(folder, source), 4),
    "online": lambda folder, source: Distillation(
        online(lambda k: cached(folder, source, seed=k)), 4
    ),
    "live": lambda folder, source: Distillation(online(lambda k: FixedTeacher(network("mlp", k)))),
    "schedule": lambda folder, source: Distillation(recorded(), lambda step: 4.0 / (step + 1)),
    "averaged": lambda folder, source: Distillation(
        AveragedTeacher([cached(folder, source, 1), cached(folder, source, 2)], [1, 3])
    ),
    "mixed": lambda folder, source: Mixed(OneHot(), Distillation(recorded(), 2), 0.3),
    "switched": lambda folder, source: Switched(
        OneHot(), Distillation(cached(folder, source), 2), at=7
    ),
    "window": lambda folder, source: Switched(
        Distillation(recorded(), 2), OneHot(), at=4, window=4
    ),
}


def trained(
    how: str, folder: Path, *, resident: bool, recipe: TrainingRecipe = RECIPE, **arguments: Any
) -> tuple[Tensor, History]:
    source, model = batches(resident), network()
    history = fit(model, SUPERVISIONS[how](folder, source), source, recipe, **arguments)
    return weights(model), history


def test_random_integers_are_those_of_splitmix64_in_unsigned_arithmetic() -> None:
    def mix(state: int) -> int:
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    def expected(seed: int, epoch: int, index: int, stream: int, high: int) -> int:
        state = index % 2**64
        for word in (stream, epoch, seed):
            state = mix((state + 0x9E3779B97F4A7C15 * (word + 1)) % 2**64)
        return (state >> 11) % high

    index = np.array([0, 1, 49_999, 2**40, 2**63 - 1, -1, -(2**63)])
    for seed, epoch, stream, high in ((0, 0, 0, 9), (5, 255, 1, 9), (2**32 - 1, 3, 2, 2)):
        drawn = random_integers(seed, epoch, index, stream, high).tolist()
        assert drawn == [expected(seed, epoch, int(one), stream, high) for one in index]
    # What runs of earlier versions were trained with.
    assert random_integers(3, 2, np.arange(10), 1, 9).tolist() == OLD_DRAWS


OLD_DRAWS = [6, 2, 4, 0, 4, 4, 6, 4, 7, 7]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("processes", [1, 2])
def test_batches_held_on_the_device_are_those_of_the_host(dtype: str, processes: int) -> None:
    for rank in range(processes):
        share: dict[str, Any] = {"rank": rank, "processes": processes}
        plain, held = batches(False, dtype, **share), batches(True, dtype, **share)
        for epoch in (0, 2, 2, 1):
            for mine, theirs in zip(held.epoch(epoch), plain.epoch(epoch), strict=True):
                assert torch.equal(mine.inputs, theirs.inputs)
                assert torch.equal(mine.labels, theirs.labels)
                assert torch.equal(mine.indices, theirs.indices)
                assert mine.weight == theirs.weight
                assert mine.rows is not None
                assert torch.equal(mine.rows.examples.indices[mine.rows.positions], mine.indices)
    taken = held.take(np.array([5, 0, 43]), 1)
    assert torch.equal(taken.inputs, plain.take(np.array([5, 0, 43]), 1).inputs)


@pytest.mark.parametrize("how", SUPERVISIONS)
def test_captured_and_resident_steps_train_as_plain_ones(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tapes: list[Tape]
) -> None:
    captured, history = trained(how, tmp_path / "captured", resident=True)
    assert history.notes == ()
    assert sum(tape.replays for tape in tapes) > (0 if how == "live" else STEPS // 4)
    assert not list(tmp_path.rglob("*.npy"))
    monkeypatch.setattr("distillens.training.loop.graph_for", lambda device: None)
    resident, _ = trained(how, tmp_path / "resident", resident=True)
    plain, _ = trained(how, tmp_path / "plain", resident=False)
    assert torch.equal(resident, captured)
    # A temperature in a tensor is squared in float32.
    tolerance = 1e-6 if how == "schedule" else 0
    torch.testing.assert_close(plain, resident, rtol=tolerance, atol=tolerance)
