"""How many operations a training step calls, which on a GPU is how many kernels it launches or more.

``python benchmarks/step_operations.py`` prints JSON. It runs on a CPU: operations are counted where
torch dispatches them, views left out. With captured steps a GPU launches all of them at once.
"""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distillens.data import Augmentation, Batches, Normalisation, examples_from_arrays
from distillens.models import ModelRecipe, build_model
from distillens.supervision import (
    CachedTeacher,
    Distillation,
    LogitCache,
    OneHot,
    OnlineTeacher,
    Supervision,
    TeacherCheckpoint,
)
from distillens.training import TrainingRecipe, accelerator_for, fit

BATCH, STEPS, EPOCHS = 8, 6, 2
NETWORKS = {
    "resnet56": {"name": "resnet56"},
    "lenet5x8": {"name": "lenet5", "width": 8},
}


class Counter(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        schema = func._schema
        is_view = not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)
        self.count += not is_view
        return func(*args, **(kwargs or {}))


def counted(network: str, how: str, folder: Path) -> float:
    """Return the operations of a step in the middle of an epoch, as its mean over steps."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (BATCH * STEPS, 3, 32, 32), dtype=np.uint8)
    examples = examples_from_arrays(images, np.arange(BATCH * STEPS) % 100)
    # To count those of an earlier version as well.
    known = inspect.signature(Batches).parameters
    resident: dict[str, Any] = {"resident": True} if "resident" in known else {}
    batches = Batches(
        examples,
        BATCH,
        normalisation=Normalisation.of(examples),
        augmentation=Augmentation(crop=4, flip=True),
        channels_last=True,
        **resident,
    )
    counter = Counter()

    @contextmanager
    def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        taken = 0

        def advance(steps: int) -> None:
            nonlocal taken
            taken += 1
            if taken % STEPS == 1:
                counter.__enter__()
            elif taken % STEPS == 0:
                counter.__exit__(None, None, None)

        yield advance

    fit(
        _built(network, 0),
        _supervision(how, LogitCache(folder, batches, "bfloat16")),
        batches,
        TrainingRecipe(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.01, weight_decay=2e-4),
        accelerator=accelerator_for("bfloat16"),
        progress=progress,
    )
    return counter.count / EPOCHS / (STEPS - 1)


def _built(network: str, seed: int) -> torch.nn.Module:
    model = build_model(ModelRecipe.model_validate(NETWORKS[network]), (3, 32, 32), 100, seed=seed)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _supervision(how: str, cache: LogitCache) -> Supervision:
    def at(epoch: int) -> CachedTeacher:
        return CachedTeacher(cache, str(epoch), lambda: _built("lenet5x8", epoch))

    if how == "no KD":
        return OneHot()
    if how == "offline":
        return Distillation(at(EPOCHS), 4.0)
    path = [TeacherCheckpoint(STEPS * k, lambda k=k: at(k)) for k in range(1, EPOCHS + 1)]
    return Distillation(OnlineTeacher(path, STEPS * EPOCHS), 4.0)


def main() -> None:
    """Print the operations of a step."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    cases = [("resnet56", "no KD"), *(("lenet5x8", how) for how in ("no KD", "offline", "online"))]
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for network, how in cases:
            found[f"{network}, {how}"] = round(counted(network, how, Path(name) / how), 1)
    print(json.dumps({"torch": torch.__version__, "operations_per_step": found}, indent=1))


if __name__ == "__main__":
    main()
