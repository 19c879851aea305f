"""A damaged run folder, given to the real commands: one line and status 2."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cases import digests
from conftest import command, refused

import distillens

TRAINING = {"epochs": 2, "batch_size": 32, "learning_rate": 0.05}
STUDENT = "students/00-no-kd/seed-0"
TAUGHT = "students/01-taught/seed-0"

Damage = Callable[[Path], object]


def content(**more: Any) -> dict[str, Any]:
    return {
        "name": "spoilt",
        "data": {"source": "digits", "train_size": 96, "test_size": 40, "validation_size": 20},
        "teacher": {"model": {"name": "mlp", "hidden": [16]}, "training": TRAINING},
        "student": {"model": {"name": "mlp", "hidden": [8]}, "training": TRAINING},
        "supervisions": [
            {"kind": "one-hot"},
            {"name": "taught", "kind": "offline", "early_stop": "validation"},
        ],
        "complexity": {"examples": 12, "epochs": [0], "random_draws": 1},
        **more,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content()))
    assert command("run", folder / "recipe.yaml", "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a run that a test may spoil; its recipe lies beside it."""
    shutil.copy(finished.parent / "recipe.yaml", tmp_path)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def arguments(verb: str, run: Path) -> list[object]:
    """Return what a user types for a run; ``run`` goes on with it."""
    if verb == "run":
        return ["run", run.parent / "recipe.yaml", "--out", run]
    if verb == "export":
        name, out = ("--supervision", "no KD"), ("--out", run.parent / "export")
        return ["export", run, *name, "--format", "safetensors", *out]
    return [verb, run]


def gone(file: str) -> Damage:
    return lambda run: (run / file).unlink()


def holds(file: str, what: bytes) -> Damage:
    return lambda run: (run / file).write_bytes(what)


