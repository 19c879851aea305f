"""The grid of teacher, supervisions and seeds, trained three ways on the same examples.

The ways take turns network by network, so that a machine whose speed drifts hits all of them alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from public_loop import (
    Compose,
    Hyperparameters,
    LiveTeacher,
    Normalise,
    Pictures,
    RandomCrop,
    RandomHorizontalFlip,
    ToTensor,
    count_correct,
    train_network,
)
from torch import nn

from distillens.data import Examples, Normalisation, Splits
from distillens.models import ModelRecipe, build_model
from distillens.progress import Advance
from distillens.study import Recipe, parse_recipe, run
from distillens.training import TrainingRecipe

OURS, PUBLIC, CAREFUL = WAYS = ("distillens", "public", "careful")
TEACHER = "teacher"
CROP = 4


@dataclass(frozen=True)
class Setting:
    """What is trained on what, with the papers' batch size, weight decay and teacher's learning rate.

    The student's is a quarter of theirs: after an epoch of a few dozen steps the teacher's running
    batch statistics lag behind its weights, and its logits are in the hundreds. With τ=4, which
    multiplies gradients by 4, the papers' rate ends in a NaN on those.
    """

    splits: Splits
    teacher: dict[str, Any]
    """The model, as in a recipe."""
    student: dict[str, Any]
    epochs: int
    seeds: int
    batch_size: int = 128

    def recipe(self, data: Path) -> Recipe:
        """Return the grid as a recipe of distillens on an npz."""
        training = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "weight_decay": 2e-4,
            "schedule": {"warmup": min(1, self.epochs / 4)},
        }
        supervisions = [{"kind": "one-hot"}]
        for kind in ("offline", "online"):
            supervisions += [{"kind": kind, "temperature": 1}, {"kind": kind, "temperature": 4}]
        return parse_recipe(
            {
                "name": "benchmark",
                "seeds": list(range(self.seeds)),
                "precision": "bfloat16",
                "data": {
                    "source": "npz",
                    "path": str(data),
                    "augmentation": {"crop": CROP, "flip": True},
                },
                "teacher": {"model": self.teacher, "training": {**training, "learning_rate": 0.1}},
                "student": {"model": self.student, "training": {**training, "learning_rate": 0.01}},
                "supervisions": supervisions,
                "complexity": None,
                "deviation": False,
            }
        )


@dataclass(frozen=True)
class Network:
    """One network of the grid. ``supervision`` is the title in distillens' tables, or "teacher"."""

    supervision: str
    kind: str
    temperature: float
    seed: int


@dataclass(frozen=True)
class Trained:
    """How one way trained one network. ``seconds`` are those of its training; see the README."""

    way: str
    supervision: str
    seed: int
    seconds: float
    test_correct: int


@dataclass(frozen=True)
class Grid:
    """All networks, and for each way the seconds of the whole grid with evaluation and files."""

    trained: tuple[Trained, ...]
    whole_seconds: dict[str, float]


def run_grid(setting: Setting, folder: Path, say: Callable[[str], None]) -> Grid:
    """Train the grid three ways.

    Parameters
    ----------
    setting
        Data, models and sizes.
    folder
        An empty folder for the run of distillens and the checkpoints of the loops.
    say
        Told of each network that is done.
    """
    data = folder / "examples.npz"
    _write(data, setting.splits)
    recipe = setting.recipe(data)
    networks = _networks(recipe)
    loops = [Loop(way, recipe, setting.splits, folder / way) for way in (PUBLIC, CAREFUL)]
    done: list[Trained] = []
    seconds: dict[Network, float] = {}
    apart = 0.0

    def others(title: str, own: float) -> None:
        nonlocal apart
        began = time.perf_counter()
        network = networks[title]
        seconds[network] = own
        say(f"{title}: {OURS} {own:.1f} s")
        with torch.random.fork_rng(devices=[]):
            for loop in loops:
                done.append(loop.train(network))
                say(f"{title}: {loop.way} {done[-1].seconds:.1f} s")
        apart += time.perf_counter() - began

    began = time.perf_counter()
    result = run(recipe, folder / OURS, progress=_Clock(others))
    whole = {OURS: time.perf_counter() - began - apart}
    whole |= {loop.way: loop.whole_seconds for loop in loops}
    correct = {
        (cell.supervision, cell.seed): round(cell.test_accuracy * cell.test_count)
        for cell in result.cells
    }
    ours = [
        Trained(OURS, n.supervision, n.seed, own, correct[n.supervision, n.seed])
        for n, own in seconds.items()
    ]
    return Grid((*ours, *done), whole)


