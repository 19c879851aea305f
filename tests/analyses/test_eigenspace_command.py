"""`distillens eigenspace` on finished runs: numbers from the checkpoints, figures and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import blobs, command, refused
from rich.console import Console
from safetensors.numpy import load_file
from torch import nn

from distillens import oracle_gram
from distillens.analyses.eigenspace.dynamics import EigenspaceTask, measure_eigenspace
from distillens.analyses.eigenspace.layers import find_layer, layer_inputs, weight_matrix
from distillens.data import Batches, Normalisation
from distillens.data.prepare import load_splits, subset
from distillens.errors import MeasureError, ModelError
from distillens.models import build_model
from distillens.report import eigenspace_table
from distillens.results.base import from_json, to_json
from distillens.results.eigenspace import Eigenspace
from distillens.runs.layout import Run
from distillens.study import parse_recipe, read_recipe, run

PLAIN = Normalisation(torch.zeros(1), torch.ones(1))
LOW = ("--bottom", "20-40")
TASK = EigenspaceTask(bottom=(20, 40))


def recipe(seed: int) -> dict[str, Any]:
    training = {"epochs": 3, "batch_size": 32, "learning_rate": 0.05}
    return {
        "name": "tiny",
        "seeds": [seed],
        "data": {"source": "digits", "train_size": 120, "test_size": 100, "label_noise": 0.25},
        "teacher": {
            "model": {"name": "mlp", "hidden": [32]}, "training": training, "seed": 50 + seed,
        },
        "student": {"model": {"name": "mlp", "hidden": [6]}, "training": training},
        "supervisions": [
            {"kind": "one-hot"},
            {"kind": "offline", "temperature": 4},
            {"kind": "self-distillation", "generations": 2},
        ],
        "complexity": None,
        "deviation": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        run(recipe(seed), folder / str(seed))
    return [folder / str(seed) for seed in range(2)]


def normalised(folder: Path) -> np.ndarray:
    splits = load_splits(read_recipe(Run(folder).recipe).data)
    return Normalisation.of(splits.train)(splits.train.inputs).flatten(1).numpy().astype(float)


def test_components_are_those_of_the_checkpoints(runs: list[Path]) -> None:
    result, arrays = measure_eigenspace(runs[:1], TASK)
    assert [one.student for one in result.students][:2] == ["no KD", "offline τ=4"]
    inputs = normalised(runs[0])
    _, singular, rows = np.linalg.svd(inputs, full_matrices=False)
    np.testing.assert_allclose(arrays["s001_eigenvalues"], singular[:40] ** 2, rtol=1e-4)
    name = "students/01-offline-t4/seed-0"
    for who, network in (("teacher", "teacher"), ("student", name)):
        files = sorted((runs[0] / network).glob("epoch-*.safetensors"))
        weights = [load_file(path)["layers.1.weight"].astype(float) for path in files]
        assert len(weights) == 4
        expected = np.stack([np.linalg.norm(w @ rows[:40].T, axis=0) for w in weights])
        # Eigenvectors of float32 inputs are known to some five digits.
        np.testing.assert_allclose(arrays[f"s001_{who}_weights"], expected, atol=2e-3)
        moved = np.linalg.norm((weights[-1] - weights[0]) @ rows[:40].T, axis=0)
        np.testing.assert_allclose(arrays[f"s001_{who}_change"][-1], moved, atol=2e-3)
    assert (result.students[1].axes, result.students[1].dimensions) == ("shared", 64)
    assert result.students[1].residual < 1e-6


def test_self_distillation_is_compared_with_the_generation_before(runs: list[Path]) -> None:
    result, arrays = measure_eigenspace(runs[:1], TASK)
    assert result.students[2].student.startswith("self")
    folder = next((runs[0] / "students").glob("02-*/seed-0/generation-1"))
    weights = load_file(folder / "epoch-0003.safetensors")["layers.1.weight"].astype(float)
    _, _, rows = np.linalg.svd(normalised(runs[0]), full_matrices=False)
    expected = np.linalg.norm(weights @ rows[:40].T, axis=0)
    np.testing.assert_allclose(arrays["s002_teacher_weights"][-1], expected, atol=2e-3)


def test_runs_of_other_seeds_are_other_teachers(runs: list[Path]) -> None:
    result, _ = measure_eigenspace(runs, TASK)
    by_kind = {(one.student, one.projected): one for one in result.summaries}
    found = by_kind["offline τ=4", "change"]
    assert (found.students, found.teachers, found.pairs) == (2, 2, 15)
    shares = []
    for one in result.students:
        if one.student == "offline τ=4":
            marks = [p.stronger for p in one.pairs if p.projected == "change"]
            shares.append(marks.count(True) / (marks.count(True) + marks.count(False)))
    assert found.share.value == pytest.approx(np.mean(shares))
    assert found.stronger + found.not_stronger + found.undecided == 30
    # NaN is not equal to itself: compared as text.
    assert to_json(from_json(Eigenspace, to_json(result), "here")) == to_json(result)


def test_the_command_writes_numbers_arrays_and_pictures(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        command("eigenspace", *runs, *LOW, "--supervision", "offline τ=4", "--json", "--out", out)
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((out / "eigenspace.json").read_text())
    assert {one["student"] for one in said["students"]} == {"offline τ=4"}
    assert len(said["students"]) == 2
    with np.load(out / "eigenspace.npz") as arrays:
        assert arrays["s001_student_change"].shape == (4, 40)
        np.testing.assert_array_equal(arrays["s001_student_change"][0], 0)
    for name in ("eigenspace-pairs", "eigenspace-predictions"):
        svg = (out / f"{name}.svg").read_text()
        ElementTree.fromstring(svg)
        assert "offline τ=4" in svg
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    Console().print(
        eigenspace_table(from_json(Eigenspace, (out / "eigenspace.json").read_bytes(), ""))
    )
    shown = capsys.readouterr().out
    assert "offline" in shown
    assert "Wilson over 2 teachers" in " ".join(shown.split())


def test_a_layer_whose_inputs_move_gets_axes_of_each_network(runs: list[Path]) -> None:
    task = EigenspaceTask(layer="layers.3", pairs=3, top=2, bottom=(3, 5), student="offline τ=4")
    result, arrays = measure_eigenspace(runs[:1], task)
    assert result.students[0].axes == "own"
    assert not np.allclose(arrays["s000_eigenvalues"], arrays["s000_student_eigenvalues"])


def test_the_tangent_kernel_is_that_of_the_oracle(runs: list[Path]) -> None:
    task = EigenspaceTask(
        examples=20, pairs=2, top=2, bottom=(4, 6), kernel="ntk", student="offline τ=4"
    )
    result, arrays = measure_eigenspace(runs[:1], task)
    assert (result.examples, result.kernel) == (20, "ntk")
    parsed = read_recipe(Run(runs[0]).recipe)
    splits = load_splits(parsed.data)
    part = subset(splits.train, 20, 0, "examples")
    x = next(Batches(part, 20, normalisation=Normalisation.of(splits.train), seed=None).epoch(0))
    assert parsed.teacher.model is not None
    network = build_model(parsed.teacher.model, splits.train.input_shape, 10, seed=50)
    gram = oracle_gram(network.double().eval(), x.inputs.double(), outputs="trace")
    expected = np.linalg.eigvalsh(np.asarray(gram))[::-1][:6]
    np.testing.assert_allclose(arrays["s000_kernel_eigenvalues"], expected, rtol=1e-4)


LAYERS = {
    "linear": nn.Linear(5, 4),
    "positions": nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Linear(1, 3), nn.Flatten()),
    "plain": nn.Sequential(nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 3, (1, 2))),
    "strided": nn.Sequential(
        nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 2, 3, stride=2, padding=2, dilation=2)
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_times_the_weight_matrix_are_what_the_layer_gives(kind: str) -> None:
    network, examples = LAYERS[kind], blobs(300)
    name = find_layer(network, None, "teacher")
    module = network.get_submodule(name)
    given: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _, __, result: given.append(result))
    network(examples.inputs)
    handle.remove()
    result = given[0] if given[0].ndim != 4 else given[0].flatten(2).transpose(1, 2)
    found = layer_inputs(network, name, examples, PLAIN, "cpu")
    weight, bias = module.weight, module.bias
    assert isinstance(weight, torch.Tensor)
    assert isinstance(bias, torch.Tensor)
    product = found.rows_MD @ weight_matrix(weight) + bias.detach().numpy()
    np.testing.assert_allclose(product, result.detach().reshape(-1, len(weight)).numpy(), atol=1e-5)
    assert found.examples_NF.shape == (300, 5)
    assert not module._forward_pre_hooks


def test_layers_that_cannot_be_projected_are_refused() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten())
    with pytest.raises(ModelError, match="groups=2"):
        find_layer(network, "0", "teacher")
    with pytest.raises(ModelError, match="is a ReLU"):
        find_layer(network, "1", "teacher")
    with pytest.raises(ModelError, match="no Linear or Conv2d"):
        find_layer(network, None, "teacher")
    shared = nn.Linear(5, 5)
    with pytest.raises(ModelError, match="called 2 times"):
        layer_inputs(
            nn.Sequential(shared, shared),
            "0",
            blobs(),
            Normalisation(torch.zeros(1), torch.ones(1)),
            "cpu",
        )


def test_inputs_that_do_not_fit_into_memory_name_what_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distillens.analyses.eigenspace.layers.MOST_VALUES", 100)
    with pytest.raises(MeasureError, match="at most 20 examples"):
        layer_inputs(nn.Linear(5, 2), "", blobs(), PLAIN, "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--supervision", "offline τ=3"), "did you mean 'offline τ=4'"),
        (("--layer", "layers.2"), "layer 'layers.2' of the student is a ReLU"),
        (("--layer", "layer.1"), "did you mean 'layers.1'"),
        (("--layer", "layers.3"), "inputs of shape (120, 32) have at most 32"),
        (("--split", "validation"), "no validation split"),
        (("--examples", "30"), "at most 30"),
        (("--examples", "9999"), "the train split has 120"),
        (("--bottom", "20"), "no range such as 20-60"),
        (("--bottom", "10-20"), "make no pairs"),
        (("--pairs", "0"), "0 pairs were asked for"),
        (("--pair-seed", "-1"), "seed of the pairs is -1"),
    ],
)
def test_mistakes_get_one_line(
    runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    bottom = () if "--bottom" in options else LOW
    out = tmp_path / "out"
    assert message in refused(capsys, "eigenspace", runs[0], *bottom, *options, "--out", out)
    assert not out.exists()


def test_runs_that_do_not_belong_together_are_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "out")
    assert "was given twice" in refused(capsys, "eigenspace", runs[0], runs[0], *LOW, *out)
    copied = tmp_path / "copied"
    shutil.copytree(runs[0], copied)
    assert "no second seed" in refused(capsys, "eigenspace", runs[0], copied, *LOW, *out)
    other = recipe(0)
    other["data"]["label_noise"] = 0.5
    other["supervisions"] = other["supervisions"][:2]
    run(other, tmp_path / "other")
    line = refused(capsys, "eigenspace", runs[0], tmp_path / "other", *LOW, *out)
    assert "data.label_noise is 0.25 and 0.5" in line
    # Checkpoints that are gone, and folders that are no run.
    (copied / "teacher" / "epoch-0002.safetensors").unlink()
    assert "epoch-0002" in refused(capsys, "eigenspace", copied, *LOW, *out)
    (copied / "results.json").unlink()
    assert "is not finished" in refused(capsys, "eigenspace", copied, *LOW, *out)
    assert "no run folder" in refused(capsys, "eigenspace", tmp_path, *LOW, *out)


def test_a_teacher_without_a_trajectory_is_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = recipe(0)
    given["teacher"] = {
        "model": {"name": "mlp", "hidden": [32]},
        "checkpoint": str(runs[0] / "teacher" / "epoch-0003.safetensors"),
    }
    given["supervisions"] = given["supervisions"][:2]
    run(parse_recipe(given), tmp_path / "given")
    line = refused(capsys, "eigenspace", tmp_path / "given", *LOW, "--out", tmp_path / "out")
    assert "last weights or logits alone" in line
