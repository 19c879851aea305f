"""`training.checkpoint_every`: which weights a training keeps, and who reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs, measure_all, refused
from torch import nn

import distillens
from distillens.analyses.complexity import complexity_epochs
from distillens.analyses.eigenspace.dynamics import EigenspaceTask, measure_eigenspace
from distillens.analyses.finished import finished_run
from distillens.data import Batches
from distillens.errors import CheckpointError, RecipeError, RunError, SupervisionError
from distillens.models import load_state
from distillens.runs.layout import NetworkFiles, Run
from distillens.runs.records import read_records
from distillens.study import parse_recipe
from distillens.supervision import OneHot, Setting, TeacherCheckpoint, build_supervision
from distillens.supervision.kinds.builtin import OfflineRecipe, OnlineRecipe, PeriodRecipe
from distillens.supervision.recipe import AverageRecipe
from distillens.training import TrainingRecipe, fit

RECIPE = TrainingRecipe(epochs=5, batch_size=48, learning_rate=0.05, checkpoint_every=3)
KEPT = [0, 3, 5]


class KilledError(BaseException):
    """Stands in for a kill: nothing catches it on the way."""


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 3))


def train(files: NetworkFiles, recipe: TrainingRecipe = RECIPE, seed: int = 0) -> str | None:
    model = network(seed)
    torch.manual_seed(7 + seed)
    return fit(model, OneHot(), Batches(blobs(), 48, seed=2), recipe, store=files).digest


@pytest.mark.parametrize(
    ("epochs", "every", "kept"),
    [
        (5, 1, (0, 1, 2, 3, 4, 5)),
        (5, 2, (0, 2, 4, 5)),
        (6, 3, (0, 3, 6)),
        (5, 5, (0, 5)),
        (5, 9, (0, 5)),
    ],
)
def test_the_first_every_multiple_and_the_last_are_kept(
    epochs: int, every: int, kept: tuple[int, ...]
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": epochs, "checkpoint_every": every})
    assert recipe.kept_epochs == kept
    assert tuple(epoch for epoch in range(epochs + 1) if recipe.keeps(epoch)) == kept


def test_between_kept_epochs_the_state_is_written_as_time_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(
        "distillens.training.loop.write_state", lambda path, state: written.append(state["epoch"])
    )
    for seconds, expected in ((60.0, KEPT[1:]), (0.0, list(range(1, KEPT[-1] + 1)))):
        written.clear()
        monkeypatch.setattr("distillens.training.loop.SAVE_SECONDS", seconds)
        train(NetworkFiles(tmp_path / str(seconds)))
        assert written == expected


def test_a_training_killed_at_any_file_operation_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, all_kept = NetworkFiles(tmp_path / "whole"), NetworkFiles(tmp_path / "all")
    digest = train(whole)
    assert whole.epochs() == KEPT
    assert train(all_kept, RECIPE.model_copy(update={"checkpoint_every": 1})) == digest
    for epoch in KEPT:
        assert whole.weights(epoch).read_bytes() == all_kept.weights(epoch).read_bytes()
    monkeypatch.setattr("distillens.files.atomic.os.fsync", lambda descriptor: None)
    monkeypatch.setattr("distillens.training.loop.SAVE_SECONDS", 0.0)
    left, resumed_from, operations = [0], [], 0
    replace, unlink = Path.replace, Path.unlink

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def act(path: Path, *rest: Any, **named: Any) -> Any:
            if path.parent == killed.folder:
                if left[0] == 0:
                    raise KilledError
                left[0] -= 1
            return operation(path, *rest, **named)

        return act

    monkeypatch.setattr(Path, "replace", counted(replace))
    monkeypatch.setattr(Path, "unlink", counted(unlink))
    for operations in range(1000):
        killed = NetworkFiles(tmp_path / f"killed-{operations}")
        left[0] = operations
        try:
            train(killed)
        except KilledError:
            left[0] = 10**6
            before = len(killed.history.read_text().splitlines()) if killed.state.exists() else 0
            resumed_from.append(before)
            # Weights and random numbers of a resumed training come from its state.
            assert train(killed, seed=3 if before else 0) == digest
        assert killed.epochs() == KEPT
        for epoch in KEPT:
            assert killed.weights(epoch).read_bytes() == whole.weights(epoch).read_bytes()
        if left[0] < 10**5:
            break
    # Epoch 0, three files an epoch, and attempts to delete epochs 1, 2 and 4.
    assert operations > 1 + 3 * 5
    assert resumed_from == sorted(resumed_from)
    assert resumed_from[-1] == 5


def pathway(steps: Sequence[int], epochs: Sequence[int]) -> Any:
    """Return teachers whose checkpoint of epoch e always says e."""

    def module(epoch: int) -> nn.Module:
        layer = nn.Linear(1, 2)
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, epoch)
        return layer

    class Teachers:
        def trajectory(self) -> list[TeacherCheckpoint]:
            return [
                TeacherCheckpoint(step, lambda epoch=epoch: module(epoch), epoch)
                for step, epoch in zip(steps, epochs, strict=True)
            ]

        def lowest_validation_loss(self) -> int:
            return epochs[0]

    return Teachers()


def followed(entry: Any, epochs: int, kept: Sequence[int]) -> list[float]:
    """Return the (mean) epoch of the teacher that a student follows in each of its own."""
    teachers = pathway([3 * epoch for epoch in kept], kept)
    supervision: Any = build_supervision(entry, Setting("cross-entropy", 3 * epochs), teachers)
    batch = next(iter(Batches(blobs(4, 2, 1), 4, seed=None).epoch(0)))
    found = []
    for epoch in range(epochs):
        supervision.advance(batch, 3 * epoch)
        found.append(float(supervision.teacher.logits(batch)[0, 0]))
    return found


@pytest.mark.parametrize(
    ("period", "expected"),
    [(None, [2, 2, 4, 4, 6, 6, 7]), (2, [2, 2, 4, 4, 6, 6, 7]), (4, [4, 4, 4, 4, 7, 7, 7])],
)
def test_an_online_teacher_is_the_next_checkpoint_that_was_kept(
    period: int | None, expected: list[int]
) -> None:
    entry = OnlineRecipe(kind="online", period=PeriodRecipe(epochs=period) if period else None)
    assert followed(entry, 7, (2, 4, 6, 7)) == expected


@pytest.mark.parametrize("period", [PeriodRecipe(epochs=3), PeriodRecipe(steps=9)])
def test_a_period_without_checkpoints_names_those_that_are_there(period: PeriodRecipe) -> None:
    entry = OnlineRecipe(kind="online", period=period)
    with pytest.raises(SupervisionError, match=r"epochs 2, 4, 6 and 7 .*checkpoint_every"):
        followed(entry, 7, (2, 4, 6, 7))


def test_averages_and_early_stops_count_the_checkpoints_that_were_kept() -> None:
    online = OnlineRecipe(kind="online", average=AverageRecipe(last=2))
    assert followed(online, 5, (2, 4, 5)) == [2, 2, 3, 3, 4.5]
    offline = OfflineRecipe(kind="offline", early_stop=4, average=AverageRecipe(last=2))
    assert followed(offline, 1, (2, 4, 5)) == [3]
    assert followed(OfflineRecipe(kind="offline", early_stop="validation"), 1, (2, 4)) == [2]
    with pytest.raises(SupervisionError, match=r"epoch 3; .* epochs 2, 4 and 5 .*checkpoint_every"):
        followed(OfflineRecipe(kind="offline", early_stop=3), 1, (2, 4, 5))


def test_complexity_is_measured_at_the_kept_epochs_nearest_to_the_usual_ones() -> None:
    every = range(257)
    assert complexity_epochs(None, every) == [0, 1, 3, 8, 20, 51, 102, 166, 256]
    assert complexity_epochs(None, [*range(0, 256, 16), 256]) == [0, 16, 48, 96, 160, 256]
    assert complexity_epochs(None, [0, 2]) == [0, 2]


def sparse(tiny: dict[str, Any], every: int = 2) -> dict[str, Any]:
    tiny["data"]["validation_size"] = 60
    tiny["teacher"]["training"] |= {"epochs": 5, "checkpoint_every": every}
    tiny["student"]["training"] |= {"epochs": 3}
    tiny["complexity"] = {"examples": 24, "random_draws": 2}
    tiny["supervisions"] = [
        {"kind": "one-hot", "training": {"checkpoint_every": 2}},
        {"kind": "online", "temperature": 4, "name": "online"},
        {"kind": "offline", "average": {"last": 2}, "training": {"checkpoint_every": 9}},
        {"kind": "offline", "early_stop": "validation"},
    ]
    return tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose networks keep some of their epochs."""
    from conftest import tiny

    torch.set_num_threads(1)
    recipe = sparse(tiny.__wrapped__())  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("sparse") / "run"
    distillens.run(recipe, folder)
    return Run(folder)


