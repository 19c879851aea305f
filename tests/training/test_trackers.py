"""Trackers log every epoch of every network once, and a missing one is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import command

import distillens
from distillens.errors import TrainingError
from distillens.models import save_weights
from distillens.runs.layout import Run
from distillens.study import parse_recipe
from distillens.training.trackers import tracked_name


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
    monkeypatch.setattr("distillens.study.run_recipe.start_trackers", lambda *arguments: None)
    monkeypatch.setattr(
        "accelerate.Accelerator.log", lambda self, values, step: Recorder().log(values, step)
    )
    distillens.run(tiny, tmp_path / "run")
    assert [step for step, _ in logged] == list(range(1, 4 * 3 + 1))
    assert {name.split("/")[0] for _, values in logged for name in values} == {
        "teacher mlp",
        "no KD seed 0",
        "offline τ 4 seed 0",
        "online τ 4 seed 0",
    }


SHORT = (
    "seeds=[0, 1]",
    "data.train_size=160",
    "data.test_size=100",
    "teacher.training.epochs=3",
    "student.training.epochs=2",
    "complexity=null",
    "deviation=false",
)


def histories(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Return the JSON lines of every network by the name that trackers know it under."""
    content = yaml.safe_load((folder / "recipe.yaml").read_text())
    run, recipe = Run(folder), parse_recipe(content)
    assert recipe.teacher.model is not None
    files = {f"teacher ({recipe.teacher.model.name})": run.teacher}
    for seed in recipe.seeds:
        for place, entry in enumerate(recipe.supervisions):
            files[f"{entry.title}, seed {seed}"] = run.student(place, entry.title, seed)
    return {
        name: [json.loads(line) for line in each.history.read_text().splitlines()]
        for name, each in files.items()
    }


def tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the (step, value) pairs of every curve, as TensorBoard itself reads them."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    (events,) = {path.parent for path in (folder / "trackers").rglob("events.*")}
    found = pytest.importorskip(module).EventAccumulator(str(events), {"scalars": 0})
    found.Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}


def agree(
    curves: dict[str, list[tuple[int, float]]], networks: dict[str, list[dict[str, float]]]
) -> None:
    """Check every curve against the JSON lines: each epoch once, at a step that goes on."""
    step = 0
    assert len(curves) == 4 * len(networks)
    for name, epochs in networks.items():
        steps = list(range(step + 1, step + len(epochs) + 1))
        for what in ("loss", "accuracy", "learning rate", "epoch"):
            curve = curves[f"{tracked_name(name)}/{what}"]
            assert [at for at, _ in curve] == steps
            # Trackers may keep float32.
            wanted = [epoch[what.replace(" ", "_")] for epoch in epochs]
            assert [value for _, value in curve] == pytest.approx(wanted, rel=1e-6)
        step = steps[-1]


def test_tensorboard_shows_the_history_of_every_network(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert (
        command("run", "digits", "trackers=[tensorboard]", *SHORT, "--out", tmp_path / "run") == 0
    )
    agree(tensorboard(tmp_path / "run"), histories(tmp_path / "run"))


def test_a_run_taken_up_again_goes_on_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the teacher and within a student: every curve is that of a run in one go."""
    pytest.importorskip("tensorboard")
    arguments = ("run", "digits", "trackers=[tensorboard]", *SHORT, "--out", tmp_path / "run")
    for epochs in (2, 3):
        with monkeypatch.context() as patch:
            patch.setattr("distillens.training.loop.save_weights", stopping_after(epochs))
            with pytest.raises(KeyboardInterrupt):
                distillens.run(
                    "digits", tmp_path / "run", overrides=list(map(str, arguments[2:-2]))
                )
    assert command(*arguments) == 0
    agree(tensorboard(tmp_path / "run"), histories(tmp_path / "run"))


def stopping_after(epochs: int) -> Any:
    """Return a `save_weights` that stops the program at the checkpoint after so many epochs."""
    left = epochs

    def save(path: Path, model: torch.nn.Module) -> str:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= path.stem != "epoch-0000"
        return save_weights(path, model)

    return save


def test_a_tracker_that_cannot_start_is_one_line(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("no server\nat this address")

    tiny["trackers"] = ["wandb"]
    monkeypatch.setattr("distillens.training.trackers.find_spec", lambda name: True)
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", refuse)
    with pytest.raises(TrainingError, match=r"trackers wandb cannot start: no server at this"):
        distillens.run(tiny, tmp_path / "run")


@pytest.mark.parametrize("name", ["teacher (a/b)", "α=0.9, τ=4", "[/x] <b> 'y' #1", "a:b_c.d-e"])
def test_curves_have_names_that_mlflow_takes(name: str) -> None:
    assert re.fullmatch(r"[\w.\- :]+", tracked_name(name))
    assert re.findall(r"\w+", tracked_name(name)) == re.findall(r"\w+", name)


def test_a_tracker_that_fails_on_the_way_leaves_a_run_that_goes_on(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the server went away")

    tiny["trackers"], tiny["complexity"] = ["wandb"], None
    monkeypatch.setattr("distillens.study.run_recipe.start_trackers", lambda *arguments: None)
    monkeypatch.setattr("accelerate.Accelerator.log", refuse)
    with pytest.raises(TrainingError, match=r"cannot log epoch 1 of teacher \(mlp\): the server"):
        distillens.run(tiny, tmp_path / "run")
    tiny["trackers"] = []
    assert len(distillens.run(tiny, tmp_path / "run").cells) == 4
