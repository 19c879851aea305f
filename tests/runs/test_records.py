"""Analyses are records of their own, runs can grow, and runs of version 0.1 can be opened."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import command, refused

import distillens
from distillens.analyses.finished import finished_run
from distillens.analyses.measure import measure
from distillens.errors import RecipeError, RunError
from distillens.measures import accuracy_estimate
from distillens.report import write_report
from distillens.results.complexity import ComplexityCurves
from distillens.results.training import TEACHER, NetworkId, StudyResult
from distillens.runs.layout import Run
from distillens.runs.open import OpenRun
from distillens.study.outcome import level_after

FIXTURES = Path(__file__).parents[1] / "fixtures"
"""A run of the demo by commit 184d4e4 (version 0.1), without weights, cache and plotted points."""


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return {
        "name": "records",
        "seeds": [0],
        "data": {"source": "digits", "train_size": 120, "test_size": 100, "validation_size": 50},
        "teacher": {
            "model": {"name": "mlp", "hidden": [16]},
            "training": {"epochs": 2, "batch_size": 32, "learning_rate": 0.05},
        },
        "student": {
            "model": {"name": "mlp", "hidden": [8]},
            "training": {"epochs": 2, "batch_size": 32, "learning_rate": 0.05},
        },
        "supervisions": [{"kind": "one-hot"}, {"kind": "offline", "name": "imitation"}],
        "complexity": {"examples": 20, "epochs": [0, 2], "random_draws": 2},
        "deviation": False,
    }


@pytest.fixture(scope="module")
def finished(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records") / "run"
    distillens.run(content, folder)
    return folder


def copied(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


def unchanged(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("recipe.yaml", "results.json")}


def test_measuring_again_adds_a_record_and_changes_nothing_else(
    finished: Path, tmp_path: Path
) -> None:
    folder = copied(finished, tmp_path / "run")
    before = unchanged(folder)
    (first,) = OpenRun.open(folder).records("complexity")
    first_text = (first.folder / "record.json").read_bytes()
    second = measure(finished_run(folder), "complexity", {"examples": 30})
    assert second.result(ComplexityCurves).examples == 30
    # Settings that are not named are those of the recipe.
    assert second.result(ComplexityCurves).random_draws == 2
    assert unchanged(folder) == before
    assert (first.folder / "record.json").read_bytes() == first_text
    assert [one.name for one in OpenRun.open(folder).records()] == [first.name, second.name]
    page = write_report(folder).read_text(encoding="utf-8")
    assert "30 test examples" in page
    assert f"earlier records {first.name}" in page
    # The same settings again are the record that is there.
    written = (second.folder / "record.json").stat().st_mtime_ns
    assert measure(finished_run(folder), "complexity", {"examples": 30}).name == second.name
    assert (second.folder / "record.json").stat().st_mtime_ns == written


def test_a_record_states_settings_networks_and_its_own_provenance(finished: Path) -> None:
    run = OpenRun.open(finished)
    (record,) = run.records("complexity")
    made = record.content
    assert made.settings["examples"] == 20
    assert [one.id for one in made.networks] == [NetworkId(TEACHER, 1000), NetworkId(0, 0)]
    assert [one.weights_digest for one in made.networks] == [
        run.cell(one.id).weights_digest for one in made.networks
    ]
    assert made.provenance.started >= run.result.provenance.started
    assert made.provenance.data_fingerprint == run.data["fingerprint"]


def test_networks_are_found_by_identity_and_by_both_names_of_their_supervision(
    finished: Path,
) -> None:
    run = OpenRun.open(finished)
    assert run.students("imitation") == (NetworkId(1, 0),)
    assert run.students("no KD") == run.students("no-kd") == (NetworkId(0, 0),)
    assert run.network(NetworkId(1, 0)).folder.parent.name == "01-imitation"
    assert run.network(NetworkId(TEACHER, 0)).folder.name == "teacher"
    with pytest.raises(RecipeError, match="did you mean 'imitation'"):
        run.students("imitaton")


def test_seeds_and_supervisions_are_added_and_other_networks_stay(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    folder = copied(finished, tmp_path / "run")
    before = unchanged(folder)
    old = {cell.id: cell.weights_digest for cell in OpenRun.open(folder).result.cells}
    further = {"kind": "offline", "temperature": 4}
    grown = {
        **content,
        "seeds": [0, 1],
        "supervisions": [*content["supervisions"], further],
    }
    result = distillens.run(grown, folder)
    run = OpenRun.open(folder)
    assert run.result == result
    assert unchanged(folder) == before
    now = {cell.id: cell.weights_digest for cell in result.cells}
    assert {key: now[key] for key in old} == old
    assert set(run.students()) == {NetworkId(k, seed) for k in range(3) for seed in (0, 1)}
    (addition,) = run.additions
    added = (NetworkId(0, 1), NetworkId(1, 1), NetworkId(2, 0), NetworkId(2, 1))
    assert addition.students == added
    assert addition.more_seeds
    # The weights are those of a run that had all seeds from the beginning.
    whole = distillens.run({**grown, "complexity": None}, tmp_path / "whole")
    assert {cell.id: cell.weights_digest for cell in whole.cells} == now
    page = write_report(folder).read_text(encoding="utf-8")
    assert "after earlier results had been seen" in page
    assert "97.5 %" in page
    # Another addition goes on from there, and the first recipe trains nothing.
    third = distillens.run({**grown, "seeds": [0, 1, 2]}, folder)
    assert len(OpenRun.open(folder).additions) == 2
    assert distillens.run(content, folder) == third
    assert unchanged(folder) == before


def test_a_supervision_without_further_seeds_leaves_the_level_of_intervals(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    folder = copied(finished, tmp_path / "run")
    grown = {**content, "supervisions": [*content["supervisions"], {"kind": "online"}]}
    result = distillens.run(grown, folder)
    assert {row.accuracy.interval.level for row in result.rows if row.accuracy.interval} == {0.95}
    page = write_report(folder).read_text(encoding="utf-8")
    assert "because seeds were added" not in page


@pytest.mark.parametrize(("looks", "level"), [(0, 0.95), (1, 0.975), (2, 0.9875)])
def test_the_errors_of_all_intervals_after_additions_sum_to_at_most_five_percent(
    looks: int, level: float
) -> None:
    assert level_after([True] * looks + [False]) == pytest.approx(level)
    assert sum(1 - level_after([True] * k) for k in range(1, 40)) <= 0.05 + 1e-12


def test_intervals_after_an_addition_have_its_level(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    folder = copied(finished, tmp_path / "run")
    result = distillens.run({**content, "seeds": [0, 1]}, folder)
    for row in result.rows[1:]:
        cells = [cell for cell in result.cells if cell.position == row.position]
        accuracies = [cell.test_accuracy for cell in cells]
        assert row.accuracy == accuracy_estimate(accuracies, cells[0].test_count, 0.975)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1]}, r"seeds is \[0\] there and \[1\] here"),
        ({"seeds": [0, 1], "loss": "squared-error"}, "loss is 'cross-entropy' there"),
        (
            {"supervisions": [{"kind": "one-hot"}, {"kind": "offline", "temperature": 2}]},
            r"supervisions\.1\.",
        ),
        ({"supervisions": [{"kind": "one-hot"}]}, r"supervisions\.1\."),
    ],
)
def test_what_is_no_addition_is_refused(
    content: dict[str, Any], finished: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        distillens.run({**content, **change}, finished)


@pytest.mark.parametrize("folder", ["run", "01-run", "2024-06-01/12-demo"])
def test_the_position_of_a_network_does_not_depend_on_the_name_of_the_run(folder: str) -> None:
    run = Run(Path(folder))
    assert run.teacher.position == TEACHER
    student = run.student(3, "online τ=4", 0)
    assert (student.position, student.generation(1).position) == (3, 3)
    assert run.trial(2, "offline", 0.01).position == 2


def test_nothing_is_added_to_a_run_that_is_not_finished(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    folder = copied(finished, tmp_path / "run")
    path = folder / "results.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stored, "open_cells": ["imitation, seed 0"]}), encoding="utf-8")
    with pytest.raises(RunError, match="is not finished, so nothing can be added"):
        distillens.run({**content, "seeds": [0, 1]}, folder)
    assert not (folder / "additions").exists()


def test_a_title_of_version_0_1_that_the_run_lacks_is_refused(tmp_path: Path) -> None:
    with tarfile.open(FIXTURES / "demo-184d4e4.tar.xz") as files:
        files.extractall(tmp_path, filter="data")
    path = tmp_path / "demo" / "results.json"
    path.write_text(path.read_text(encoding="utf-8").replace("online τ=4", "onlin τ=4"), "utf-8")
    with pytest.raises(RunError, match="names the supervision 'onlin τ=4'"):
        OpenRun.open(tmp_path / "demo")


def test_a_run_of_version_0_1_opens_and_reports(tmp_path: Path) -> None:
    with tarfile.open(FIXTURES / "demo-184d4e4.tar.xz") as files:
        files.extractall(tmp_path, filter="data")
    folder = tmp_path / "demo"
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    before = unchanged(folder)
    run = OpenRun.open(folder)
    assert [row.position for row in run.result.rows] == [TEACHER, 0, 1, 2, 3, 4]
    assert [row.accuracy.value for row in run.result.rows] == [
        row["accuracy"]["value"] for row in stored["rows"]
    ]
    (curves,) = run.records("complexity")
    assert curves.result(ComplexityCurves).examples == 256
    page = write_report(folder).read_text(encoding="utf-8")
    assert "256 test examples" in page
    assert unchanged(folder) == before


def test_results_of_an_unknown_schema_are_refused_in_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(finished, tmp_path / "run")
    path = folder / "results.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    for version, age in ((0, "an earlier"), (StudyResult.SCHEMA_VERSION + 1, "a later")):
        path.write_text(json.dumps({**stored, "schema_version": version}), encoding="utf-8")
        line = refused(capsys, "table", folder)
        assert f"schema version {version} of StudyResult, which {age} version" in line


def test_runs_lists_records_and_deletes_one(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(finished, tmp_path / "runs" / "run")
    (record,) = OpenRun.open(folder).records()
    assert command("runs", tmp_path / "runs", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in listed["runs"][0]["records"]] == [str(record.folder)]
    assert "has no record" in refused(capsys, "runs", "--delete", folder / "analyses" / "none")
    assert command("runs", "--delete", record.folder) == 0
    assert not record.folder.exists()
    assert OpenRun.open(folder).records() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "RUN"], "measure RUN confidence"),
        (["complexity", "RUN", "examples=64"], "measure RUN complexity"),
        (["settings", "RUN", "--markdown"], "compare RUN"),
        (["language", "sst2-language"], "run RECIPE"),
        (["export", "RUN", "--student", "no-kd"], "--supervision"),
        (["eigenspace", "RUN", "--student", "no-kd"], "--supervision"),
        (["eigenspace", "RUN", "--seed", "3"], "--pair-seed"),
        (["measure", "RUN", "complexty"], "did you mean 'complexity'"),
        (["measure", "RUN", "complexity", "exmples=3"], "did you mean 'examples'"),
        (["measure", "RUN", "complexity", "examples=x"], "setting examples of complexity is 'x'"),
        (["measure", "RUN", "complexity", "--supervision", "imitation"], "on labels alone"),
        (["measure", "RUN", "complexity", "--seed", "7"], "no student of seed 7"),
        (["measure", "RUN", "complexity", "--plan", "--json"], "not both"),
    ],
)
def test_removed_names_and_wrong_settings_are_named_in_one_line(
    finished: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(finished) if one == "RUN" else one for one in arguments]
    assert message in refused(capsys, *given)


def test_json_of_a_measurement_stands_alone_on_the_output(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(finished, tmp_path / "run")
    assert command("measure", folder, "complexity", "examples=25", "ridge=0.5", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["ridge"] == 0.5
    point = record["result"]["points"][0]["value"]
    assert point["ridge"] > 0


def test_removed_attributes_of_the_results_name_their_replacement(finished: Path) -> None:
    result = OpenRun.open(finished).result
    with pytest.raises(AttributeError, match=r'use OpenRun.open\(folder\).records\("complexity"\)'):
        _ = result.complexity  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(result, "deviations")
    with pytest.raises(AttributeError, match="has no attribute 'acuracy'"):
        _ = result.acuracy  # pyright: ignore[reportAttributeAccessIssue]


def test_moved_data_are_found_where_the_user_says(finished: Path) -> None:
    with pytest.raises(RecipeError, match=r"path"):
        finished_run(finished, data_path=Path("/nowhere"))
