"""With ``--json`` every command prints JSON on standard output and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from conftest import command

import distillens
from distillens.cli.main import app
from distillens.models import ModelRecipe, build_model, save_weights

TRAINING = {"epochs": 1, "batch_size": 32, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run, and arrays and weights of a user."""
    folder = tmp_path_factory.mktemp("json")
    network = {"model": {"name": "mlp", "hidden": [8]}, "training": TRAINING}
    content = {
        "name": "json",
        "data": {"source": "digits", "train_size": 90, "test_size": 60},
        "teacher": network,
        "student": network,
        "supervisions": [{"kind": "one-hot"}, {"kind": "offline", "temperature": 4}],
        "complexity": None,
        "deviation": False,
    }
    distillens.run(content, folder / "run")
    (folder / "recipe.json").write_text(json.dumps(content))
    generator = np.random.default_rng(0)
    for name in ("t", "s", "x"):
        np.save(folder / f"{name}.npy", generator.normal(size=(40, 3)).astype(np.float32))
    np.save(folder / "y.npy", np.arange(40) % 3)
    mlp = ModelRecipe.model_validate({"name": "mlp", "hidden": [8]})
    save_weights(folder / "w.safetensors", build_model(mlp, (3,), 3, seed=0))
    return folder


COMMANDS: dict[str, list[str]] = {
    "run": ["{}/recipe.json", "--plan", "--out", "{}/planned"],
    "check": ["{}/recipe.json"],
    "measure": ["{}/run", "confidence", "resamples=100"],
    "runs": ["{}"],
    "compare": ["{}/run", "--resamples", "100"],
    "audit": ["--teacher", "{}/t.npy", "--student", "{}/s.npy", "--labels", "{}/y.npy"],
    "complexity": [
        "--model", "{{name: mlp, hidden: [8]}}", "--weights", "{}/w.safetensors",
        "--inputs", "{}/x.npy", "--targets", "labels={}/y.npy", "--classes", "3",
    ],
    "eigenspace": [
        "{}/run", "--pairs", "2", "--top", "2", "--bottom", "4-6", "--out", "{}/eigenspace",
    ],
    "theory": ["bias", "--out", "{}/theory"],
}  # fmt: skip
"""Arguments of every command that has ``--json``; {} stands for the folder."""


def with_json() -> set[str]:
    commands: Any = typer.main.get_command(app)
    return {
        name
        for name, one in commands.commands.items()
        if any("--json" in option.opts for option in one.params)
    }


def test_every_command_with_json_is_tested() -> None:
    assert set(COMMANDS) == with_json()


@pytest.mark.parametrize("name", COMMANDS)
def test_standard_output_is_json_alone(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [each.format(folder) for each in COMMANDS[name]]
    assert command(name, *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)
