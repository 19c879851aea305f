"""What a Gram is like beside complexities, in Python, in runs, in the command and on the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import command, curves_of_run, refused
from report_cases import contents, curves_of, own_text
from rich.console import Console
from safetensors.torch import save_file

import distillens
from distillens.analyses.gram_profile import compare_kernels, decompose, profile
from distillens.analyses.kernel_complexity import kernel_complexity
from distillens.errors import KernelError, MeasureError
from distillens.measures import (
    binary_bound,
    distillation_bound,
    factorise_gram,
    label_targets,
    multiclass_bound,
    random_target_level,
)
from distillens.measures.complexity.bounds import kernel_fit
from distillens.models import ModelRecipe, build_model
from distillens.report import profile_table, render
from distillens.results.base import from_json, to_json
from distillens.results.complexity import (
    ComplexityCurves,
    GramProfile,
    KernelComplexity,
    KernelForm,
)

N, C = 24, 3
RNG = np.random.default_rng(4)
CLASSES = RNG.integers(C, size=N)
SIGNS = np.where(CLASSES > 0, 1.0, -1.0)
SOFT = np.tanh(SIGNS + RNG.standard_normal(N))


def gram(rank: int = 3 * N, seed: int = 0) -> np.ndarray:
    factor = np.random.default_rng(seed).standard_normal((N, rank))
    return factor @ factor.T / rank


def profiled(
    values: np.ndarray,
    targets: Mapping[str, np.ndarray],
    form: KernelForm = "binary",
    ridge: float = 0.0,
    labels: str | None = None,
    classes: np.ndarray | None = None,
) -> GramProfile:
    found = decompose(values, form, targets)
    assert found is not None
    return profile(found, factorise_gram(values, form, ridge), labels, classes)


def test_spectrum_and_energies_are_those_of_the_eigenvectors() -> None:
    values = gram()
    found = profiled(values, {"y": SOFT})
    eigenvalues, vectors = np.linalg.eigh(values)
    energy = np.cumsum((vectors.T @ SOFT)[::-1] ** 2) / np.sum(SOFT**2)
    assert found.ranks == (1, 2, 4, 8, 16, 24)
    places = np.array(found.ranks) - 1
    np.testing.assert_allclose(found.eigenvalues, eigenvalues[::-1][places])
    np.testing.assert_allclose(found.targets[0].energy, energy[places])
    shares = eigenvalues / eigenvalues.sum()
    assert found.effective_rank == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))
    assert found.condition == pytest.approx(eigenvalues[-1] / eigenvalues[0])
    assert found.trace == pytest.approx(np.trace(values))


def test_a_level_that_cannot_be_is_refused() -> None:
    with pytest.raises(MeasureError, match="full form"):
        random_target_level(np.ones(4), "full", 2)
    with pytest.raises(MeasureError, match="do not fit 3 outputs"):
        random_target_level(np.ones(4), "class-diagonal", 3)
    assert random_target_level(np.array([1.0, 0.0]), "binary") == np.inf


def test_bounds_are_thm_3_of_labels_and_prop_5_of_a_teacher() -> None:
    values = gram()
    meter = factorise_gram(values, "binary", 0.1)
    labels, teacher = profiled(
        values, {"labels": SIGNS, "teacher": SOFT}, ridge=0.1, labels="labels"
    ).targets
    assert labels.bound == binary_bound(kernel_fit(meter, SIGNS), SIGNS)
    risk = float(np.mean(np.sign(SOFT) != SIGNS))
    assert 0 < risk < 0.5
    assert teacher.bound == distillation_bound(kernel_fit(meter, SOFT), SOFT, risk)
    alone = profiled(values, {"teacher": SOFT}, ridge=0.1).targets[0]
    assert alone.bound == binary_bound(kernel_fit(meter, SOFT), SOFT)
    assert labels.diagonal == pytest.approx(1.0)


def test_several_classes_have_thm_4() -> None:
    values = np.stack([gram(seed=c) for c in range(C)])
    y = label_targets(CLASSES, C)
    found = profiled(values, {"labels": y}, "class-diagonal", labels="labels", classes=CLASSES)
    fit = kernel_fit(factorise_gram(values, "class-diagonal"), y)
    assert found.targets[0].bound == multiclass_bound(fit, CLASSES)
    assert found.ranks[-1] == N * C


def test_what_cannot_be_bounded_says_why() -> None:
    far = profiled(gram(), {"far": 3 * SIGNS})
    assert far.targets[0].bound is None
    assert any("no bound for far" in note for note in far.notes)
    singular = profiled(gram(rank=5), {"y": SIGNS})
    assert singular.targets[0].bound is None
    assert singular.targets[0].random == np.inf
    assert any("singular" in note for note in singular.notes)
    assert profiled(gram(), {"none": np.zeros(N)}).targets[0].energy == ()
    assert decompose(np.zeros((4, 4)), "binary", {"y": np.ones(4)}) is None


def network(seed: int, outputs: int = 3) -> torch.nn.Module:
    recipe = ModelRecipe.model_validate({"name": "mlp", "hidden": [6]})
    return build_model(recipe, (1, 4, 4), outputs, seed=seed).eval()


def images(count: int = N) -> torch.Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_network_has_the_kernel_of_itself_and_not_of_another() -> None:
    same = compare_kernels(network(0), network(0), images(), 1)
    assert same.similarity == pytest.approx(1.0)
    assert same.alignment == pytest.approx(1.0)
    other = compare_kernels(network(0), network(1), images(), None)
    assert other.similarity < 0.99
    assert other.alignment < 0.99
    assert (same.kernel, other.kernel) == ("output 1", "mean over outputs")
    assert compare_kernels(network(0), network(0), images(300), 1).examples == 256
    with pytest.raises(KernelError, match="3 and 4 outputs"):
        compare_kernels(network(0), network(0, 4), images(), 1)


def test_no_gram_no_profile_and_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = {"labels": SIGNS}
    with monkeypatch.context() as small:
        small.setattr("distillens.analyses.kernel_complexity._COPIES", 10**9)
        found = kernel_complexity(
            network(0), images(), targets, outputs=0, ridge=0.1, profiled=True
        )
    assert found.method.startswith("conjugate")
    assert found.profile is None
    assert any("no Gram was formed" in note for note in found.notes)
    plain = kernel_complexity(network(0), images(), targets, outputs=0, ridge=0.1)
    assert plain.profile is None
    with pytest.raises(MeasureError, match="no targets are called 'y', only labels"):
        kernel_complexity(network(0), images(), targets, outputs=0, ridge=0.1, labels="y")


@pytest.fixture
def given(tmp_path: Path) -> list[object]:
    for name, seed in (("student", 0), ("teacher", 1)):
        save_file(network(seed).state_dict(), tmp_path / f"{name}.safetensors")
    np.save(tmp_path / "x.npy", images().numpy())
    np.save(tmp_path / "y.npy", CLASSES)
    np.save(tmp_path / "soft.npy", SOFT)
    model = "{name: mlp, hidden: [6]}"
    return [
        "complexity", "--model", model, "--weights", tmp_path / "student.safetensors",
        "--inputs", tmp_path / "x.npy", "--classes", 3, "--ridge", 0.1,
        "--targets", f"labels={tmp_path}/y.npy", "--targets", f"soft={tmp_path}/soft.npy",
        "--teacher", model,
    ]  # fmt: skip


def test_the_command_measures_all_of_it(
    given: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ["--teacher-weights", tmp_path / "teacher.safetensors"]
    assert command(*given, *teacher, "--json") == 0
    found = from_json(KernelComplexity, capsys.readouterr().out, "the output")
    assert found.profile is not None
    assert found.teacher_kernel is not None
    bounds = [row.bound.theorem for row in found.profile.targets if row.bound]
    assert bounds == ["Thm. 3", "Prop. 5"]
    assert command(*given, *teacher) == 0
    printed = capsys.readouterr().out
    for words in ("effective rank", "centred alignment", "Prop.", "% in top 1"):
        assert words in printed
    assert command(*given, *teacher, "--no-profile") == 0
    assert "effective rank" not in capsys.readouterr().out
    assert "both its model and its weights" in refused(capsys, *given)


def test_runs_have_it_at_the_last_epoch_and_earlier_results_are_read(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"examples": 20, "epochs": [0, 3], "random_draws": 2, "ridge": 1e-3}
    distillens.run({**tiny, "complexity": measured, "deviation": False}, tmp_path)
    curves = curves_of_run(tmp_path)
    assert curves.profile is not None
    assert curves.profile.epoch == 3
    assert [row.name for row in curves.profile.targets] == ["labels", "final teacher"]
    last = curves.spectra[-1]
    assert last.effective_rank == pytest.approx(curves.profile.effective_rank)
    assert last.trace == pytest.approx(curves.profile.trace)
    assert curves.teacher_kernel is not None
    assert 0 < curves.teacher_kernel.alignment <= 1
    # As a version before wrote them.
    content = json.loads(to_json(curves))
    del content["profile"], content["teacher_kernel"]
    for spectrum in content["spectra"]:
        del spectrum["effective_rank"]
    earlier = from_json(ComplexityCurves, json.dumps(content), "record")
    assert earlier.points == curves.points
    assert "Where the targets stand" not in own_text(render(contents(complexity=(earlier,))))
    assert "Where the targets stand" in own_text(render(contents(complexity=(curves,))))
    assert command("measure", tmp_path, "complexity", "temperatures=[1,4]") == 0
    printed = capsys.readouterr().out
    for words in ("the Gram at epoch 3", "Thm. 4", "NTK similarity", "τ = 4"):
        assert words in printed


def test_bounds_on_training_examples_are_doubted(tiny: dict[str, Any], tmp_path: Path) -> None:
    measured = {"examples": 20, "epochs": [3], "random_draws": 1, "ridge": 1e-3, "split": "train"}
    distillens.run({**tiny, "complexity": measured, "deviation": False}, tmp_path)
    found = curves_of_run(tmp_path).profile
    assert found is not None
    assert any("not proved" in note for note in found.notes)


def test_the_table_fits_a_terminal_and_a_vacuous_bound_is_called_so() -> None:
    found = profiled(gram(), {"labels": SIGNS, "teacher": SOFT}, ridge=0.1, labels="labels")
    console = Console(width=100)
    with console.capture() as capture:
        console.print(profile_table(found))
    assert "vacuous (Thm. 3" in capture.get()
    curves = replace(curves_of(), profile=replace(found, epoch=20))
    page = own_text(render(contents(complexity=(curves,))))
    assert "vacuous (Prop. 5" in page
    assert "Gram of epoch 20" in page
