"""What a student's step costs with cached teacher logits, against a step on the labels.

Shapes: P pairs of steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillens.data import Augmentation, Batch, Batches, Examples, Normalisation
from distillens.models import ModelRecipe, build_model
from distillens.supervision import CachedTeacher, Distillation, LogitCache, OneHot, Supervision
from distillens.training import TrainingRecipe, accelerator_for, fit

WARM_UP = 8
MOST = 16
EPOCH = 0


class _InPairs:
    """The same batches again and again, each for two steps; made beforehand, so that they cost 0."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        self._batches, self._steps = batches, steps

    def __len__(self) -> int:
        return self._steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for step in range(self._steps):
            yield self._batches[step // 2 % len(self._batches)]


class _Alternating:
    """One supervision and the other in turns a b b a, with the time at which each step began."""

    def __init__(self, first: Supervision, second: Supervision) -> None:
        self._both = (first, second)
        self.began: list[float] = []

    def whose(self, step: int) -> int:
        """Return 0 for a step of the first supervision and 1 for one of the second."""
        return int(step % 4 in (1, 2))

    def advance(self, batch: Batch, step: int) -> None:
        self.began.append(time.perf_counter())
        self._both[self.whose(step)].advance(batch, step)

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        return self._both[self.whose(step)].loss(logits, batch, step)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def measure_cached_step(
    examples: Examples,
    teacher: dict[str, Any],
    student: dict[str, Any],
    cache: Path,
    pairs: int,
    *,
    batch_size: int = 128,
) -> dict[str, Any]:
    """Time pairs of steps of one student on the same batch in one training.

    Parameters
    ----------
    examples
        Of the training; the first sixteen batches are used.
    teacher, student
        Models as in a recipe, untrained: what they know does not matter for the time.
    cache
        An empty folder. The block is computed before the clock starts.
    pairs
        Of one step on the labels and one on cached logits.
    batch_size
        Examples a step.

    Returns
    -------
    The ratio of the median times with a 95 % bootstrap interval over pairs, and the medians.
    """
    batches = Batches(
        examples.take(slice(0, MOST * batch_size)),
        batch_size,
        normalisation=Normalisation.of(examples),
        augmentation=Augmentation(crop=4, flip=True),
        channels_last=True,
    )
    made = list(batches.epoch(EPOCH))
    logits = LogitCache(cache, batches, "bfloat16")
    cached = CachedTeacher(logits, "benchmark", lambda: _build(teacher, examples))
    cached.advance(made[0], 0)
    supervision = _Alternating(OneHot(), Distillation(cached, temperature=4.0))
    steps = 2 * (pairs + WARM_UP)
    fit(
        _build(student, examples),
        supervision,
        # One step more, whose start is the end of the last that counts.
        _InPairs([batch for batch in made if len(batch) == len(made[0])], steps + 1),
        TrainingRecipe(epochs=1, batch_size=batch_size, learning_rate=0.01),
        accelerator=accelerator_for("bfloat16"),
    )
    seconds = np.diff(supervision.began)
    whose = np.array([supervision.whose(step) for step in range(steps)])
    one_hot_P, cached_P = (seconds[whose == which][WARM_UP:] for which in (0, 1))
    draws = np.random.default_rng(0).integers(0, pairs, (2000, pairs))
    ratios = np.median(cached_P[draws], 1) / np.median(one_hot_P[draws], 1)
    return {
        "cached_step_over_one_hot_step": float(np.median(cached_P) / np.median(one_hot_P)),
        "interval": [float(bound) for bound in np.quantile(ratios, [0.025, 0.975])],
        "interval_method": f"95 % bootstrap over {pairs} pairs of steps",
        "one_hot_milliseconds": 1e3 * float(np.median(one_hot_P)),
        "cached_milliseconds": 1e3 * float(np.median(cached_P)),
        "batch_size": len(made[0]),
    }


def _build(model: dict[str, Any], examples: Examples) -> nn.Module:
    recipe = ModelRecipe.model_validate(model)
    network = build_model(recipe, examples.input_shape, len(examples.classes), seed=0)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
