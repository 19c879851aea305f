"""The README's Python runs as it stands, and its YAML is a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from distillens.study import parse_recipe
from distillens.supervision import RecordedTeacher

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def network() -> nn.Module:
    return nn.Linear(5, 3)


def test_python_blocks_run() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 5, generator=generator)
    labels = torch.arange(24) % 3
    random = np.random.default_rng(0)
    names: dict[str, Any] = {
        "MyStudent": network,
        "MyTeacher": network,
        "my_loader": torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(inputs, labels), batch_size=8
        ),
        # As few examples as the small network's kernel can tell apart.
        "inputs": inputs[:4],
        "targets_NC": random.normal(size=(4, 3)),
        "predictions_NC": random.normal(size=(4, 3)),
        "teacher_logits": random.normal(size=(24, 3)),
        "student_logits": random.normal(size=(24, 3)),
        "labels": labels.numpy(),
        "logits_NC": random.normal(size=(24, 3)),
        "saved": [(10, lambda: RecordedTeacher(np.zeros((24, 3))))],
        "student_steps": 10,
    }
    found = blocks("python")
    assert len(found) >= 2
    for block in found:
        exec(compile(block, "README.md", "exec"), names)  # the README is ours
    assert names["value"].residual < 1e-8
    assert names["audit"].splits[0].examples == 24


def test_yaml_blocks_are_recipes() -> None:
    found = blocks("yaml")
    assert found
    for block in found:
        assert parse_recipe(yaml.safe_load(block)).name == "mine"


def test_the_kernel_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "kernel.md").read_text()
    generator = torch.Generator().manual_seed(0)
    names: dict[str, Any] = {
        "model": nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)),
        "x": torch.randn(4, 5, generator=generator),
        "y": torch.randn(2, 5, generator=generator),
        "v": torch.randn(4, generator=generator),
    }
    names |= {
        "student": nn.Linear(5, 4),
        "images": names["x"],
        "labels": torch.tensor([0, 3, 1, 3]),
        "logits": torch.randn(4, 4, generator=generator),
    }
    found = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(found) == 2
    for block in found:
        exec(compile("import distillens\n" + block, "docs/kernel.md", "exec"), names)  # ours
    assert [each.determined for each in names["found"].targets] == [True, True]
    torch.testing.assert_close(names["product"](names["v"]), names["gram"].values @ names["v"])
