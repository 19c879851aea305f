"""Students spread over Ray tasks: the same end as one by one, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import distillens
from distillens.cli.main import main
from distillens.errors import DeviceError, RecipeError, RunError
from distillens.integrations import ray as workers
from distillens.integrations.ray import (
    _end,
    check_memory,
    ray_workers,
    share_of_a_task,
    train_in_worker,
)
from distillens.progress import Advance
from distillens.study.students import Spread, Student


@pytest.fixture(scope="module")
def spread() -> Iterator[Spread]:
    """Two workers of one thread, for all tests here; Ray believes that there are two GPUs."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", partial(ray.init, num_gpus=2))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_workers(2) as found:
            yield found


@pytest.fixture
def grid(tiny: dict[str, Any]) -> dict[str, Any]:
    """Two seeds of what students may need of each other: generations, and logits of one cache."""
    tiny |= {"seeds": [0, 1], "complexity": None, "deviation": False}
    tiny["data"]["augmentation"] = {"crop": 1}
    tiny["supervisions"].insert(0, {"kind": "self-distillation", "generations": 2})
    return tiny


def digests(folder: Path) -> dict[str, str]:
    return {
        str(cell.parent.relative_to(folder)): json.loads(cell.read_text())["weights_digest"]
        for cell in sorted(folder.rglob("cell.json"))
    }


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        measured = ("seconds", "provenance", "costs")
        return {key: without_times(part) for key, part in value.items() if key not in measured}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def results(folder: Path) -> Any:
    return without_times(json.loads((folder / "results.json").read_text()))