def cut(file: str) -> Damage:
    def damage(run: Path) -> None:
        whole = (run / file).read_bytes()
        (run / file).write_bytes(whole[: len(whole) // 2])

    return damage


def other(file: str, **changes: Any) -> Damage:
    """Change values of a JSON file; None takes the key out."""

    def damage(run: Path) -> None:
        values = {**json.loads((run / file).read_text()), **changes}
        kept = {key: value for key, value in values.items() if value is not None}
        (run / file).write_text(json.dumps(kept))

    return damage


def both(*damages: Damage) -> Damage:
    def damage(run: Path) -> None:
        for one in damages:
            one(run)

    return damage


def without_train(run: Path) -> None:
    path = run / STUDENT / "logits.npz"
    with np.load(path) as archive:
        test = archive["test"]
    np.savez(path, test=test)


def unfinished(student: str) -> Damage:
    """Take back that a student is done, so that its training state is read."""
    return gone(f"{student}/cell.json")


def stale_state(**changes: Any) -> Damage:
    def damage(run: Path) -> None:
        (run / STUDENT / "cell.json").unlink()
        path = run / STUDENT / "state.pt"
        torch.save({**torch.load(path, weights_only=True), **changes}, path)

    return damage


def cache_blocks(damage: Callable[[Path], object], suffix: str = ".npy") -> Damage:
    """Damage the cached logits, and let a student be trained anew with them."""

    def spoil(run: Path) -> None:
        shutil.rmtree(run / TAUGHT)
        blocks = list((run / "cache").glob(f"*{suffix}"))
        assert blocks
        for block in blocks:
            damage(block)

    return spoil


def scalar(path: Path) -> None:
    np.save(path, np.float32(1))


def only(run: Path, pattern: str) -> str:
    (found,) = run.glob(pattern)
    return str(found.relative_to(run))


def each(pattern: str, damage: Callable[[str], Damage]) -> Damage:
    """Damage the one file that a pattern finds."""
    return lambda run: damage(only(run, pattern))(run)


DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "table: no recipe": ("table", gone("recipe.yaml"), "no recipe.yaml"),
    "table: no results": ("table", gone("results.json"), "is not finished"),
    "table: results cut": ("table", cut("results.json"), "is not a StudyResult"),
    "table: results empty": ("table", holds("results.json", b""), "is not a StudyResult"),
    "table: results of bytes": ("table", holds("results.json", b"\xff\xfe\0"), "StudyResult"),
    "table: results of a list": ("table", holds("results.json", b"[]"), "is not a StudyResult"),
    "table: no rows": ("table", other("results.json", rows=None), "rows"),
    "table: another schema": ("table", other("results.json", schema_version=99), "version 99"),
    "report: no recipe": ("report", gone("recipe.yaml"), "no recipe.yaml"),
    "report: results cut": ("report", cut("results.json"), "is not a StudyResult"),
    "report: record cut": (
        "report", each("analyses/confidence-*/record.json", cut), "is not a AnalysisRecord",
    ),
    "report: points cut": (
        "report", each("analyses/confidence-*/points-01*-test.npz", cut), "cannot be read",
    ),
    "report: points of zeros": (
        "report",
        each("analyses/confidence-*/points-01*-test.npz", lambda f: holds(f, bytes(99))),
        "cannot be read",
    ),
    "export: no recipe": ("export", gone("recipe.yaml"), "no recipe.yaml"),
    "export: recipe cut": ("export", holds("recipe.yaml", b"name: [a\n"), "cannot be read"),
    "export: recipe of bytes": ("export", holds("recipe.yaml", b"\xff\0"), "cannot be read"),
    "export: recipe of a list": ("export", holds("recipe.yaml", b"- a"), "is no recipe"),
    "export: recipe without student": (
        "export", holds("recipe.yaml", b"name: a"), "is no recipe",
    ),
    "export: results cut": ("export", cut("results.json"), "is not a StudyResult"),
    "export: no data": ("export", gone("data.json"), "data.json is missing; run"),
    "export: data cut": ("export", cut("data.json"), "data.json cannot be read"),
    "export: classes a number": ("export", other("data.json", classes=3), "data.json is damaged"),
    "export: shape a word": ("export", other("data.json", input_shape="x"), "data.json is damaged"),
    "export: normalisation empty": (
        "export", other("data.json", normalisation={}), "data.json is damaged",
    ),
    "export: normalisation of words": (
        "export", other("data.json", normalisation={"mean": ["a"], "deviation": [1]}),
        "data.json is damaged",
    ),
    "export: normalisation too long": (
        "export", other("data.json", normalisation={"mean": [0, 0], "deviation": [1, 1]}),
        "data.json is damaged",
    ),
    "export: no checkpoint": ("export", gone(f"{STUDENT}/epoch-0002.safetensors"), "is missing"),
    "export: checkpoint cut": ("export", cut(f"{STUDENT}/epoch-0002.safetensors"), "is missing or"),
    "export: no logits": ("export", gone(f"{STUDENT}/logits.npz"), "cannot be read"),
    "export: logits cut": ("export", cut(f"{STUDENT}/logits.npz"), "cannot be read"),
    "export: logits without train": ("export", without_train, "lacks train or test"),
    "run: recipe cut": ("run", holds("recipe.yaml", b"name: [a\n"), "cannot be read"),
    "run: recipe empty": ("run", holds("recipe.yaml", b""), "is no recipe"),
    "run: data cut": ("run", cut("data.json"), "cannot be read"),
    "run: results cut": ("run", cut("results.json"), "is not a StudyResult"),
    "run: teacher's cell cut": ("run", cut("teacher/cell.json"), "is not a Cell"),
    "run: teacher's cell of bytes": ("run", holds("teacher/cell.json", b"\xff"), "is not a Cell"),
    "run: teacher's logits gone": (
        "run",
        both(gone("teacher/logits.npz"), each("analyses/confidence-*/record.json", gone)),
        "cannot be read",
    ),
    "run: student's cell cut": ("run", cut(f"{STUDENT}/cell.json"), "is not a Cell"),
    "run: student's logits cut": (
        "run", both(gone("results.json"), cut(f"{STUDENT}/logits.npz")), "cannot be read",
    ),
    "run: cost cut": (
        "run", both(gone("results.json"), cut("cost-student.json")), "is not a NetworkCost",
    ),
    "run: record cut": (
        "run", each("analyses/complexity-*/record.json", cut), "is not a AnalysisRecord",
    ),
    "run: state cut": (
        "run", both(unfinished(STUDENT), cut(f"{STUDENT}/state.pt")), "no readable checkpoint",
    ),
    "run: state of a list": (
        "run", both(unfinished(STUDENT), lambda run: torch.save([], run / STUDENT / "state.pt")),
        "no training state",
    ),
    "run: state of a word": ("run", stale_state(epoch="two"), "state.pt"),
    "run: state of an epoch too many": ("run", stale_state(epoch=-1), "state.pt|epoch"),
    "run: state without optimizer": ("run", stale_state(optimizer=3), "another training"),
    "run: state without random numbers": ("run", stale_state(random=[]), "another training"),
    "run: last checkpoint gone": (
        "run", both(unfinished(STUDENT), gone(f"{STUDENT}/epoch-0002.safetensors")), "is missing or",
    ),
    "run: last checkpoint cut": (
        "run", both(unfinished(STUDENT), cut(f"{STUDENT}/epoch-0002.safetensors")), "is missing or",
    ),
    "run: history cut": (
        "run", both(unfinished(STUDENT), cut(f"{STUDENT}/history.jsonl")), "history.jsonl",
    ),
    "run: history of bytes": (
        "run",
        both(unfinished(STUDENT), holds(f"{STUDENT}/history.jsonl", b"\xff\n\xff\n")),
        "history.jsonl is damaged",
    ),
    "run: validation losses cut": (
        "run", both(unfinished(TAUGHT), holds("teacher/validation-losses.json", b"[1.")),
        "validation-losses.json",
    ),
    "run: validation losses of a word": (
        "run", both(unfinished(TAUGHT), holds("teacher/validation-losses.json", b'{"a": 1}')),
        "validation-losses.json",
    ),
    "run: too few validation losses": (
        "run", both(unfinished(TAUGHT), holds("teacher/validation-losses.json", b"[1.0]")),
        "validation-losses.json",
    ),
    "run: a checkpoint that teaches gone": (
        "run",
        both(
            lambda run: shutil.rmtree(run / TAUGHT),
            gone("teacher/epoch-0001.safetensors"),
            gone("teacher/epoch-0002.safetensors"),
        ),
        r"epoch-0002\.safetensors.*(missing|no checkpoint)",
    ),
    "run: a checkpoint that is measured gone": (
        "run",
        both(each("analyses/complexity-*/record.json", gone), gone(f"{STUDENT}/epoch-0000.safetensors")),
        r"no checkpoint .*epoch-0000",
    ),
    "run: cached logits empty": (
        "run", cache_blocks(lambda path: path.write_bytes(b"")), "is damaged",
    ),
    "run: cached logits no array": (
        "run", cache_blocks(lambda path: path.write_bytes(b"PK\3\4")), "is damaged",
    ),
    "run: cached logits a number": ("run", cache_blocks(scalar), "is damaged|holds"),
    "run: cached logits of seven classes": (
        "run", cache_blocks(lambda path: np.save(path, np.zeros((96, 7), np.float32))),
        "damaged|same classes|holds",
    ),
    "run: cached logits of NaN": (
        "run", cache_blocks(lambda path: np.save(path, np.full((96, 10), np.nan, np.float32))),
        "is damaged|NaN",
    ),
    "run: cached logits undescribed": (
        "run", cache_blocks(lambda path: path.write_text("["), ".json"), "is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("verb", "damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_is_one_line(
    copied: Path, capsys: pytest.CaptureFixture[str], verb: str, damage: Damage, message: str
) -> None:
    damage(copied)
    line = refused(capsys, *arguments(verb, copied))
    assert re.search(message, line), line


@pytest.mark.parametrize(
    "file",
    [
        "results.json",
        "data.json",
        "cost-student.json",
        "teacher/cell.json",
        "teacher/validation-losses.json",
        f"{STUDENT}/cell.json",
        f"{STUDENT}/logits.npz",
        f"{STUDENT}/state.pt",
    ],
)
def test_what_the_line_advises_brings_the_run_back(
    copied: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    before = digests(copied)
    holds(file, b"{")(copied)
    if file.startswith("cost") or file.endswith("logits.npz"):
        # The results of a finished training are not written again, so that these are not read.
        (copied / "results.json").unlink()
    if file.endswith(("state.pt", "losses.json")):
        unfinished(TAUGHT if "losses" in file else STUDENT)(copied)
    line = refused(capsys, *arguments("run", copied))
    named = copied / file
    if "delete its folder" in line:
        shutil.rmtree(named.parent)
    else:
        advised = re.search(r"delete (\S+)", line)
        assert advised, line
        Path(named if advised[1] == "it" else advised[1]).unlink()
    assert command(*arguments("run", copied)) == 0
    assert digests(copied) == before


@pytest.mark.parametrize("verb", ["run", "table", "report", "export"])
def test_a_whole_run_is_taken(copied: Path, verb: str) -> None:
    """The table above damages one thing each in something that works."""
    assert command(*arguments(verb, copied)) == 0


def teacher_of(**data: Any) -> Callable[[Path], Path]:
    """Return what trains a teacher elsewhere on other data."""

    def make(run: Path) -> Path:
        elsewhere = content(complexity=None, deviation=False)
        elsewhere["data"] |= data
        distillens.run(elsewhere, run.parent / "elsewhere")
        return run.parent / "elsewhere"

    return make


def spoilt(*damages: Damage) -> Callable[[Path], Path]:
    def make(run: Path) -> Path:
        both(*damages)(run)
        return run

    return make


def without_teacher(run: Path) -> Path:
    np.savez(run.parent / "logits.npz", train=np.zeros((1797, 10)), test=np.zeros((1797, 10)))
    given = content(teacher={"logits": str(run.parent / "logits.npz"), "allow_weak": True})
    given |= {"supervisions": [{"kind": "one-hot"}], "complexity": None, "deviation": False}
    distillens.run(given, run.parent / "given")
    return run.parent / "given"


def swapped(run: Path) -> None:
    shutil.copy(run / "teacher/epoch-0001.safetensors", run / "teacher/epoch-0002.safetensors")


TEACHERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda run: run / "none", "is no run folder"),
    "a file": (lambda run: run / "recipe.yaml", "is no run folder"),
    "of other data": (teacher_of(seed=1), "are not those that"),
    "with a given teacher": (without_teacher, "trained no teacher"),
    "unfinished": (spoilt(gone("teacher/cell.json")), "is not finished"),
    "recipe damaged": (spoilt(holds("recipe.yaml", b"name: [a\n")), "no readable YAML"),
    "data damaged": (spoilt(cut("data.json")), "data.json cannot be read"),
    "cell damaged": (spoilt(cut("teacher/cell.json")), "is not a Cell"),
    "checkpoint gone": (
        spoilt(gone("teacher/epoch-0002.safetensors")), "epoch-0002.safetensors is missing or",
    ),
    "checkpoint cut": (
        spoilt(cut("teacher/epoch-0002.safetensors")), "epoch-0002.safetensors is missing or",
    ),
    "checkpoint swapped": (spoilt(swapped), "epoch-0002.safetensors is missing or"),
    "logits gone": (spoilt(gone("teacher/logits.npz")), "logits.npz cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), TEACHERS.values(), ids=TEACHERS)
def test_another_run_that_cannot_teach_is_one_line(
    copied: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], message: str
) -> None:
    taught = content(teacher={"run": str(make(copied))}, complexity=None)
    taught["supervisions"] = [{"kind": "one-hot"}, {"kind": "offline", "temperature": 4}]
    (copied.parent / "taught.yaml").write_text(yaml.safe_dump(taught))
    capsys.readouterr()
    line = refused(capsys, "run", copied.parent / "taught.yaml", "--out", copied.parent / "taught")
    assert re.search(message, line), line
