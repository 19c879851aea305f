"""The audit of a run against what is known of it, over training, at a switch, and by kernels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Measurements, command, measure_all, refused

import distillens
from distillens.analyses.compare import compare
from distillens.data import load_splits
from distillens.errors import CheckpointError, RecipeError, RunError
from distillens.measures.confidence import CheckpointMeter
from distillens.results.base import from_json
from distillens.results.comparison import Settings
from distillens.results.confidence import (
    Confidence,
    StudentAudit,
    StudentOverTraining,
    Switch,
)
from distillens.results.records import AnalysisRecord
from distillens.results.training import Cell
from distillens.runs.layout import Run
from distillens.runs.open import OpenRun
from distillens.runs.read import read_data
from distillens.runs.records import StoredRecord

EPOCHS = 4
TRAINING = {"epochs": EPOCHS, "batch_size": 32, "learning_rate": 0.05}


def recipe(**more: Any) -> dict[str, Any]:
    return {
        "name": "audited",
        "data": {"source": "digits", "train_size": 250, "test_size": 150, "label_noise": 0.2},
        "teacher": {"model": {"name": "mlp", "hidden": [16]}, "training": TRAINING},
        "student": {"model": {"name": "mlp", "hidden": [16]}, "training": TRAINING},
        "supervisions": [
            {"kind": "one-hot"},
            {"kind": "offline", "temperature": 4},
            {
                "kind": "switched", "name": "switched", "at": 0.5,
                "first": {"kind": "one-hot"}, "then": {"kind": "offline", "temperature": 4},
            },
        ],
        "complexity": None,
        **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "run"
    distillens.run(recipe(seeds=[0, 1]), folder)
    return folder


@pytest.fixture(scope="module")
def both(finished: Path) -> Measurements:
    return measure_all(finished, seed=0, over_training=250, resamples=100)


@pytest.fixture(scope="module")
def audited(both: Measurements) -> dict[str, StudentAudit]:
    return {student.student: student for student in both.confidence.students}


@pytest.fixture(scope="module")
def ways(both: Measurements) -> dict[str, StudentOverTraining]:
    return checkpoints(both)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def checkpoints(audit: Measurements) -> dict[str, StudentOverTraining]:
    assert audit.over_training is not None
    return {student.student: student for student in audit.over_training.students}


def measured(run: Path) -> tuple[StoredRecord, Confidence]:
    """Return what the run measured at its end: the first record of the analysis."""
    record = OpenRun.open(run).records("confidence")[0]
    return record, record.result(Confidence)


def student_folder(run: Path, place: str = "01-offline-t4", seed: int = 0) -> Path:
    return run / "students" / place / f"seed-{seed}"


def test_a_run_measures_every_student_and_seed_as_the_audit_does(
    finished: Path, audited: dict[str, StudentAudit]
) -> None:
    assert list(audited) == ["no KD", "offline τ=4", "switched"]
    record, kept = measured(finished)
    assert [(one.student, one.seed) for one in kept.students] == [
        (name, seed) for name in audited for seed in (0, 1)
    ]
    for student in kept.students:
        assert set(student.points) == {"train", "test"}
        assert record.arrays(student.points["train"])["mislabelled"].sum() == 50
        if student.seed == 0:
            for split, wanted in zip(
                student.audit.splits, audited[student.student].audit.splits, strict=True
            ):
                assert split.ledger == wanted.ledger
                slope = wanted.exaggeration.slope_low.ordinary.value
                assert split.exaggeration.slope_low.ordinary.value == slope
                assert split.fidelity.agreement == wanted.fidelity.agreement


def test_references_are_those_of_the_run(audited: dict[str, StudentAudit]) -> None:
    def names(student: StudentAudit) -> list[str]:
        return [one.name for one in student.audit.splits[0].exaggeration.slope_all.references]

    assert names(audited["no KD"]) == []
    assert names(audited["switched"]) == ["one-hot student"]


def test_who_is_right_is_judged_by_true_labels(
    finished: Path, audited: dict[str, StudentAudit], ways: dict[str, StudentOverTraining]
) -> None:
    student = audited["offline τ=4"]
    train, test = student.audit.splits
    changed = {one["index"]: one for one in read_data(Run(finished))["changed_labels"]}
    assert train.exaggeration.mislabelled is not None
    assert train.exaggeration.mislabelled.examples == len(changed) == 50
    assert test.exaggeration.mislabelled is None
    with np.load(student_folder(finished) / "logits.npz") as stored:
        says_N = stored["train"].argmax(axis=1)
    splits = distillens.study.read_recipe(finished / "recipe.yaml").data
    loaded = load_splits(splits)
    index = loaded.train.indices.tolist()
    right = [says_N[row] == changed[i]["before"] for row, i in enumerate(index) if i in changed]
    given = [says_N[row] == changed[i]["after"] for row, i in enumerate(index) if i in changed]
    last = ways[student.student].points[-2]
    assert (last.split, last.epoch) == ("train", EPOCHS)
    assert last.mislabelled_right is not None
    assert last.mislabelled_given is not None
    assert last.mislabelled_right.value == pytest.approx(np.mean(right))
    assert last.mislabelled_given.value == pytest.approx(np.mean(given))
    shown = train.calibration[1]
    cell = from_json(Cell, (student_folder(finished) / "cell.json").read_bytes(), "cell.json")
    assert shown.accuracy_on_given_labels is not None
    assert shown.accuracy_on_given_labels.value == pytest.approx(cell.train_accuracy)
    true = np.mean(
        [
            says_N[row] == (changed[i]["before"] if i in changed else label)
            for row, (i, label) in enumerate(zip(index, loaded.train.labels.tolist(), strict=True))
        ]
    )
    assert shown.accuracy.value == pytest.approx(true)
    assert test.calibration[1].accuracy_on_given_labels is None
    parts = [part for part in train.dissection if part.mislabelled]
    assert sum(part.examples for part in parts) == 50
    assert any("judged by the true labels" in note for note in student.notes)


def test_checkpoints_end_where_the_audit_is(
    audited: dict[str, StudentAudit], ways: dict[str, StudentOverTraining]
) -> None:
    for student in audited.values():
        for split in student.audit.splits:
            (last,) = (
                point
                for point in ways[student.student].points
                if (point.split, point.epoch) == (split.split, EPOCHS)
            )
            slope = split.exaggeration.slope_all.ordinary.value
            assert last.slope_all.value == pytest.approx(slope, abs=1e-4)
            assert last.underfit.value == pytest.approx(split.exaggeration.underfit.share.value)
            assert last.net_gain.value == pytest.approx(split.ledger.all.net_gain.value)


def test_a_switched_student_is_the_first_one_until_the_switch(
    ways: dict[str, StudentOverTraining],
) -> None:
    switched, labels = ways["switched"], ways["no KD"]
    assert switched.switch == Switch("no KD", "offline τ=4", 2.0, 2.0)
    assert labels.switch is None
    assert labels.changes == ()
    for one, other in zip(switched.points, labels.points, strict=True):
        assert (one == other) == (one.epoch <= 2)
    # What is called a change is the difference of two points of the curve.
    curve = {(p.split, p.epoch): p for p in switched.points}
    for change in switched.changes:
        at, soon, last = (
            getattr(curve[change.split, epoch], change.quantity).value for epoch in (2, 3, 4)
        )
        assert change.before == pytest.approx(at)
        assert change.soon.value == pytest.approx(soon - at, abs=1e-12)
        assert change.last.value == pytest.approx(last - at, abs=1e-12)
    assert {change.quantity for change in switched.changes} >= {"underfit", "mislabelled_right"}


def planted(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    teacher = rng.normal(size=(400, 2)) * 2
    return teacher, rng.integers(2, size=400)


def test_a_planted_switch_has_the_planted_change() -> None:
    teacher, labels = planted(np.random.default_rng(0))
    meter = CheckpointMeter("test", teacher, labels, resamples=100)
    for epoch, factor in enumerate((1.0, 1.0, 3.0, 2.0)):
        point = meter.measure(epoch, factor * teacher)
        # Two classes: φ is the difference of the logits, so the slope is the factor.
        assert point.slope_all.value == pytest.approx(factor)
        assert point.slope_low.value == pytest.approx(factor)
        assert point.agreement.value == 1
        assert point.net_gain.value == 0
    changes = {c.quantity: c for c in meter.changes(Switch("a", "b", 1.5, 1.5))}
    assert changes["slope_low"].before == pytest.approx(1)
    assert changes["slope_low"].soon.value == pytest.approx(2)
    assert changes["slope_low"].last.value == pytest.approx(1)
    assert changes["slope_low"].direction == "rose"
    assert changes["accuracy"].direction == "no clear change"
    # A window counts as passed at its end; without a checkpoint on each side there is no change.
    assert meter.changes(Switch("a", "b", 1.5, 2.5))[1].soon.value == pytest.approx(1)
    assert meter.changes(Switch("a", "b", 2.5, 3.5)) == ()


def test_a_student_that_is_its_teacher_obeys(copied: Path) -> None:
    teacher, student = copied / "teacher", student_folder(copied)
    for path in teacher.glob("epoch-*.safetensors"):
        shutil.copy(path, student)
    shutil.copy(teacher / "logits.npz", student)
    results = json.loads((copied / "results.json").read_text())
    digest = results["cells"][0]["weights_digest"]
    for cell in results["cells"]:
        if (cell["supervision"], cell["seed"]) == ("offline τ=4", 0):
            cell["weights_digest"] = digest
    (copied / "results.json").write_text(json.dumps(results))
    audit = measure_all(
        copied, student="offline-t4", seed=0, over_training=100, kernel_examples=8, resamples=100
    )
    (found,) = audit.confidence.students
    for split in found.audit.splits:
        assert split.exaggeration.slope_all.ordinary.value == pytest.approx(1)
        assert split.ledger.departures == 0
        assert split.fidelity.identical
    for point in checkpoints(audit)["offline τ=4"].points[-2:]:
        assert point.slope_all.value == pytest.approx(1, abs=1e-4)
        assert point.agreement.value == 1
    assert audit.kernels is not None
    own, labels = audit.kernels.students[0].likenesses
    assert (own.who, labels.who) == ("student", "one-hot student")
    assert own.ntk_similarity.value == pytest.approx(1, abs=1e-5)
    assert own.centred_alignment.value == pytest.approx(1, abs=1e-5)
    assert labels.ntk_similarity.value < 0.99


def test_another_teacher_is_a_reference(finished: Path, tmp_path: Path) -> None:
    only = [{"kind": "one-hot"}]
    teacher = {**recipe()["teacher"], "seed": 7}
    other = tmp_path / "other"
    distillens.run(recipe(name="other", teacher=teacher, supervisions=only), other)
    audit = measure_all(
        finished, student="offline τ=4", seed=1, other_teacher_run=other, over_training=0,
        kernel_examples=0, resamples=100,
    )  # fmt: skip
    (student,) = audit.confidence.students
    assert (student.seed, audit.over_training, audit.kernels) == (1, None, None)
    references = student.audit.splits[1].exaggeration.slope_all.references
    assert [one.name for one in references] == ["one-hot student", "other teacher"]
    assert audit.confidence.other_teacher == "other"
    with pytest.raises(RunError, match="this run's own teacher"):
        measure_all(finished, other_teacher_run=finished, over_training=0, kernel_examples=0)
    smaller = {**recipe()["data"], "train_size": 200}
    distillens.run(recipe(data=smaller, supervisions=only), tmp_path / "smaller")
    with pytest.raises(RunError, match="the data of this run are not those"):
        measure_all(finished, other_teacher_run=tmp_path / "smaller")
    with pytest.raises(RunError, match="one-hot students only"):
        compare([other])


def test_squared_error_and_two_classes(tmp_path: Path) -> None:
    groups = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    data = {"source": "digits", "train_size": 150, "test_size": 100, "groups": groups}
    distillens.run(recipe(data=data, loss="squared-error"), tmp_path / "run")
    audit = measure_all(
        tmp_path / "run", student="switched", over_training=50, kernel_examples=4, resamples=100
    )
    (student,) = audit.confidence.students
    assert [(one.role, one.kind) for one in student.audit.kinds[:2]] == [
        ("teacher", "logits"), ("student", "probabilities"),
    ]  # fmt: skip
    assert any("squared error" in note for note in student.notes)
    assert all(
        np.isfinite(point.slope_all.value) for point in checkpoints(audit)["switched"].points
    )


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda run: (run / "results.json").unlink(), RunError, "is not finished"),
        (
            lambda run: [path.unlink() for path in student_folder(run).glob("epoch-*")],
            RunError,
            "no checkpoint of epoch 4",
        ),
        (
            lambda run: shutil.copy(
                student_folder(run) / "epoch-0001.safetensors",
                student_folder(run) / "epoch-0004.safetensors",
            ),
            CheckpointError,
            "not what cell.json describes",
        ),
        (
            lambda run: shutil.copy(
                student_folder(run, seed=1) / "logits.npz", student_folder(run) / "logits.npz"
            ),
            CheckpointError,
            "gives other outputs than the run stored",
        ),
        (
            lambda run: (run / "data.json").write_text(
                (run / "data.json").read_text().replace('"fingerprint": "', '"fingerprint": "0')
            ),
            RunError,
            "are not those that",
        ),
    ],
)
def test_a_run_that_was_spoilt_is_refused(
    spoil: Any, error: type[Exception], words: str, copied: Path
) -> None:
    spoil(copied)
    with pytest.raises(error, match=words):
        measure_all(copied, student="offline τ=4", over_training=50, kernel_examples=0)


def test_open_networks_are_refused(copied: Path) -> None:
    result = json.loads((copied / "results.json").read_text())
    result["open_cells"] = ["offline τ=4, seed 0"]
    (copied / "results.json").write_text(json.dumps(result))
    for measure in (lambda: measure_all(copied), lambda: compare([copied])):
        with pytest.raises(RunError, match=r"1 network.* open, first offline"):
            measure()


def test_a_missing_checkpoint_is_noted(copied: Path) -> None:
    (student_folder(copied) / "epoch-0002.safetensors").unlink()
    audit = measure_all(
        copied, student="offline τ=4", over_training=50, kernel_examples=0, resamples=100
    )
    over = checkpoints(audit)["offline τ=4"]
    assert {point.epoch for point in over.points} == {0, 1, 3, 4}
    assert any("epochs 2 are missing" in note for note in over.notes)


def test_unknown_students_and_seeds_are_refused(finished: Path) -> None:
    with pytest.raises(RecipeError, match="no trained student 'switch'; did you mean 'switched'"):
        measure_all(finished, student="switch")
    with pytest.raises(RecipeError, match="of seed 5; trained seeds: 0, 1"):
        measure_all(finished, seed=5)
    with pytest.raises(RecipeError, match="setting examples of over-training is -1"):
        measure_all(finished, over_training=-1)


def test_the_commands_print_and_draw(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--supervision", "switched", "--seed", 0]
    assert command("measure", copied, "over-training", "examples=60", *words, "--json") == 0
    record = from_json(AnalysisRecord, capsys.readouterr().out, "standard output")
    assert record.result["students"][0]["examples"] == {"train": 60, "test": 60}
    assert command("measure", copied, "kernels", "examples=4", *words) == 0
    assert "switched, seed 0" in capsys.readouterr().out
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert "Switch: no KD → offline τ=4, epoch 2.00." in page
    assert "train, by mislabelled or not" in page
    assert "NTK similarity" in page
    assert command("measure", copied, "over-training", "examples=60", *words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Switch: no KD → offline τ=4, epoch 2.00." in text
    assert command("report", copied, "--figures") == 0
    figures = copied / "figures"
    svg = (figures / "over-training-switched-seed-0.svg").read_text(encoding="utf-8")
    assert "no KD → offline τ=4, epoch 2.00" in svg
    assert (figures / "confidence-switched-seed-0.png").stat().st_size > 10_000


def test_the_audit_of_arrays_refuses_a_run(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "measure RUN confidence" in refused(capsys, "audit", finished, "--teacher", "t.npy")
    assert "give --teacher, --student and --labels" in refused(
        capsys, "audit", "--teacher", "t.npy"
    )


def test_a_comparison_has_means_over_seeds(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("compare", finished, "--json", "--resamples", 100) == 0
    found = from_json(Settings, capsys.readouterr().out, "standard output")
    assert [one.supervision for one in found.settings] == ["offline τ=4", "switched"]
    one = found.settings[0]
    assert one.data == "digits, 250 train, 20 % labels wrong"
    assert (one.teacher, one.seeds, one.temperature) == ("mlp (hidden [16])", (0, 1), 4.0)
    audits = [
        measure_all(
            finished, student="offline τ=4", seed=seed, resamples=100
        ).confidence.students[0].audit.splits
        for seed in (0, 1)
    ]  # fmt: skip
    for place, split in enumerate(one.splits):
        slopes = [splits[place].exaggeration.slope_low.ordinary.value for splits in audits]
        gains = [splits[place].ledger.all for splits in audits]
        assert split.slope_low.value == pytest.approx(np.mean(slopes))
        assert split.net_gain.value == pytest.approx(np.mean([g.net_gain.value for g in gains]))
        assert split.p_value == max(gain.p_value for gain in gains)
        assert split.underfit.interval is not None
        assert split.underfit.interval.high <= 1
    rows = {row.name: row for row in OpenRun.open(finished, unfinished=True).result.rows}
    assert one.accuracy == rows["offline τ=4"].accuracy
    assert one.one_hot_accuracy == rows["no KD"].accuracy
    students = OpenRun.open(finished).students("offline τ=4")
    cells = [OpenRun.open(finished).cell(student) for student in students]
    assert one.digests == tuple(cell.weights_digest for cell in cells)
    out = finished.parent / "compared"
    assert command("compare", finished, "--resamples", 100, "--out", out) == 0
    assert from_json(Settings, (out / "comparison.json").read_text(), "file") == found
    assert "| digits" in (out / "comparison.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert command("compare", finished, "--markdown", "--resamples", 100) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| digits") for line in lines) == 4
    # In 80 columns no table of so many numbers has room: a line a number, none of them cut.
    assert command("compare", finished, "--resamples", 100) == 0
    narrow = capsys.readouterr().out
    assert "…" not in narrow
    assert narrow.count("net gain, points") == 4
    assert "was given twice" in refused(capsys, "compare", finished, finished)
    assert "give --markdown or --json" in refused(
        capsys, "compare", finished, "--markdown", "--json"
    )


def test_a_run_has_the_numbers_of_an_audit_of_its_logits(finished: Path) -> None:
    _, kept = measured(finished)
    data = load_splits(distillens.study.read_recipe(finished / "recipe.yaml").data)
    before = {change.index: change.before for change in data.changed}
    labels = [
        before.get(index, label)
        for index, label in zip(
            data.train.indices.tolist(), data.train.labels.tolist(), strict=True
        )
    ]
    arrays = [
        dict(np.load(folder / "logits.npz"))
        for folder in (
            finished / "teacher", student_folder(finished), student_folder(finished, "00-no-kd"),
        )
    ]  # fmt: skip
    teacher, student, reference = (
        {split: each[split] for split in ("train", "test")} for each in arrays
    )
    found = distillens.audit(
        teacher,
        student,
        {"train": np.array(labels), "test": data.test.labels},
        given_labels={"train": data.train.labels, "test": data.test.labels},
        reference=reference,
        kind="logits",
    )
    (stored,) = (one for one in kept.students if (one.student, one.seed) == ("offline τ=4", 0))
    for split, wanted in zip(stored.audit.splits, found.splits, strict=True):
        assert split.exaggeration == wanted.exaggeration
        assert split.fidelity == wanted.fidelity
        assert split.calibration == wanted.calibration
        assert split.ledger.all == wanted.ledger.all
