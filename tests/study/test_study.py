"""The main job, end to end on embedded data: what a user types and what comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cases import digests
from conftest import curves_of_run, refused

import distillens
from distillens.errors import CheckpointError, DataError, DistillensError, ModelError, RunError
from distillens.models import ModelRecipe, build_model, save_weights
from distillens.runs.open import OpenRun


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    content: dict[str, Any] = {
        "name": "small",
        "seeds": [0, 1],
        "data": {
            "source": "digits",
            "train_size": 150,
            "test_size": 120,
            "validation_size": 50,
            "label_noise": 0.1,
            "augmentation": {"crop": 1},
        },
        "teacher": {
            "model": {"name": "resnet8"},
            "training": {"epochs": 3, "batch_size": 32, "learning_rate": 0.1},
        },
        "student": {
            "model": {"name": "mlp", "hidden": [8]},
            "training": {"epochs": 3, "batch_size": 32, "learning_rate": 0.05},
        },
        "supervisions": [
            {"kind": "one-hot"},
            {"kind": "offline", "temperature": 4, "alpha": 0.9},
            {"kind": "online", "temperature": 4},
        ],
        "complexity": {"examples": 30, "epochs": [0, 3], "random_draws": 3},
    }
    folder = tmp_path_factory.mktemp("study") / "run"
    distillens.run(content, folder)
    return folder, content


def test_results_hold_every_cell_and_curve(finished: tuple[Path, dict]) -> None:
    folder, _ = finished
    result = OpenRun.open(folder, unfinished=True).result
    assert [row.name for row in result.rows] == [
        "teacher",
        "no KD",
        "offline τ=4 α=0.9",
        "online τ=4",
    ]
    assert len(result.cells) == 7
    assert result.changed_labels == 15
    points = curves_of_run(folder).points
    assert [point.targets for point in points[:4]] == [
        "labels",
        "random labels",
        "final teacher",
        "online teacher",
    ]
    assert [point.teacher_epoch for point in points if point.targets == "online teacher"] == [1, 3]
    # After its last epoch the student follows the final teacher: the two target sets are one.
    last = {point.targets: point.value for point in points[4:]}
    assert last["online teacher"].plain == pytest.approx(last["final teacher"].plain, rel=1e-5)
    data = json.loads((folder / "data.json").read_text())
    assert len(data["changed_labels"]) == 15


def test_the_same_recipe_gives_the_same_weights_elsewhere(
    finished: tuple[Path, dict], tmp_path: Path
) -> None:
    folder, content = finished
    distillens.run({**content, "complexity": None, "deviation": False}, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(folder)


def test_a_finished_run_is_not_trained_again(finished: tuple[Path, dict]) -> None:
    folder, content = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    distillens.run(content, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_another_recipe_is_refused_in_the_same_folder(finished: tuple[Path, dict]) -> None:
    folder, content = finished
    other = json.loads(json.dumps(content))
    other["student"]["training"]["epochs"] = 2
    other["complexity"] = None
    results = (folder / "results.json").read_bytes()
    with pytest.raises(
        RunError, match=r"made by another recipe: student\.training\.epochs is 3 there"
    ):
        distillens.run(other, folder)
    assert (folder / "results.json").read_bytes() == results


def test_table_and_report_need_no_torch(finished: tuple[Path, dict]) -> None:
    folder, _ = finished
    code = (
        "import sys; from distillens.cli.main import main\n"
        "try: main(['report', sys.argv[1]])\n"
        "except SystemExit as e: assert not e.code\n"
        "try: main(['table', sys.argv[1]])\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "online τ=4" in done.stdout
    assert (folder / "report.html").stat().st_size > 900_000


def test_importing_distillens_is_light() -> None:
    code = "import sys, distillens; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(
    finished: tuple[Path, dict], tmp_path: Path
) -> None:
    folder, content = finished
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**content, "complexity": None, "deviation": False}))
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "distillens", "run", str(recipe), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for wanted in ("teacher/epoch-0001*", "students/00*/*/epoch-0002*", "students/02*/*/state.pt"):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        while process.poll() is None and not list(out.glob(wanted)):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(folder)


def test_a_given_teacher_checkpoint_teaches(tiny: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_weights(path, build_model(ModelRecipe(name="mlp"), (1, 8, 8), 10, seed=3))
    tiny["teacher"] = {"model": {"name": "mlp"}, "checkpoint": str(path), "allow_weak": True}
    del tiny["supervisions"][2]
    result = distillens.run(tiny, tmp_path / "run")
    assert {point.targets for point in curves_of_run(tmp_path / "run").points} == {
        "labels",
        "random labels",
        "final teacher",
    }
    assert any("no trajectory" in note for note in result.notes)
    save_weights(path, build_model(ModelRecipe(name="mlp"), (1, 8, 8), 10, seed=4))
    with pytest.raises(RunError, match=r"is not the teacher that .* was made with"):
        distillens.run(tiny, tmp_path / "run")


def test_a_teacher_known_by_its_logits_is_the_teacher_itself(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    from distillens.data import DataRecipe, Normalisation, load_splits
    from distillens.training import predict

    checkpoint = tmp_path / "teacher.safetensors"
    teacher = build_model(ModelRecipe(name="mlp"), (1, 8, 8), 10, seed=3)
    save_weights(checkpoint, teacher)
    used = load_splits(DataRecipe.model_validate(tiny["data"]))
    whole = load_splits(DataRecipe(test_size=1))
    logits = np.full((1797, 10), 7.0, np.float32)
    logits[whole.train.indices] = predict(teacher, whole.train, Normalisation.of(used.train))
    logits[whole.test.indices] = predict(teacher, whole.test, Normalisation.of(used.train))
    np.savez(tmp_path / "logits.npz", train=logits, test=logits)
    del tiny["supervisions"][2]
    tiny["complexity"] = None
    made = []
    for name, given in (
        ("weights", {"model": {"name": "mlp"}, "checkpoint": str(checkpoint)}),
        ("logits", {"logits": str(tmp_path / "logits.npz")}),
    ):
        tiny["teacher"] = {**given, "allow_weak": True}
        made.append(distillens.run(tiny, tmp_path / name))
    for one, other in zip(made[0].rows, made[1].rows, strict=True):
        assert one.accuracy.value == pytest.approx(other.accuracy.value, abs=0.011)
    np.savez(tmp_path / "logits.npz", train=logits[:, :7], test=logits)
    with pytest.raises(ModelError, match=r"has shape \(1797, 7\); the task needs \(N, 10\)"):
        distillens.run(tiny, tmp_path / "other")
    np.savez(tmp_path / "logits.npz", train=logits[:50], test=logits)
    with pytest.raises(DataError, match="has 50 rows"):
        distillens.run(tiny, tmp_path / "third")


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
def test_two_classes_train_one_output(tiny: dict[str, Any], tmp_path: Path, loss: str) -> None:
    tiny["data"]["groups"] = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    tiny["loss"] = loss
    result = distillens.run(tiny, tmp_path / "run")
    curves = curves_of_run(tmp_path / "run")
    assert curves.form == "binary"
    assert curves.coding == "one output in [−1, 1]"
    assert all((point.gradient is None) == (loss == "squared-error") for point in curves.points)
    assert result.rows[0].accuracy.value > 0.6
    labels = [point.value for point in curves.points if point.targets == "labels"]
    assert all(value.target_size == pytest.approx(1) for value in labels)


def test_bad_input_is_one_line_and_status_2(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny))
    out = ("--out", tmp_path / "run")
    assert "did you mean 'seeds'" in refused(capsys, "run", recipe, "sedes=1", *out)
    assert "greater than 0" in refused(capsys, "run", recipe, "supervisions.1.temperature=0", *out)
    assert "alpha" in refused(capsys, "run", recipe, "supervisions.1.alpha=2", *out)
    missing = refused(capsys, "run", recipe, "data.source=idx", "data.path=/nowhere", *out)
    assert "no folder /nowhere" in missing
    diverged = refused(
        capsys, "run", recipe, "student.training.learning_rate=1e30", "--out", tmp_path / "nan"
    )
    assert "learning rate 1e+30" in diverged
    assert (tmp_path / "nan" / "students/00-no-kd/seed-0/epoch-0000.safetensors").is_file()
    assert "not finished" in refused(capsys, "table", tmp_path / "nan")
    assert "no run folder" in refused(capsys, "report", tmp_path)
    assert "made by another recipe" in refused(
        capsys, "run", recipe, "seeds=[5]", "--out", tmp_path / "nan"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    assert "no run folder" in refused(capsys, "run", recipe, "--out", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_a_teacher_that_does_not_fit_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    del tiny["supervisions"][2]
    for shape, classes, message in (((1, 8, 8), 7, "another class count"), ((5,), 10, "shape")):
        path = tmp_path / f"{classes}.safetensors"
        save_weights(path, build_model(ModelRecipe(name="mlp"), shape, classes, seed=0))
        tiny["teacher"] = {"model": {"name": "mlp"}, "checkpoint": str(path)}
        with pytest.raises(CheckpointError, match=message):
            distillens.run(tiny, tmp_path / f"run-{classes}")
    torch.save(["no", "state"], tmp_path / "a.pt")
    tiny["teacher"]["checkpoint"] = str(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no state dict"):
        distillens.run(tiny, tmp_path / "run-a")


def test_somebody_elses_run_cannot_point_outside_itself(
    finished: tuple[Path, dict], tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "copied"
    shutil.copytree(finished[0], folder)
    (record,) = folder.glob("analyses/confidence-*/record.json")
    content = json.loads(record.read_text())
    np.savez(tmp_path / "secret.npz", x=np.zeros(1), y=np.zeros(1), who=np.zeros(1))
    content["result"]["students"][0]["points"]["test"] = "../../../secret"
    record.write_text(json.dumps(content))
    with pytest.raises(RunError, match="lies outside the record"):
        distillens.write_report(folder)


def test_two_processes_do_not_share_a_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    from distillens.runs.folder import locked, open_run
    from distillens.study import parse_recipe

    run = open_run(tmp_path / "run", parse_recipe(tiny).model_dump(mode="json"))
    with locked(run), pytest.raises(DistillensError, match="another process"):
        distillens.run(tiny, tmp_path / "run")