def test_every_analysis_reads_the_epochs_that_were_kept(run: Run, tmp_path: Path) -> None:
    assert run.teacher.epochs() == [0, 2, 4, 5]
    assert run.student(0, "no KD", 0).epochs() == [0, 2, 3]
    assert run.student(1, "online", 0).epochs() == [0, 1, 2, 3]
    assert run.student(2, "offline τ=1 last 2", 0).epochs() == [0, 3]
    assert len(json.loads(run.teacher.validation.read_text())) == 3
    (record,) = read_records(run, "complexity")
    points = record.content.result["points"]
    assert sorted({point["epoch"] for point in points}) == [0, 2, 3]
    online = {p["epoch"]: p["teacher_epoch"] for p in points if p["targets"] == "online teacher"}
    # The student's epoch e of 3 is the teacher's step 5e/3: the next kept epoch follows it.
    assert online == {0: 2, 2: 4, 3: 5}
    audit = measure_all(run.folder, student="no KD", over_training=40, kernel_examples=0)
    assert audit.over_training is not None
    (student,) = audit.over_training.students
    assert sorted({point.epoch for point in student.points}) == [0, 2, 3]
    assert not any("missing" in note for note in student.notes)
    task = EigenspaceTask(student="no KD", pairs=2, top=3, bottom=(4, 8))
    _, arrays = measure_eigenspace([run.folder], task)
    assert arrays["s000_teacher_epochs"].tolist() == [0, 2, 4, 5]
    assert arrays["s000_student_epochs"].tolist() == [0, 2, 3]
    weights = load_state(run.student(0, "no KD", 0).weights(2))
    key = next(name for name in weights if name.endswith("weight"))
    assert len(arrays["s000_student_weights"]) == 3
    vectors = np.linalg.norm(weights[key].double().numpy())
    # All K components together are no longer than the matrix.
    assert np.linalg.norm(arrays["s000_student_weights"][1]) <= vectors * (1 + 1e-9)