def test_two_workers_end_as_one_process_does(
    grid: dict[str, Any], tmp_path: Path, spread: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    distillens.run(grid, tmp_path / "one")
    logged: list[tuple[int, str]] = []
    monkeypatch.setattr("distillens.study.run_recipe.start_trackers", lambda *arguments: None)
    monkeypatch.setattr(
        "accelerate.Accelerator.log",
        lambda self, values, step: logged.append((step, next(iter(values)).split("/")[0])),
    )
    # Paths of a recipe and of the run count from the driver's folder.
    monkeypatch.chdir(tmp_path)
    distillens.run(grid | {"trackers": ["tensorboard"]}, "two", spread=spread)
    assert len(digests(tmp_path / "one")) == 1 + 2 * (3 + 2)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert [step for step, _ in logged] == list(range(1, 3 * 11 + 1))
    assert len({name for _, name in logged}) == 11


def test_workers_select_the_learning_rates_of_one_process(
    grid: dict[str, Any], tmp_path: Path, spread: Spread
) -> None:
    grid |= {"seeds": [0], "tune": {"learning_rate": [0.02, 0.1]}}
    grid["data"]["validation_size"] = 60
    grid["supervisions"] = [
        {"kind": "self-distillation", "training": {"epochs": 2}},
        {"kind": "one-hot", "training": {"batch_size": 16}},
    ]
    distillens.run(grid, tmp_path / "one")
    distillens.run(grid, tmp_path / "two", spread=spread)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert len(results(tmp_path / "two")["tuning"]["trials"]) == 4


def test_an_interrupted_run_is_taken_up_again(
    grid: dict[str, Any], tmp_path: Path, spread: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillens.integrations.ray.LOOK_EVERY", 0.05)
    grid |= {"seeds": [0, 1, 2], "supervisions": [{"kind": "one-hot"}]}
    grid["student"]["training"]["epochs"] = 60
    distillens.run(grid, tmp_path / "one")
    opened: list[str] = []

    @contextmanager
    def interrupting(title: str, total: int, done: int = 0) -> Iterator[Advance]:
        opened.append(title)
        if len(opened) == 4:
            # The third student is about to begin, so one of the others is finished.
            raise KeyboardInterrupt
        yield lambda steps: None

    with pytest.raises(KeyboardInterrupt):
        distillens.run(grid, tmp_path / "two", progress=interrupting, spread=spread)
    assert opened == ["teacher (mlp)", "no KD, seed 0", "no KD, seed 1", "no KD, seed 2"]
    # No task goes on by itself.
    left = sorted((tmp_path / "two").rglob("epoch-*"))
    time.sleep(1)
    assert sorted((tmp_path / "two").rglob("epoch-*")) == left
    kept = {cell: cell.read_bytes() for cell in (tmp_path / "two").rglob("cell.json")}
    assert len(kept) in (2, 3)
    distillens.run(grid, tmp_path / "two", spread=spread)
    assert {cell: cell.read_bytes() for cell in kept} == kept
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert results(tmp_path / "two") == results(tmp_path / "one")


@pytest.mark.parametrize(
    ("count", "machines", "share"),
    [
        (1, [(8, 0)], (8, 0)),
        (4, [(8, 0)], (2, 0)),
        (16, [(8, 0)], (1, 0)),
        # A task runs on one machine.
        (2, [(8, 0), (16, 0)], (12, 0)),
        (1, [(8, 0), (16, 0)], (16, 0)),
        (2, [(8, 2)], (4, 1)),
        (2, [(8, 4)], (4, 1)),
        (4, [(8, 2)], (2, 0.5)),
        (3, [(8, 2)], (2, 0.5)),
        (3, [(9, 1)], (3, 0.3333)),
        (4, [(8, 1), (8, 1)], (4, 0.5)),
    ],
)
def test_cores_and_gpus_are_shared_out(
    count: int, machines: list[tuple[int, int]], share: tuple[int, float]
) -> None:
    known = [{"CPU": float(cores), "GPU": float(gpus)} for cores, gpus in machines]
    found = share_of_a_task(count, known, on_gpus=share[1] > 0)
    assert found == share
    if found[1]:
        # So many tasks fit on the GPUs, and none is told of a smaller share than it has.
        on_a_gpu = round(1 / found[1])
        assert sum(gpus for _, gpus in machines) * on_a_gpu >= count
        assert on_a_gpu * found[1] <= 1
    assert share_of_a_task(count, known, on_gpus=False)[1] == 0


def test_gpus_that_ray_does_not_know_are_no_reason_to_train_on_cpus() -> None:
    with pytest.raises(RunError, match="Ray knows of none, so its tasks would train on CPUs"):
        share_of_a_task(2, [{"CPU": 8.0}], on_gpus=True)


def test_workers_that_memory_cannot_hold_are_refused() -> None:
    machines = [{"CPU": 8.0, "memory": 5e9}, {"CPU": 8.0, "memory": 3e9}]
    check_memory(3, 2 * 10**9, machines)
    with pytest.raises(RunError, match=r"4 workers need about 8\.0 GB.*has 8\.0 GB.*--workers 3"):
        check_memory(4, 2 * 10**9, machines)
    with pytest.raises(RunError, match="leave --workers out"):
        check_memory(2, 4 * 10**9, machines)
    check_memory(9, 10**12, [{"CPU": 8.0}])


@pytest.mark.usefixtures("spread")
def test_each_task_sees_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")

    def seen(here: Path, folder: Path, number: int, *rest: Any) -> tuple[str | None, int]:
        (folder / str(number)).touch()
        until = time.monotonic() + 60
        # Both run at the same time.
        while number < 2 and len(list(folder.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        return os.environ.get("CUDA_VISIBLE_DEVICES"), rest[-1]

    monkeypatch.setattr(workers, "_train", seen)
    context: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cuda")),
        run=SimpleNamespace(folder=tmp_path),
        trust_code=False,
    )
    submit: Any = workers._task(2, context)
    assert sorted(ray.get([submit(0), submit(1)])) == [("0", 1), ("1", 1)]
    context.accelerator.device = torch.device("cpu")
    submit = workers._task(2, context)
    assert ray.get(submit(2))[1] == 0


def test_a_task_without_a_gpu_trains_on_cpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    monkeypatch.setattr(
        workers, "train_in_worker", lambda *_, **__: os.environ["ACCELERATE_USE_CPU"]
    )
    # Newer versions of Ray show all GPUs to a task that asked for none.
    assert workers._train(Path.cwd(), tmp_path, Student(0, 0), False, 1, 0) == "true"


def test_a_task_whose_machine_has_no_gpu_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"a worker on .* is 'cuda', but torch sees no CUDA"):
        workers._train(Path.cwd(), tmp_path, Student(0, 0), False, 1, 1)


def test_a_second_interruption_leaves_no_task_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    forced: list[tuple[str, bool]] = []
    waits = iter((KeyboardInterrupt, None))

    def wait(tasks: list[str], **_: Any) -> tuple[list[str], list[str]]:
        if interruption := next(waits):
            raise interruption
        return tasks, []

    monkeypatch.setattr(ray, "cancel", lambda task, force=False: forced.append((task, force)))
    monkeypatch.setattr(ray, "wait", wait)
    tasks: Any = ["one", "two"]
    with pytest.raises(KeyboardInterrupt):
        _end(tasks)
    assert forced == [("one", False), ("two", False), ("one", True), ("two", True)]
    assert next(waits, "waited") == "waited"


def test_a_students_error_is_the_same_line(
    grid: dict[str, Any],
    tmp_path: Path,
    spread: Spread,
    capsys: pytest.CaptureFixture[str],
) -> None:
    grid["student"]["training"]["learning_rate"] = 1e30
    grid["supervisions"] = [{"kind": "one-hot"}]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(grid))
    lines = []
    for out, option in (("one", ()), ("two", ("--workers", "2"))):
        with pytest.raises(SystemExit) as stopped:
            main(["run", str(recipe), "--out", str(tmp_path / out), *option])
        assert stopped.value.code == 2
        lines.append(capsys.readouterr().err)
    assert "lower the learning rate" in lines[0]
    assert lines[1] == lines[0]


@pytest.mark.slow
def test_a_run_whose_driver_is_killed_is_taken_up_again(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    grid["seeds"] = [0]
    grid["student"]["training"]["epochs"] = 40
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "two"
    recipe.write_text(yaml.safe_dump(grid))
    command = [sys.executable, "-m", "distillens", "run", str(recipe), "--workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.DEVNULL, env=environment
    )
    until = time.monotonic() + 120
    while not list(out.glob("students/*/*/epoch-0010*")):
        assert time.monotonic() < until
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(list(out.glob("students/*/*/cell.json"))) < len(grid["supervisions"])
    subprocess.run([*command, "--out", str(out)], check=True, env=environment)
    distillens.run(grid, tmp_path / "one")
    assert digests(out) == digests(tmp_path / "one")


def test_a_missing_ray_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distillens.integrations.ray.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main(["run", "digits", "--out", str(tmp_path / "run"), "--workers", "2"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "pip install 'distillens[ray]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_workers_are_refused_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="a launcher has started 2 processes"):
        refused(ray_workers(2))


def refused(manager: AbstractContextManager[Any]) -> None:
    with manager:
        pass


def test_a_worker_that_sees_another_world_is_refused(grid: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a file system that all workers share"):
        train_in_worker(tmp_path / "nothing", Student(0, 0))
    grid["supervisions"] = [{"kind": "one-hot"}]
    distillens.run(grid, tmp_path / "run")
    data = tmp_path / "run" / "data.json"
    data.write_text(json.dumps(json.loads(data.read_text()) | {"fingerprint": "0" * 64}))
    with pytest.raises(RunError, match=r"the data on .* are not those that"):
        train_in_worker(tmp_path / "run", Student(0, 0))
    data.unlink()
