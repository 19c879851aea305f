"""Small examples that the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillens.cli.main import main
from distillens.data import Examples, examples_from_arrays

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, which development and CI have beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data sets in {SHARED}")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def blobs(count: int = 48, classes: int = 3, features: int = 5, seed: int = 0) -> Examples:
    """Gaussian clouds, one a class: something that a small network learns."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(99).normal(size=(classes, features)) * 2
    inputs = centres[labels] + generator.normal(size=(count, features))
    return examples_from_arrays(inputs.astype(np.float32), labels)


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail with status 2 and one line; return the line."""
    assert command(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("distillens: ")
    return lines[0]


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A recipe that takes about a second."""
    return {
        "name": "tiny",
        "seeds": [0],
        "data": {"source": "digits", "train_size": 120, "test_size": 100},
        "teacher": {
            "model": {"name": "mlp", "hidden": [32]},
            "training": {"epochs": 3, "batch_size": 32, "learning_rate": 0.05},
        },
        "student": {
            "model": {"name": "mlp", "hidden": [4]},
            "training": {"epochs": 3, "batch_size": 32, "learning_rate": 0.05},
        },
        "supervisions": [
            {"kind": "one-hot"},
            {"kind": "offline", "temperature": 4},
            {"kind": "online", "temperature": 4},
        ],
        "complexity": {"examples": 24, "epochs": [0, 3], "random_draws": 2},
    }


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
