"""What only an unlucky or hostile user meets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import blobs, curves_of_run

import distillens
from distillens.cli.main import main
from distillens.data import Batch, Batches, examples_from_arrays
from distillens.errors import DataError, DistillensError, RecipeError, RunError, TrainingError
from distillens.models import ModelRecipe, build_model, load_state
from distillens.runs.layout import NetworkFiles
from distillens.runs.open import OpenRun
from distillens.study import parse_recipe, read_recipe
from distillens.supervision import OneHot, cross_entropy
from distillens.training import TrainingRecipe, fit


def small(tiny: dict[str, Any]) -> dict[str, Any]:
    tiny["complexity"], tiny["deviation"] = None, False
    tiny["supervisions"] = tiny["supervisions"][:2]
    return tiny


def test_weights_that_diverge_in_the_last_update_are_not_kept(tmp_path: Path) -> None:
    files = NetworkFiles(tmp_path)
    recipe = TrainingRecipe(epochs=1, batch_size=48, learning_rate=1e300)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with pytest.raises(TrainingError, match=r"no longer finite after step 1 .*epoch 0 is kept"):
        fit(model, OneHot(), Batches(blobs(), 48), recipe, store=files)
    assert files.epochs() == [0]
    assert all(bool(torch.isfinite(t).all()) for t in load_state(files.weights(0)).values())


def test_masked_micro_batches_do_not_change_the_loss() -> None:
    logits = torch.randn(4, 3, 5, dtype=torch.float64)
    labels = torch.randint(0, 5, (4, 3))
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    batch = Batch(torch.arange(4.0)[:, None], labels, torch.arange(4), mask=mask)
    whole = cross_entropy(logits, labels, mask)
    for parts in (2, 3, 4):
        rows = [part.inputs[:, 0].long() for part in batch.split(parts)]
        losses = [
            part.weight * cross_entropy(logits[row], part.labels, part.mask)
            for part, row in zip(batch.split(parts), rows, strict=True)
        ]
        torch.testing.assert_close(torch.stack(losses).sum(), whole)


def test_a_batch_too_small_for_batchnorm_is_named() -> None:
    examples = examples_from_arrays(torch.rand(9, 1, 2, 2), torch.arange(9) % 3)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    recipe = TrainingRecipe(epochs=1, batch_size=4, learning_rate=0.1)
    with pytest.raises(
        TrainingError, match=r"a batch of 1 example\(s\) is too small for BatchNorm"
    ):
        fit(model, OneHot(), Batches(examples, 4), recipe)


def test_a_launchers_accumulation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    recipe = TrainingRecipe(epochs=1, batch_size=4, learning_rate=0.1)
    model = build_model(ModelRecipe(name="mlp"), (5,), 3, seed=0)
    with pytest.raises(TrainingError, match=r"set training\.accumulate"):
        fit(model, OneHot(), Batches(blobs(), 4), recipe)


def test_measures_may_change_in_a_run_and_networks_may_not(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    small(tiny)
    first = distillens.run(tiny, tmp_path / "run")
    tiny["complexity"] = {"examples": 12, "epochs": [0], "random_draws": 1, "ridge": 0.01}
    tiny["deviation"], tiny["cache_gigabytes"] = True, 3
    again = distillens.run(tiny, tmp_path / "run")
    assert [c.weights_digest for c in again.cells] == [c.weights_digest for c in first.cells]
    assert len(curves_of_run(tmp_path / "run").points) == 4
    assert len(OpenRun.open(tmp_path / "run").records("confidence")) == 1
    # What was trained and when is not written again.
    assert again == first
    tiny["complexity"]["examples"] = 10
    distillens.run(tiny, tmp_path / "run")
    assert curves_of_run(tmp_path / "run").examples == 10
    assert len(OpenRun.open(tmp_path / "run").records("complexity")) == 2
    tiny["student"]["training"]["epochs"] = 2
    with pytest.raises(RunError, match=r"student\.training\.epochs is 3 there and 2 here"):
        distillens.run(tiny, tmp_path / "run")


def test_a_link_in_somebody_elses_run_is_not_followed(tiny: dict[str, Any], tmp_path: Path) -> None:
    distillens.run(small(tiny), tmp_path / "run")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("report.html", ".lock", "points"):
        folder = tmp_path / f"copy{name}"
        shutil.copytree(tmp_path / "run", folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victim)
        with pytest.raises(RunError, match="is a link"):
            distillens.write_report(folder)
        with pytest.raises(RunError, match="is a link"):
            distillens.run(tiny, folder)
        assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("data.json", "[]"),
        ("data.json", "{}"),
        ("results.json", "{"),
        ("recipe.yaml", "\udcff"),
        ("teacher/cell.json", "[]"),
        ("students/00-no-kd/seed-0/history.jsonl", "{}\n{}\n{}\n"),
        ("students/00-no-kd/seed-0/state.pt", "junk"),
    ],
)
def test_a_damaged_run_is_one_line(
    tiny: dict[str, Any], tmp_path: Path, file: str, content: str
) -> None:
    distillens.run(small(tiny), tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content.encode(errors="surrogateescape"))
    if "seed-0" in file:
        (tmp_path / "run" / "students/00-no-kd/seed-0/cell.json").unlink()
    with pytest.raises(DistillensError) as caught:
        distillens.run(tiny, tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [-1]}, "seeds.0: .*greater than or equal to 0"),
        ({"cache_gigabytes": 1e300}, "cache_gigabytes"),
        ({"supervisions": [{"kind": "one-hot", "seeds": []}]}, "supervisions.0.seeds"),
        (
            {"supervisions": [{"kind": "one-hot"}, {"kind": "offline", "early_stop": 0}]},
            "supervisions.1.early_stop",
        ),
        (
            {"supervisions": [{"kind": "one-hot"}, {"kind": "offline", "early_stop": 9}]},
            "stops at the teacher's epoch 9; it has 3",
        ),
        (
            {
                "loss": "squared-error",
                "supervisions": [{"kind": "one-hot"}, {"kind": "self-distillation"}],
            },
            "needs students that give logits",
        ),
        (
            {"supervisions": [{"kind": "offline", "temperature": 4, "loss": {"name": "a:b"}}]},
            "called without a temperature",
        ),
    ],
)
def test_recipes_that_could_not_end_well_are_refused(
    tiny: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**small(tiny), **change})


@pytest.mark.parametrize(
    "text", ["{[1, 2]: 3}", "name: 2020-13-45", "a: " + "[" * 3000, "\ufeff: \x00"]
)
def test_odd_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_a_removed_recipe_names_its_replacement() -> None:
    for name in ("budget/cifar100-full", "recipes/budget/cifar100-full.yaml"):
        with pytest.raises(RecipeError, match="was removed; use 'budget/cifar100-long'"):
            read_recipe(name)
    assert read_recipe("budget/cifar100-long").name == "cifar100-long"


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000])
def test_odd_names_are_no_recipes(name: str) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        read_recipe(name)


def test_one_class_is_no_task(tmp_path: Path) -> None:
    from distillens.data import DataRecipe, load_splits

    inputs, labels = np.zeros((8, 3), np.float32), np.zeros(8, np.int64)
    np.savez(tmp_path / "a.npz", train_inputs=inputs, train_labels=labels)
    with pytest.raises(DataError, match="one class"):
        load_splits(DataRecipe(source="npz", path=str(tmp_path / "a.npz"), test_size=2))
    with pytest.raises(DataError, match="labels are no array of numbers"):
        examples_from_arrays(inputs, np.array(["a"] * 8))


def test_names_with_markup_are_shown_as_they_are(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small(tiny)["supervisions"][0]["name"] = "[/x] [red]"
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tiny))
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "[run]")])
    assert not stopped.value.code
    assert "[/x] [red]" in capsys.readouterr().out
    assert json.loads((tmp_path / "[run]" / "results.json").read_text())["rows"][1]["name"]


def test_paths_that_cannot_be_written_are_one_line(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(small(tiny)))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as stopped:
            main(["run", str(tmp_path / "a.yaml"), "--out", str(out)])
        assert stopped.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_finished_run_stays_whole_while_it_is_looked_at_again(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distillens.run({**tiny, "deviation": False}, tmp_path / "run")

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("distillens.study.run_recipe.measure", stop)
    with pytest.raises(KeyboardInterrupt):
        distillens.run(tiny, tmp_path / "run")
    result = OpenRun.open(tmp_path / "run", unfinished=True).result
    assert OpenRun.open(tmp_path / "run").records("complexity")
    assert not result.open_cells


def test_arrays_of_another_byte_order_are_the_same_examples() -> None:
    inputs, labels = np.arange(24, dtype=np.float32).reshape(8, 3), np.arange(8) % 2
    wanted = examples_from_arrays(inputs, labels)
    found = examples_from_arrays(
        inputs.astype(inputs.dtype.newbyteorder()), labels.astype(labels.dtype.newbyteorder())
    )
    assert found.fingerprint == wanted.fingerprint
