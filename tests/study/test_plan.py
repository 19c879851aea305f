"""`distillens run --plan`: time, memory and disk space before a run, and what is left of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import command, refused

import distillens
from distillens.progress import Advance
from distillens.report import write_report
from distillens.results.base import from_json
from distillens.results.check import RunPlan
from distillens.runs.layout import Run
from distillens.study import parse_recipe, read_recipe
from distillens.study.planning.check import check
from distillens.study.planning.disk import REPORT_BYTES
from distillens.study.planning.estimate import plan_run, side_by_side

SHORT = (
    "seeds=[0]", "teacher.training.epochs=3", "student.training.epochs=3", "complexity=null",
    "teacher.training.checkpoint_every=2", "data.train_size=100", "data.test_size=300",
    "student.training.optimizer=adam",
)  # fmt: skip


def there(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillens.study.planning.estimate.SECONDS", 0.02)
    monkeypatch.setattr("distillens.study.planning.estimate.WARM_UP", 1)


def test_the_disk_space_of_digits_is_that_of_the_folder(tmp_path: Path) -> None:
    recipe, folder = read_recipe("digits", SHORT), tmp_path / "run"
    plan = plan_run(recipe, folder)
    assert not folder.exists()
    assert not plan.begun
    distillens.run(recipe, folder)
    write_report(folder)
    found = plan.estimate
    assert found.checkpoints == there(folder, "epoch-*")
    assert found.states == pytest.approx(there(folder, "state.pt"), rel=0.1)
    assert found.cache == there(folder, "*.npy")
    assert found.disk == pytest.approx(there(folder, "*"), rel=0.1)
    # Without the report, which is most of so short a run.
    report = (folder / "report.html").stat().st_size
    assert found.disk - REPORT_BYTES == pytest.approx(there(folder, "*") - report, rel=0.1)
    after = plan_run(recipe, folder)
    assert after.disk_there == there(folder, "*")
    assert after.seconds_left == 0
    assert all(part.finished == part.networks for part in after.work)


@pytest.mark.parametrize("crop", [0, 1])
def test_every_block_of_logits_that_a_run_writes_was_counted(
    tiny: dict[str, Any], tmp_path: Path, crop: int
) -> None:
    offline: dict[str, Any] = {"kind": "offline", "temperature": 4}
    online: dict[str, Any] = {"kind": "online", "temperature": 4}
    tiny |= {"complexity": None, "deviation": False}
    tiny["data"]["augmentation"] = {"crop": crop}
    tiny["teacher"]["training"] |= {"epochs": 5, "checkpoint_every": 2}
    tiny["supervisions"] = [
        {"kind": "one-hot"},
        offline | {"early_stop": 4, "average": {"last": 2}},
        online | {"pace": 2, "training": {"epochs": 2, "batch_size": 16}},
        online | {"period": {"epochs": 4}},
        {"kind": "self-distillation", "generations": 2},
        {
            "kind": "switched",
            "first": {"kind": "one-hot"},
            "then": offline | {"early_stop": 4},
            "at": 0.5,
        },
    ]
    plan = plan_run(parse_recipe(tiny), tmp_path / "run")
    distillens.run(tiny, tmp_path / "run")
    blocks = list((tmp_path / "run" / "cache").glob("*.npy"))
    # Those of the side of a switch before it teaches are read by another student.
    assert plan.estimate.cache == len(blocks) * (120 * 10 * 4 + 128)


class StopError(Exception):
    """Ends a run in the middle."""


def test_a_half_finished_run_shows_what_is_left(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny |= {"seeds": [0, 1], "complexity": None, "deviation": False}
    folder = tmp_path / "run"
    fresh = plan_run(parse_recipe(tiny), folder)
    assert [(part.finished, part.epochs_done) for part in fresh.work] == [(0, 0)] * 5
    assert fresh.seconds_left == fresh.seconds > 0

    @contextmanager
    def stop(title: str, total: int, done: int = 0) -> Iterator[Advance]:
        steps = [0]

        def advance(more: int) -> None:
            steps[0] += more
            if title.startswith("offline τ=4, seed 0") and steps[0] > total // 3:
                raise StopError

        yield advance

    with pytest.raises(StopError):
        distillens.run(tiny, folder, progress=stop)
    plan = plan_run(parse_recipe(tiny), folder)
    work = {part.name: part for part in plan.work}
    assert plan.begun
    assert (work["teacher"].finished, work["teacher"].seconds_left) == (1, 0)
    assert (work["no KD"].networks, work["no KD"].finished, work["no KD"].epochs_done) == (2, 1, 3)
    assert (work["offline τ=4"].finished, work["offline τ=4"].epochs_done) == (0, 1)
    assert work["online τ=4"].measured_from == "training steps timed now"
    lines = Run(folder).student(1, "offline τ=4", 0).history.read_text().splitlines()
    each = fmean(json.loads(line)["seconds"] for line in lines)
    assert work["offline τ=4"].measured_from == "epochs that the run trained"
    assert work["offline τ=4"].seconds_left == pytest.approx(5 * each)
    assert work["offline τ=4"].seconds == pytest.approx(6 * each)
    assert plan.seconds_left == pytest.approx(sum(part.seconds_left for part in plan.work))
    assert plan.disk_left == max(0, plan.estimate.most_disk - there(folder, "*"))
    assert Run(folder).student(1, "offline τ=4", 0).epochs() == [0, 1]


def test_workers_take_trainings_side_by_side() -> None:
    assert side_by_side([(6, 3), (4, 1)], 1) == 10
    # 2, 2 and then 2, 4 on the two that are free.
    assert side_by_side([(6, 3), (4, 1)], 2) == 6
    assert side_by_side([(6, 3), (4, 1)], 9) == 4
    assert side_by_side([(0.0, 0)], 2) == 0


def test_the_command_prints_a_plan_and_writes_nothing(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny |= {"seeds": [0, 1], "complexity": None}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny))
    assert command("run", recipe, "--plan", "--json", "--workers", 2, "--out", out) == 0
    plan = from_json(RunPlan, capsys.readouterr().out, "standard output")
    assert (plan.workers, plan.folder, plan.device) == (2, str(out), "cpu")
    assert plan.seconds < plan.estimate.seconds
    assert command("run", recipe, "--plan", "--out", out) == 0
    shown = capsys.readouterr().out
    for word in ("teacher", "0 of 2", "0 of 6", "time: about", "memory:", "disk:", "still needed"):
        assert word in shown
    assert not out.exists()
    assert "--json needs --plan" in refused(capsys, "run", recipe, "--json", "--out", out)


def test_a_disk_that_is_too_small_is_a_problem(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny))
    need = plan_run(parse_recipe(tiny), folder).estimate.most_disk
    free = [0]
    monkeypatch.setattr(
        "distillens.study.planning.estimate.shutil.disk_usage",
        lambda path: SimpleNamespace(free=free[0]),
    )
    for free[0], status in ((need - 1, 2), (need, 0)):
        problems = plan_run(parse_recipe(tiny), folder).problems
        assert [("checkpoint_every" in problem) for problem in problems] == [True] * (status // 2)
        assert check(recipe, folder).problems == problems
        assert command("run", recipe, "--plan", "--out", folder) == status
    # What the folder holds already is not needed again.
    folder.mkdir()
    (folder / ".lock").write_bytes(b"x" * 1000)
    free[0] = need - 1000
    assert not plan_run(parse_recipe(tiny), folder).problems