def test_online_with_few_checkpoints_is_online_with_their_period(
    run: Run, tiny: dict[str, Any], tmp_path: Path
) -> None:
    recipe = sparse(tiny, every=1)
    recipe |= {"complexity": None, "deviation": False}
    recipe["supervisions"] = [{"kind": "online", "temperature": 4, "period": {"epochs": 2}}]
    dense = distillens.run(recipe, tmp_path / "dense")
    cell = json.loads(run.student(1, "online", 0).cell.read_text())
    assert dense.cells[1].weights_digest == cell["weights_digest"]


def test_a_teacher_of_another_run_brings_its_epochs(
    run: Run, tiny: dict[str, Any], tmp_path: Path
) -> None:
    recipe = sparse(tiny) | {"complexity": None, "deviation": False}
    recipe["teacher"] = {"run": str(run.folder)}
    for wrong in (
        {"kind": "offline", "early_stop": 3},
        {"kind": "online", "period": {"epochs": 1}},
    ):
        recipe["supervisions"] = [wrong]
        with pytest.raises(RunError, match=r"epochs 0, 2, 4 and 5.*see the teacher of"):
            distillens.run(recipe, tmp_path / "wrong")
        assert not (tmp_path / "wrong").exists()
    recipe["supervisions"] = [{"kind": "online", "temperature": 4}]
    shared = distillens.run(recipe, tmp_path / "shared")
    cell = json.loads(run.student(1, "online", 0).cell.read_text())
    assert shared.cells[1].weights_digest == cell["weights_digest"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["complexity.epochs=[0, 1]"], "complexity.epochs names 1; .*keeps .* epochs 0, 2 and 3"),
        (["supervisions.3.early_stop=3"], "epoch 3, but .*checkpoint_every of 2 .*0, 2, 4 and 5"),
        (
            ["supervisions.1.period={epochs: 3}"],
            "every 3 epochs, but .*0, 2, 4 and 5; use a period of a multiple of 2",
        ),
        (["student.training.checkpoint_every=0"], "checkpoint_every"),
        (["student.training.checkpoint_every=3"], "made by another recipe: .*checkpoint_every"),
    ],
)
def test_what_names_an_epoch_that_is_not_kept_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], said: str
) -> None:
    line = refused(capsys, "run", run.recipe, *change, "--out", run.folder)
    assert re.search(said, line), line


