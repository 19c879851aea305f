"""Export: what is shipped says what the run's network said, and no test label chose it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import distillens
from distillens.cli.main import main
from distillens.data import load_splits
from distillens.errors import CheckpointError, ModelError, RecipeError, RunError
from distillens.export import programs
from distillens.export.choosing import Choice
from distillens.export.choosing import choose as choose_student
from distillens.export.export import export_run, load_export
from distillens.export.programs import read_torch
from distillens.results.base import from_json
from distillens.results.export import Export
from distillens.results.training import StudyResult
from distillens.runs.open import OpenRun
from distillens.study import parse_recipe

TRAINING = {"epochs": 2, "batch_size": 32, "learning_rate": 0.05}


def recipe(**more: Any) -> dict[str, Any]:
    return {
        "name": "to ship",
        "data": {"source": "digits", "train_size": 150, "test_size": 60, "validation_size": 40},
        "teacher": {"model": {"name": "mlp", "hidden": [16]}, "training": TRAINING},
        "student": {"model": {"name": "resnet8"}, "training": TRAINING},
        "supervisions": [{"kind": "one-hot"}, {"kind": "offline", "temperature": 4}],
        "complexity": None,
        "deviation": False,
        **more,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    distillens.run(recipe(seeds=[0, 1]), folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def program(folder: Path, kind: str) -> Any:
    """Open a shipped file the way that someone without distillens does."""
    if kind == "torch":
        return torch.export.load(folder / "model.pt2").module()
    if kind == "safetensors":
        return load_export(folder)[0]
    session = pytest.importorskip("onnxruntime").InferenceSession(folder / "model.onnx")
    return lambda inputs: torch.from_numpy(session.run(["logits"], {"inputs": inputs.numpy()})[0])


@pytest.mark.parametrize("kind", ["safetensors", "torch", "onnx"])
def test_what_is_shipped_takes_pixels_and_gives_the_stored_logits(
    finished: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    card = export_run(finished, student="no KD", seed=1, formats=[kind], out=tmp_path)
    shipped = program(tmp_path, kind)
    # The test examples, which the export itself never looked at.
    examples = load_splits(parse_recipe(recipe()).data).test
    pixels = examples.inputs.float() / 255
    with np.load(finished / "students" / "00-no-kd" / "seed-1" / "logits.npz") as stored:
        expected = torch.from_numpy(stored["test"])
    for count in (1, 3, 60):
        torch.testing.assert_close(shipped(pixels[:count]), expected[:count], atol=1e-4, rtol=1e-4)
    assert [file.format for file in card.files] == [kind]
    assert card.files[0].difference <= 1e-5
    assert card.files[0].stored_difference is not None
    assert card.files[0].stored_difference <= 1e-4
    assert card.notes == ()


def test_the_card_says_how_to_use_the_files(finished: Path, tmp_path: Path) -> None:
    done = export_run(finished, student="offline-t4", out=tmp_path)
    card = from_json(Export, (tmp_path / "model.json").read_bytes(), "the card")
    assert card == done
    assert card.student == "offline τ=4"
    assert card.model == {"name": "resnet8"}
    assert card.input_shape == (1, 8, 8)
    assert card.inputs == "float32 in [0, 1]: bytes divided by 255"
    assert card.classes == tuple("0123456789")
    assert card.outputs == "(N, classes) logits: the softmax gives probabilities"
    pixels = load_splits(parse_recipe(recipe()).data).train.inputs.double() / 255
    assert card.mean == pytest.approx([float(pixels.mean())], abs=1e-6)
    assert card.deviation == pytest.approx([float(pixels.std(correction=0))], abs=1e-6)
    network, _ = load_export(tmp_path)
    assert not network.training
    for file in card.files:
        assert (tmp_path / file.name).stat().st_size == file.size


@pytest.mark.parametrize(
    ("loss", "groups", "outputs"),
    [
        ("cross-entropy", [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], "(N, 1) logits: the sigmoid is the"),
        ("squared-error", [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], "(N, 1) estimates of 2p - 1, p the"),
        ("squared-error", None, "(N, classes) estimates of the probabilities"),
    ],
)
def test_features_and_other_outputs_are_shipped_too(
    tmp_path: Path, loss: str, groups: list | None, outputs: str
) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 10
    inputs = (generator.normal(size=(80, 5)) * 7 + labels[:, None]).astype(np.float32)
    np.savez(tmp_path / "a.npz", inputs=inputs, labels=labels)
    content = recipe(
        loss=loss,
        data={"source": "npz", "path": str(tmp_path / "a.npz"), "test_size": 20, "groups": groups},
        student={"model": {"name": "mlp"}, "training": TRAINING},
        supervisions=[{"kind": "one-hot"}],
    )
    distillens.run(content, tmp_path / "run")
    card = export_run(tmp_path / "run", out=tmp_path / "out")
    assert card.chosen_by == "the run's only supervision"
    assert card.outputs.startswith(outputs)
    assert card.inputs == "float32 as in the data"
    assert len(card.mean) == 5
    test = load_splits(parse_recipe(content).data).test
    with np.load(tmp_path / "run/students/00-no-kd/seed-0/logits.npz") as stored:
        expected = torch.from_numpy(stored["test"])
    torch.testing.assert_close(program(tmp_path / "out", "torch")(test.inputs), expected)


def with_cells(result: StudyResult, accuracies: dict[tuple[str, int], tuple]) -> StudyResult:
    """Give the cells other (validation, test) accuracies."""
    cells = [
        replace(cell, validation_accuracy=pair[0], test_accuracy=pair[1])
        for cell in result.cells
        if (pair := accuracies.get((cell.supervision, cell.seed)))
    ]
    return replace(result, cells=tuple(cells))


def test_validation_chooses_and_test_accuracy_does_not(finished: Path) -> None:
    run = OpenRun.open(finished)

    def choose(of: dict[tuple[str, int], tuple], student: str | None, seed: int | None) -> Choice:
        return choose_student(replace(run, result=with_cells(run.result, of)), student, seed)

    # By test the best is no KD; by validation the other has the best mean, though not the best seed.
    accuracies = {
        ("no KD", 0): (0.90, 1.0),
        ("no KD", 1): (0.50, 1.0),
        ("offline τ=4", 0): (0.75, 0.2),
        ("offline τ=4", 1): (0.80, 0.1),
    }
    chosen = choose(accuracies, None, None)
    assert (chosen.cell.position, chosen.cell.supervision, chosen.cell.seed) == (
        1,
        "offline τ=4",
        1,
    )
    assert "highest mean validation accuracy of 2 students (0.7750)" in chosen.why
    assert choose(accuracies, "no KD", None).cell.seed == 0
    assert choose(accuracies, None, 0).cell.seed == 0
    # Whatever the test says, the choice is the same.
    for worst in (0.0, 1.0):
        other = {key: (validation, worst) for key, (validation, _) in accuracies.items()}
        assert choose(other, None, None).why == chosen.why
    without = {key: (None, test) for key, (_, test) in accuracies.items()}
    with pytest.raises(
        RunError, match=r"no validation examples .*--supervision: 'no KD', 'offline τ=4'"
    ):
        choose(without, None, None)
    assert choose(without, "offline τ=4", None).cell.seed == 0


def test_who_is_not_there_is_not_exported(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no trained student 'offlin τ=4'; did you mean 'offline"):
        export_run(finished, student="offlin τ=4", out=tmp_path)
    with pytest.raises(RecipeError, match="'no KD' has no network of seed 7; trained seeds: 0, 1"):
        export_run(finished, student="no KD", seed=7, out=tmp_path)
    with pytest.raises(RunError, match="no run folder"):
        export_run(tmp_path)
    run = OpenRun.open(finished)
    result = replace(run.result, open_cells=("online τ=4, seed 1",))
    with pytest.raises(RunError, match="1 networks of the run are not trained yet"):
        choose_student(replace(run, result=result), None, None)
    assert not list(tmp_path.iterdir())


def test_unknown_formats_and_a_missing_extra_are_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="no format 'onx'; did you mean 'onnx'"):
        export_run(finished, formats=["onx"], out=tmp_path)
    with pytest.raises(RecipeError, match="no format is named"):
        export_run(finished, formats=[], out=tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"pip install 'distillens\[onnx\]'"):
        export_run(finished, formats=["torch", "onnx"], out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_changed_checkpoint_is_refused(copied: Path, tmp_path: Path) -> None:
    files = copied / "students" / "00-no-kd" / "seed-0"
    shutil.copy(files / "epoch-0001.safetensors", files / "epoch-0002.safetensors")
    with pytest.raises(CheckpointError, match=r"epoch-0002.* not what the run's results describe"):
        export_run(copied, student="no KD", seed=0, out=tmp_path / "out")


def test_stored_logits_that_disagree_are_an_error(copied: Path, tmp_path: Path) -> None:
    path = copied / "students" / "00-no-kd" / "seed-0" / "logits.npz"
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["train"][7, 3] += 0.1 * np.abs(arrays["train"]).max()
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(CheckpointError, match=r"they differ by .* allowed is 0\.01"):
        export_run(copied, student="no KD", seed=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_that_are_gone_are_noted(copied: Path, tmp_path: Path) -> None:
    data = json.loads((copied / "data.json").read_text())
    data["fingerprint"] = "another"
    (copied / "data.json").write_text(json.dumps(data))
    card = export_run(copied, student="no KD", seed=0, formats=["safetensors"], out=tmp_path / "o")
    assert card.files[0].stored_difference is None
    assert card.notes == (
        "not compared with the run's stored logits: "
        "the data differ from those that the run was made with",
    )


def test_a_run_of_an_earlier_version_gets_its_normalisation(copied: Path, tmp_path: Path) -> None:
    data = json.loads((copied / "data.json").read_text())
    (copied / "data.json").write_text(
        json.dumps({key: data[key] for key in data if key not in ("normalisation", "input_type")})
    )
    with pytest.raises(RunError, match="run the recipe again with the same --out"):
        export_run(copied, out=tmp_path / "out")
    weights = {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")}
    distillens.run(recipe(seeds=[0, 1]), copied)
    assert json.loads((copied / "data.json").read_text()) == data
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")} == weights
    export_run(copied, formats=["safetensors"], out=tmp_path / "out")


def test_a_program_that_disagrees_is_deleted(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def skewed(path: Path) -> Any:
        right = read_torch(path)
        return lambda inputs: right(inputs) * 1.001

    monkeypatch.setattr(programs, "read_torch", skewed)
    with pytest.raises(ModelError, match=r"model\.pt2 gives other outputs .* allowed is 0\.0001"):
        export_run(finished, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(RunError, match=r"is no export: it has no model\.json"):
        load_export(tmp_path)


def test_an_export_is_not_written_over_another(finished: Path, tmp_path: Path) -> None:
    first = export_run(finished, student="no KD", formats=["safetensors"], out=tmp_path)
    again = export_run(finished, student="no KD", formats=["safetensors"], out=tmp_path)
    assert again == first
    with pytest.raises(RunError, match="holds the export of another network"):
        export_run(finished, student="offline τ=4", out=tmp_path)
    assert load_export(tmp_path)[1] == first
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"not what model\.json describes"):
        load_export(tmp_path)


class Branching(nn.Module):
    """A network whose Python looks at a value, which no traced program can."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.layer(x) if float(x.sum()) > 0 else self.layer(-x)


