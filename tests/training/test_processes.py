"""Two processes give what one gives: the same recipe under a launcher, without BatchNorm or dropout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from conftest import blobs
from safetensors.torch import load_file
from sharded_training import RECIPE, plain_network

from distillens.data import Batches
from distillens.errors import TrainingError
from distillens.runs.layout import NetworkFiles
from distillens.runs.read import read_arrays
from distillens.supervision import OneHot
from distillens.training import accelerator_for, fit, read_history
from distillens.training.processes import check_sharding

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    # Several shards a network, as large ones have.
    "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
    "FSDP_MIN_NUM_PARAMS": "100",
}


def launch(processes: int, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return subprocess.run(
        [*launcher, *rendezvous, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
            # Scripts in this folder import the modules of the folder above.
            "PYTHONPATH": os.pathsep.join(map(str, [*sys.path, Path(__file__).parents[1]])),
            **environment,
        },
    )


def run(processes: int, recipe: Path, out: Path, **environment: str) -> None:
    command = ["-m", "distillens", "run", str(recipe), "--out", str(out)]
    done = launch(processes, *command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_train_as_one_does(
    tiny: dict[str, Any], tmp_path: Path, sharded: bool
) -> None:
    # 118 examples in batches of 31: shares of unequal size, and a last batch that is odd.
    tiny["data"]["train_size"] = 118
    for part in ("teacher", "student"):
        tiny[part]["training"]["batch_size"] = 31
    if sharded:
        # Convolutions are laid out with channels last, which shards are not.
        tiny["teacher"]["model"] = {"name": "lenet5"}
        tiny["teacher"]["training"]["learning_rate"] = 0.2
    tiny["student"]["training"]["accumulate"] = 2
    tiny["supervisions"].append({"kind": "co-trained", "temperature": 2})
    tiny["complexity"] = None
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny))
    run(1, recipe, tmp_path / "1")
    run(2, recipe, tmp_path / "2", **(FSDP if sharded else {}))
    cells = sorted(path.parent for path in (tmp_path / "1").rglob("cell.json"))
    assert len(cells) == 5
    for folder in cells:
        one = NetworkFiles(folder)
        two = NetworkFiles(tmp_path / "2" / folder.relative_to(tmp_path / "1"))
        for epoch, (a, b) in enumerate(
            zip(read_history(one.history, 3), read_history(two.history, 3), strict=True), 1
        ):
            assert a.loss == pytest.approx(b.loss, rel=1e-4), (folder.name, epoch)
        weights, others = load_file(one.weights(3)), load_file(two.weights(3))
        assert list(weights) == list(others)
        for name, tensor in weights.items():
            torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)
        mine, theirs = read_arrays(one.logits)["test"], read_arrays(two.logits)["test"]
        np.testing.assert_allclose(theirs, mine, rtol=1e-3, atol=1e-4)
    results = json.loads((tmp_path / "2" / "results.json").read_text())
    assert len(results["cells"]) == 5


def test_a_sharded_training_is_sharded_and_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    done = launch(2, str(Path(__file__).with_name("sharded_training.py")), str(tmp_path), **FSDP)
    assert done.returncode == 0, done.stderr[-3000:]
    # What two processes began in shards, one process ends without.
    model, whole = plain_network(seed=3), plain_network()
    files = NetworkFiles(tmp_path / "half")
    assert files.epochs() == [0, 1, 2]
    history = fit(model, OneHot(), Batches(blobs(), 16), RECIPE, store=files)
    expected = fit(whole, OneHot(), Batches(blobs(), 16), RECIPE)
    for ours, theirs in zip(history.records, expected.records, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "tensor or context parallelism"),
        ({"ACCELERATE_USE_FSDP": "true"}, "no part of a group"),
    ],
)
def test_what_checkpoints_do_not_support_is_refused(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=words):
        accelerator_for("float32")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fsdp_version": 1}, "--fsdp_version 2"),
        ({"activation_checkpointing": True}, "fsdp_activation_checkpointing"),
        ({"cpu_offload": True}, "fsdp_offload_params"),
        ({"ignored_modules": "head"}, "fsdp_ignored_modules"),
    ],
)
def test_sharding_that_would_train_otherwise_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **changes})
    with pytest.raises(TrainingError, match=words):
        check_sharding(plugin)


def test_processes_that_know_nothing_of_each_other_are_refused(tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("needs a machine without a GPU")
    code = tmp_path / "ask.py"
    code.write_text("from distillens.training import accelerator_for\naccelerator_for('float32')\n")
    done = launch(2, str(code), ACCELERATE_USE_CPU="false")
    assert done.returncode != 0
    assert "started 2 processes, but this machine has no GPU" in done.stderr
