"""What `test_processes.py` runs in two processes under FSDP: shards, interruption, divergence."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import blobs
from torch import nn
from torch.distributed.tensor import DTensor

from distillens.data import Batches
from distillens.errors import TrainingError
from distillens.runs.layout import NetworkFiles
from distillens.supervision import OneHot
from distillens.training import EpochRecord, TrainingRecipe, accelerator_for, fit
from distillens.training.sharding import not_finite

RECIPE = TrainingRecipe(epochs=4, batch_size=16, learning_rate=0.05, weight_decay=1e-3)


class KilledError(Exception):
    """Stands in for a kill between two epochs."""


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def plain_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def stop_after_two(record: EpochRecord, model: nn.Module) -> None:
    parameters = list(model.parameters())
    assert all(isinstance(p, DTensor) for p in parameters)
    held = sum(p.to_local().numel() for p in parameters if isinstance(p, DTensor))
    assert held < 0.7 * sum(p.numel() for p in parameters)
    if record.epoch == 2:
        raise KilledError


def main(folder: Path) -> None:
    accelerator = accelerator_for("float32")
    batches = Batches(blobs(), 16, rank=accelerator.process_index, processes=2)
    whole, killed, half = (NetworkFiles(folder / name) for name in ("whole", "killed", "half"))
    trained = network()
    expected = fit(trained, OneHot(), batches, RECIPE, store=whole)
    for build, files in ((network, killed), (plain_network, half)):
        with pytest.raises(KilledError):
            fit(build(), OneHot(), batches, RECIPE, store=files, hooks=[stop_after_two])
    resumed = fit(network(seed=3), OneHot(), batches, RECIPE, store=killed)
    assert resumed.digest == expected.digest
    assert [r.loss for r in resumed.records] == [r.loss for r in expected.records]
    with pytest.raises(TrainingError, match="compile does not go with FSDP"):
        fit(network(), OneHot(), batches, RECIPE.model_copy(update={"compile": True}))
    # A NaN in the share of one process is found by both: one that went on alone would wait for ever.
    if accelerator.process_index == 1:
        weight = trained.get_parameter("3.weight")
        assert isinstance(weight, DTensor)
        weight.to_local().detach().fill_(torch.nan)
    assert not_finite(accelerator, trained)[0] == "3.weight"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # Not the usual end: a thread of gloo may still hold a tensor of the last collective, and ends the
    # process with SIGABRT where it lets go of it while Python is shutting down.
    os._exit(0)
