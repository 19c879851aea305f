"""Trackers log every epoch of every network once, and a missing one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import distillens
from distillens.errors import TrainingError


def test_a_tracker_that_is_not_installed_is_named(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillens.training.trackers.find_spec", lambda name: None)
    tiny["trackers"] = ["mlflow"]
    with pytest.raises(TrainingError, match="'mlflow' is not installed; pip install"):
        distillens.run(tiny, tmp_path / "run")


def test_every_epoch_is_logged_at_a_step_of_its_own(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, dict[str, float]]] = []

    class Recorder:
        def log(self, values: dict[str, float], step: int) -> None:
            logged.append((step, values))

    tiny["trackers"], tiny["complexity"] = ["tensorboard"], None
    monkeypatch.setattr("distillens.study.carry_out.start_trackers", lambda *arguments: None)
    monkeypatch.setattr(
        "accelerate.Accelerator.log", lambda self, values, step: Recorder().log(values, step)
    )
    distillens.run(tiny, tmp_path / "run")
    assert [step for step, _ in logged] == list(range(1, 4 * 3 + 1))
    assert {name.split("/")[0] for _, values in logged for name in values} == {
        "teacher (mlp)",
        "no KD, seed 0",
        "offline τ=4, seed 0",
        "online τ=4, seed 0",
    }
