"""Train the networks of a study: one cell a network, skipped where it is done."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from distillens.atomic import write_atomically
from distillens.data import Batches, Normalisation, Splits, load_splits
from distillens.errors import CheckpointError, RunError
from distillens.models import (
    ModelRecipe,
    build_model,
    count_parameters,
    digest_file,
    load_weights,
)
from distillens.progress import Progress, silent
from distillens.results import Cell, from_json, to_json
from distillens.runs import NetworkFiles, Run, read_arrays
from distillens.study.recipe import Recipe
from distillens.supervision import Supervision
from distillens.training import (
    Steps,
    Store,
    TrainingRecipe,
    accelerator_for,
    accuracy,
    fit,
    is_sharded,
    predict,
    tracking,
)


@dataclass(frozen=True)
class Scene:
    """What all networks of a study share."""

    recipe: Recipe
    run: Run
    splits: Splits
    normalisation: Normalisation | None
    """None for text."""
    accelerator: Accelerator
    progress: Progress
    trust_code: bool
    tracked: Steps = field(default_factory=Steps)
    """Epochs of all networks that trackers have seen."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        run: Run,
        accelerator: Accelerator,
        trust_code: bool,
        progress: Progress = silent,
    ) -> Scene:
        """Load the data of a recipe, for the run that it makes."""
        splits = load_splits(recipe.data)
        # Tokens are names, not amounts.
        text = bool(splits.train.vocabularies)
        normalisation = None if text else Normalisation.of(splits.train)
        return cls(recipe, run, splits, normalisation, accelerator, progress, trust_code)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes; under a launcher there are several."""
        return self.accelerator.is_main_process

    @property
    def outputs(self) -> int:
        """Outputs of every network: one for two classes, else one a class."""
        classes = len(self.splits.train.classes)
        return 1 if classes == 2 else classes

    @property
    def top_k(self) -> int | None:
        """How many teacher logits are kept, where that is fewer than all."""
        asked = self.recipe.cache_top_k
        return asked if asked is not None and asked < self.outputs else None

    def build(self, model: ModelRecipe, seed: int) -> nn.Module:
        """Build a freshly initialised network for these examples."""
        train = self.splits.train
        return build_model(
            model,
            train.input_shape,
            self.outputs,
            seed=seed,
            vocabularies=train.vocabularies,
            trust_code=self.trust_code,
        )

    def load(self, model: ModelRecipe, files: NetworkFiles, epoch: int) -> nn.Module:
        """Build a network with the weights that it had after an epoch."""
        network = self.build(model, 0)
        load_weights(files.weights(epoch), network)
        return network.to(self.accelerator.device).eval()

    def batches(self, training: TrainingRecipe, seed: int) -> Batches:
        """Return the training batches in the order of a seed."""
        return Batches(
            self.splits.train,
            training.batch_size,
            normalisation=self.normalisation,
            augmentation=self.recipe.data.augmentation,
            seed=seed,
            device=self.accelerator.device,
            channels_last=True,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )


def train_network(
    scene: Scene,
    files: NetworkFiles,
    model: ModelRecipe,
    training: TrainingRecipe,
    supervision: Callable[[], Supervision],
    *,
    name: str,
    seed: int,
    title: str,
    start: int | None = None,
) -> Cell:
    """Train a network, or take up where it was left, and return its numbers.

    ``seed`` names the cell and sets the order of the examples; ``start`` sets the initial weights
    and what dropout draws, by default the same.
    """
    start = seed if start is None else start
    # Every process must see the same state of the folder before one of them changes it.
    scene.accelerator.wait_for_everyone()
    before = scene.tracked.take(training.epochs)
    if files.cell.is_file():
        return read_cell(files)
    network = scene.build(model, start).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if scene.accelerator.num_processes > 1 and scene.accelerator.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    torch.manual_seed(start)
    store: Store = files
    history = fit(
        network,
        supervision(),
        scene.batches(training, seed),
        training,
        store=store,
        # One for each network: an accelerator holds on to all that it ever prepared.
        accelerator=accelerator_for(scene.recipe.precision),
        hooks=[tracking(scene.accelerator, title, before)] if scene.recipe.trackers else [],
        progress=scene.progress,
        title=title,
    )
    if scene.main:
        # A sharded network runs on all processes or not at all: one process reads it whole.
        finished = (
            scene.load(model, files, training.epochs) if is_sharded(scene.accelerator) else network
        )
        evaluate(
            scene,
            files,
            finished,
            name=name,
            seed=seed,
            epochs=training.epochs,
            seconds=history.seconds,
            digest=history.digest or "",
        )
    scene.accelerator.wait_for_everyone()
    return read_cell(files)


def read_cell(files: NetworkFiles) -> Cell:
    """Return the numbers of a finished network."""
    return from_json(Cell, files.cell.read_bytes(), str(files.cell))


def weights_digest(files: NetworkFiles, epoch: int, expected: str | None = None) -> str:
    """Return the digest of a checkpoint that is about to teach.

    ``expected`` is what the network's numbers say, known for its last epoch.

    Raises
    ------
    CheckpointError
        The checkpoint is missing or another one.
    """
    path = files.weights(epoch)
    digest = digest_file(path) if path.is_file() else None
    if digest is None or expected not in (None, digest):
        raise CheckpointError(
            f"{path} is missing or not what {files.cell.name} beside it describes; "
            f"delete {files.folder} to train it again"
        )
    return digest


def evaluate(
    scene: Scene,
    files: NetworkFiles,
    network: nn.Module,
    *,
    name: str,
    seed: int,
    epochs: int,
    seconds: float,
    digest: str,
) -> None:
    """Write a finished network's logits and numbers."""
    logits = {}
    for split in ("train", "validation", "test"):
        examples = getattr(scene.splits, split)
        if examples is not None:
            logits[split] = predict(
                network, examples, scene.normalisation, device=scene.accelerator.device
            )
    write_cell(
        scene,
        files,
        logits,
        name=name,
        seed=seed,
        epochs=epochs,
        seconds=seconds,
        digest=digest,
        parameters=count_parameters(network),
    )


def write_cell(
    scene: Scene,
    files: NetworkFiles,
    logits: dict[str, np.ndarray],
    *,
    name: str,
    seed: int,
    epochs: int,
    seconds: float,
    digest: str,
    parameters: int,
) -> None:
    """Write logits and numbers; the numbers come last, since they say that a network is done."""
    splits = scene.splits
    shares = {
        split: accuracy(values, getattr(splits, split).labels.numpy())[0]
        for split, values in logits.items()
    }
    cell = Cell(
        supervision=name,
        seed=seed,
        parameters=parameters,
        epochs=epochs,
        seconds=seconds,
        train_accuracy=shares["train"],
        test_accuracy=shares["test"],
        test_count=len(splits.test),
        validation_accuracy=shares.get("validation"),
        weights_digest=digest,
    )
    write_arrays(files.logits, logits)
    write_atomically(files.cell, to_json(cell))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def network_logits(files: NetworkFiles) -> dict[str, np.ndarray]:
    """Return a finished network's logits by split."""
    advice = f"delete {files.cell} and run the recipe again with the same --out"
    arrays = read_arrays(files.logits, advice)
    if not {"train", "test"} <= set(arrays):
        raise RunError(f"{files.logits} lacks train or test; {advice}")
    return arrays