class _Clock:
    """A progress display that measures each training, and gives the others their turn after it."""

    def __init__(self, after: Callable[[str, float], None]) -> None:
        self._after = after

    @contextmanager
    def __call__(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        began = time.perf_counter()
        yield lambda steps: None
        self._after(title, time.perf_counter() - began)


class Loop:
    """The public loop over the networks of a recipe, plain or careful."""

    def __init__(self, way: str, recipe: Recipe, splits: Splits, folder: Path) -> None:
        self.way = way
        self.whole_seconds = 0.0
        self._careful = way == CAREFUL
        self._recipe = recipe
        self._shape = splits.train.input_shape
        self._classes = len(splits.train.classes)
        self._folder = folder
        folder.mkdir()
        scale = Normalisation.of(splits.train)
        normalise = Normalise(scale.mean.flatten().tolist(), scale.deviation.flatten().tolist())
        augmented = Compose(RandomCrop(CROP), RandomHorizontalFlip(), ToTensor(), normalise)
        self._train = _pictures(splits.train, augmented)
        self._test = _pictures(splits.test, Compose(ToTensor(), normalise))

    def train(self, network: Network) -> Trained:
        """Train and evaluate one network; the teacher must come first."""
        began = time.perf_counter()
        student, recipe = self._recipe.student, self._recipe.teacher
        training, teacher, save = student.training, None, None
        if network.supervision == TEACHER:
            assert recipe.training is not None
            training, save = recipe.training, self._checkpoint
            model = self._build(recipe.model, network.seed)
        else:
            model = self._build(student.model, network.seed)
        if network.kind in ("offline", "online"):
            last = training.epochs
            epochs = range(1, last + 1) if network.kind == "online" else [last] * last
            teacher = LiveTeacher(
                self._build(recipe.model, 0),
                [self._checkpoint(epoch) for epoch in epochs],
                network.temperature,
            )
        seconds = train_network(
            model,
            self._train,
            hyperparameters(training, len(self._train)),
            seed=network.seed,
            teacher=teacher,
            careful=self._careful,
            save=save,
        )
        correct = count_correct(model, self._test)
        self.whole_seconds += time.perf_counter() - began
        return Trained(self.way, network.supervision, network.seed, seconds, correct)

    def _checkpoint(self, epoch: int) -> Path:
        return self._folder / f"teacher-{epoch}.pt"

    def _build(self, model: ModelRecipe | None, seed: int) -> nn.Module:
        assert model is not None
        return build_model(model, self._shape, self._classes, seed=seed)


def _networks(recipe: Recipe) -> dict[str, Network]:
    """Return the networks by the title that distillens shows while it trains them."""
    teacher = recipe.teacher
    assert teacher.model is not None
    found = {f"teacher ({teacher.model.name})": Network(TEACHER, "one-hot", 1.0, teacher.seed)}
    for seed in recipe.seeds:
        for entry in recipe.supervisions:
            temperature = getattr(entry, "temperature", 1.0)
            network = Network(entry.title, entry.kind, temperature, seed)
            found[f"{entry.title}, seed {seed}"] = network
    return found


def hyperparameters(training: TrainingRecipe, examples: int) -> Hyperparameters:
    """Return what a recipe says of a training, as the loop takes it."""
    an_epoch = math.ceil(examples / training.batch_size)
    steps = training.epochs * an_epoch
    return Hyperparameters(
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup=round(training.schedule.warmup * an_epoch),
        milestones=tuple(
            math.ceil(round(share * steps, 6)) for share in training.schedule.milestones
        ),
    )


def _pictures(examples: Examples, transform: Compose) -> Pictures:
    pictures_NHWC = examples.inputs.permute(0, 2, 3, 1).contiguous().numpy()
    return Pictures(pictures_NHWC, examples.labels, transform)


def _write(path: Path, splits: Splits) -> None:
    # All ways start from the same arrays in memory or beside it: decoding PNG is nobody's training.
    arrays: dict[str, Any] = {"classes": np.array(splits.train.classes)}
    for name, part in (("train", splits.train), ("test", splits.test)):
        arrays |= {f"{name}_inputs": part.inputs.numpy(), f"{name}_labels": part.labels.numpy()}
    np.savez(path, allow_pickle=False, **arrays)
