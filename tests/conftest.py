"""Small examples that the tests share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from distillens.analyses.measure import measure_run
from distillens.cli.main import main
from distillens.data import Examples, examples_from_arrays
from distillens.results.complexity import ComplexityCurves
from distillens.results.confidence import Confidence, Kernels, OverTraining
from distillens.runs.open import OpenRun

T = TypeVar("T")

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


def curves_of_run(folder: Path) -> ComplexityCurves:
    """Return the complexity curves that a run measured last."""
    return OpenRun.open(folder).records("complexity")[-1].result(ComplexityCurves)


@dataclass(frozen=True)
class Measurements:
    """The analyses of the confidence of a run's students; those that were left out are None."""

    confidence: Confidence
    over_training: OverTraining | None
    kernels: Kernels | None


def measure_all(
    folder: Path,
    *,
    student: str | None = None,
    seed: int | None = None,
    other_teacher_run: Path | None = None,
    over_training: int = 0,
    kernel_examples: int = 0,
    resamples: int = 1000,
) -> Measurements:
    """Measure a finished run; 0 examples leave an analysis out."""

    def of(analysis: str, kind: type[T], settings: dict[str, Any]) -> T:
        record = measure_run(folder, analysis, settings, supervision=student, seed=seed)
        return record.result(kind)

    confidence = {"resamples": resamples, "other_teacher_run": other_teacher_run}
    checkpoints = {"examples": over_training, "resamples": resamples}
    return Measurements(
        of("confidence", Confidence, confidence),
        of("over-training", OverTraining, checkpoints) if over_training else None,
        of("kernels", Kernels, {"examples": kernel_examples}) if kernel_examples else None,
    )


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
