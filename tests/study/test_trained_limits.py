"""Limits in which a taught student is the student of the labels, checked on trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import distillens
from distillens.models import load_state
from distillens.runs.layout import Run

HALVES = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
TOLERANCE = 1e-6
"""Of weights of order 1 after 12 steps in float32; the losses differ by rounding alone."""


def trained(recipe: dict[str, Any], folder: Path) -> list[dict[str, Tensor]]:
    """Carry out a recipe; return the last weights of each supervision's student."""
    distillens.run({**recipe, "complexity": None, "deviation": False}, folder)
    run = Run(folder)
    names = [entry["name"] for entry in recipe["supervisions"]]
    files = [run.student(place, name, 0) for place, name in enumerate(names)]
    return [load_state(each.weights(each.epochs()[-1])) for each in files]


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
@pytest.mark.parametrize("groups", [None, HALVES], ids=["ten classes", "one output"])
def test_alpha_0_trains_the_weights_of_the_labels_and_asks_no_teacher(
    tiny: dict[str, Any], tmp_path: Path, loss: str, groups: list | None
) -> None:
    tiny["loss"], tiny["data"]["groups"] = loss, groups
    tiny["supervisions"] = [
        {"name": "labels", "kind": "one-hot"},
        {"name": "offline", "kind": "offline", "temperature": 4, "alpha": 0},
        {"name": "online", "kind": "online", "temperature": 4, "alpha": 0},
        {"name": "a little", "kind": "offline", "temperature": 4, "alpha": 0.01},
    ]
    labels, offline, online, a_little = trained(tiny, tmp_path / "run")
    # Bit for bit: the teacher's part is left out, not multiplied by 0.
    for other in (offline, online):
        assert all(torch.equal(labels[name], other[name]) for name in labels)
    assert apart(labels, a_little) > 10 * TOLERANCE


def test_a_teacher_of_weight_0_computes_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["supervisions"] = [{"name": "none", "kind": "offline", "temperature": 4, "alpha": 0}]
    trained(tiny, tmp_path / "run")
    assert not list(Run(tmp_path / "run").cache.glob("*"))
    tiny["supervisions"][0]["alpha"] = 0.5
    trained(tiny, tmp_path / "other")
    assert list(Run(tmp_path / "other").cache.glob("*.npy"))


@pytest.mark.parametrize("groups", [None, HALVES], ids=["ten classes", "one output"])
def test_a_teacher_ever_surer_of_the_labels_trains_the_weights_of_the_labels(
    tiny: dict[str, Any], tmp_path: Path, groups: list | None
) -> None:
    digits: Any = load_digits()
    target = np.asarray(digits["target"])
    sure = np.eye(10)[target] if groups is None else np.where(target < 5, -1.0, 1.0)[:, None]
    tiny["data"]["groups"] = groups
    tiny["supervisions"] = [
        {"name": "labels", "kind": "one-hot"},
        {"name": "taught", "kind": "offline", "temperature": 1},
    ]
    distances = []
    for scale in (2, 4, 8, 16, 100):
        np.savez(tmp_path / f"{scale}.npz", train=scale * sure, test=scale * sure)
        tiny["teacher"] = {"logits": str(tmp_path / f"{scale}.npz")}
        distances.append(apart(*trained(tiny, tmp_path / f"run-{scale}")))
    assert distances[0] > 1000 * TOLERANCE
    assert distances[:4] == sorted(distances[:4], reverse=True)
    assert distances[-1] < TOLERANCE
