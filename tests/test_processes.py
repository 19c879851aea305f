"""Two processes give what one gives: the same recipe under a launcher, without BatchNorm or dropout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from distillens.runs import NetworkFiles
from distillens.training import read_history


def launch(processes: int, recipe: Path, out: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run(
        [*launcher, *rendezvous, "-m", "distillens", "run", str(recipe), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_train_as_one_does(tiny: dict[str, Any], tmp_path: Path) -> None:
    # 118 examples in batches of 31: shares of unequal size, and a last batch that is odd.
    tiny["data"]["train_size"] = 118
    for part in ("teacher", "student"):
        tiny[part]["training"]["batch_size"] = 31
    tiny["student"]["training"]["accumulate"] = 2
    tiny["supervisions"].append({"kind": "co-trained", "temperature": 2})
    tiny["complexity"] = None
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny))
    for processes in (1, 2):
        launch(processes, recipe, tmp_path / str(processes))
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
        for name, tensor in weights.items():
            torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)
    results = json.loads((tmp_path / "2" / "results.json").read_text())
    assert len(results["cells"]) == 5