def branching(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return Branching(int(np.prod(input_shape)), outputs)


def test_a_users_network_needs_trust_and_says_why_it_cannot_be_traced(tmp_path: Path) -> None:
    content = recipe(
        student={"model": {"name": "test_export:branching"}, "training": TRAINING},
        supervisions=[{"kind": "one-hot"}],
    )
    distillens.run(content, tmp_path / "run", trust_code=True)
    with pytest.raises(RecipeError, match="--trust-code"):
        export_run(tmp_path / "run", out=tmp_path / "out")
    with pytest.raises(ModelError, match=r"model\.pt2 cannot be made of this network: ") as caught:
        export_run(tmp_path / "run", formats=["torch"], out=tmp_path / "out", trust_code=True)
    assert "\n" not in str(caught.value)
    export_run(tmp_path / "run", formats=["safetensors"], out=tmp_path / "out", trust_code=True)
    assert load_export(tmp_path / "out", trust_code=True)[0](torch.rand(2, 1, 8, 8)).shape == (
        2,
        10,
    )


def test_the_command_writes_and_says_what_it_did(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(finished), "--supervision", "no KD", "--seed", "0"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "no KD, seed 0, epoch 2: named" in shown
    assert "model.safetensors" in shown
    assert "model.pt2" in shown
    assert (tmp_path / "exports" / "to-ship-no-kd-seed-0" / "model.json").is_file()
    with pytest.raises(SystemExit) as ended:
        main(["export", str(finished), "--format", "torch,tflite"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("distillens: no format 'tflite'")