def test_a_missing_epoch_is_named_with_those_that_are_there(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = finished_run(run.folder)
    with pytest.raises(
        CheckpointError, match=r"epoch-0003.*epochs 0, 2, 4 and 5.*checkpoint_every"
    ):
        opened.teacher.at(3)
    line = refused(
        capsys, "run", "digits", "supervisions=[{kind: offline}]", "complexity=null",
        "teacher.training=null", f"teacher.checkpoint={run.teacher.weights(3)}",
        "--out", run.folder.parent / "new",
    )  # fmt: skip
    assert "epochs 0, 2, 4 and 5" in line
    line = refused(capsys, "measure", run.folder, "complexity", "epochs=[1]")
    assert "epochs 0, 2 and 3" in line


def test_a_run_of_an_earlier_version_goes_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny |= {"complexity": None, "deviation": False}
    distillens.run(tiny, tmp_path / "run")
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "period: null" in text
    # Earlier versions wrote a period of one epoch, and knew no checkpoint_every.
    text = text.replace("period: null", "period: {epochs: 1, steps: null}")
    lines = [line for line in text.splitlines() if "checkpoint_every" not in line]
    (tmp_path / "run" / "recipe.yaml").write_text("\n".join(lines) + "\n")
    kept = (tmp_path / "run" / "teacher" / "cell.json").read_bytes()
    distillens.run(tiny, tmp_path / "run")
    assert (tmp_path / "run" / "teacher" / "cell.json").read_bytes() == kept
    tiny["teacher"]["training"]["checkpoint_every"] = 2
    with pytest.raises(RunError, match="checkpoint_every is 1 there and 2 here"):
        distillens.run(tiny, tmp_path / "run")


def test_the_words_of_a_recipe_with_a_period_are_those_of_before() -> None:
    given = {"kind": "online", "temperature": 4}
    assert OnlineRecipe.model_validate(given).title == "online τ=4"
    assert OnlineRecipe.model_validate(given | {"period": {"epochs": 1}}).title == "online τ=4"
    with pytest.raises(RecipeError, match="checkpoint_every"):
        parse_recipe(
            {
                "name": "x",
                "data": {"source": "digits"},
                "teacher": {
                    "model": {"name": "mlp", "hidden": [2]},
                    "training": {"epochs": 4, "learning_rate": 1, "checkpoint_every": 2},
                },
                "student": {
                    "model": {"name": "mlp", "hidden": [2]},
                    "training": {"epochs": 4, "learning_rate": 1},
                },
                "supervisions": [given | {"period": {"epochs": 1}}],
            }
        )
