"""Comparisons of supervisions: each has a training of its own, and validation makes all choices."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import curves_of_run, measure_all, refused

import distillens
from distillens.errors import RecipeError, TrainingError
from distillens.export.choosing import choose
from distillens.measures import paired_gain
from distillens.report import markdown_table
from distillens.results.training import StudyResult, Trial
from distillens.runs.layout import Run
from distillens.runs.open import OpenRun
from distillens.runs.read import read_arrays
from distillens.study import parse_recipe
from distillens.study.tuning import _select

RATES = [0.02, 0.1, 0.5]


@pytest.fixture
def tuned(tiny: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose learning rates are selected, for labels, a teacher and self-distillation."""
    tiny |= {"complexity": None, "deviation": False}
    tiny |= {"tune": {"learning_rate": RATES}}
    tiny["data"]["validation_size"] = 80
    tiny["supervisions"] = [
        {"kind": "self-distillation", "training": {"epochs": 2}},
        {"kind": "one-hot"},
        {"kind": "offline", "temperature": 4, "alpha": 0.5, "early_stop": "validation"},
    ]
    return tiny


def digests(result: StudyResult) -> dict[tuple[str, int], str]:
    return {(cell.supervision, cell.seed): cell.weights_digest for cell in result.cells}


def test_no_choice_reads_test_labels(tuned: dict[str, Any], tmp_path: Path) -> None:
    tuned["tune"]["learning_rate"] = [0.05, 0.5]
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, size=400)
    inputs = rng.normal(size=(4, 6))[labels] + rng.normal(size=(400, 6))
    noise = rng.integers(0, 4, size=200)
    made = []
    for name, test_labels in (("right", labels[200:]), ("random", noise)):
        path = tmp_path / f"{name}.npz"
        np.savez(
            path,
            train_inputs=inputs[:200].astype(np.float32),
            train_labels=labels[:200],
            test_inputs=inputs[200:].astype(np.float32),
            test_labels=test_labels,
        )
        tuned["data"] = {"source": "npz", "path": str(path), "validation_size": 80}
        made.append(distillens.run(tuned, tmp_path / name))
    right, random = made
    assert right.rows[0].accuracy.value - random.rows[0].accuracy.value > 0.3
    assert right.tuning is not None
    assert random.tuning is not None
    assert random.tuning.chosen == right.tuning.chosen
    found = [[trial.validation_loss for trial in one.tuning.trials] for one in made if one.tuning]
    assert found[0] == found[1]
    # The teacher's epoch is part of what the students were trained with, as are their rates.
    assert digests(random) == digests(right)
    losses = [(tmp_path / name / "teacher/validation-losses.json").read_text() for name in
              ("right", "random")]  # fmt: skip
    assert losses[0] == losses[1]
    bold = [[line for line in markdown_table(one).splitlines() if "**" in line] for one in made]
    assert [line[0].split("|")[1] for line in bold] == [bold[0][0].split("|")[1]] * 2
    picks = [choose(OpenRun.open(tmp_path / name), None, None) for name in ("right", "random")]
    assert picks[0].cell.id == picks[1].cell.id


def test_a_student_has_the_rate_that_was_best_on_validation(
    tuned: dict[str, Any], tmp_path: Path
) -> None:
    result = distillens.run(tuned, tmp_path / "tuned")
    tuning = result.tuning
    assert tuning is not None
    assert tuning.seed == 1
    assert len(tuning.trials) == 3 * len(RATES)
    assert {cell.seed for cell in result.cells} == {0, 1000}
    assert [row.learning_rate for row in result.rows[1:]] == [
        one.learning_rate for one in tuning.chosen
    ]
    for one in tuning.chosen:
        mine = [trial for trial in tuning.trials if trial.supervision == one.supervision]
        best = max(trial.validation_accuracy or 0 for trial in mine)
        chosen = next(trial for trial in mine if trial.learning_rate == one.learning_rate)
        assert chosen.validation_accuracy == best
        assert one.at_edge == (one.learning_rate != 0.1)
        marked = f"{one.supervision} {one.learning_rate:g}{' (edge of the grid)' * one.at_edge}"
        assert marked in markdown_table(result)
    edge = [note for note in result.notes if "at the edge of the grid 0.02, 0.1, 0.5" in note]
    assert len(edge) == any(one.at_edge for one in tuning.chosen)
    # A trial is trained in full, and from the one-hot trial of the rate that labels have.
    assert {trial.epochs for trial in tuning.trials} == {2, 3}
    assert not list((tmp_path / "tuned/tuning").rglob("*.safetensors"))
    by_hand = copy.deepcopy(tuned)
    del by_hand["tune"]
    for entry, one in zip(by_hand["supervisions"], tuning.chosen, strict=True):
        entry["training"] = {**entry.get("training", {}), "learning_rate": one.learning_rate}
    again = distillens.run(by_hand, tmp_path / "by hand")
    assert digests(again) == digests(result)
    by_hand["seeds"] = [1]
    trials = {(trial.supervision, trial.learning_rate): trial for trial in tuning.trials}
    for cell in distillens.run(by_hand, tmp_path / "trial").cells[1:]:
        rate = next(
            one.learning_rate for one in tuning.chosen if one.supervision == cell.supervision
        )
        assert cell.weights_digest == trials[cell.supervision, rate].weights_digest
        assert cell.validation_accuracy == trials[cell.supervision, rate].validation_accuracy


def test_an_interrupted_selection_is_taken_up_again(
    tuned: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distillens.study.networks import train_trial

    del tuned["supervisions"][2]["early_stop"]
    whole = distillens.run(tuned, tmp_path / "whole")
    calls: list[str] = []

    def stop(*arguments: Any) -> Any:
        calls.append(arguments[1].title)
        if len(calls) in (3, 9):
            raise KeyboardInterrupt
        return train_trial(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("distillens.study.students.train_trial", stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                distillens.run(tuned, tmp_path / "stopped")
    assert len(set(calls)) == len(calls) - 1
    again = distillens.run(tuned, tmp_path / "stopped")
    assert digests(again) == digests(whole)
    assert again.tuning is not None
    assert whole.tuning is not None
    assert again.tuning.chosen == whole.tuning.chosen


def trial(rate: float, accuracy: float | None, loss: float | None = 1.0, **more: Any) -> Trial:
    return Trial("no KD", 1, rate, 3, 0.1, accuracy, loss, "", **more)


@pytest.mark.parametrize(
    ("accuracies", "losses", "rate", "at_edge"),
    [
        ((0.5, 0.7, 0.6), (1.0, 9.0, 1.0), 0.1, False),
        ((0.5, 0.6, 0.7), (1.0, 1.0, 1.0), 0.5, True),
        ((0.7, 0.7, 0.7), (1.0, 0.8, 0.9), 0.1, False),
        ((0.7, 0.7, 0.7), (1.0, 1.0, 1.0), 0.02, True),
        ((0.7, 0.7, 0.1), (float("nan"), 5.0, 1.0), 0.1, False),
        ((0.1, None, None), (5.0, None, None), 0.02, True),
    ],
)
def test_accuracy_then_loss_then_the_smaller_rate_decides(
    tuned: dict[str, Any], accuracies: Any, losses: Any, rate: float, at_edge: bool
) -> None:
    trials = [
        trial(*each, failure="" if each[1] is not None else "the loss is nan")
        for each in zip(RATES, accuracies, losses, strict=True)
    ]
    for order in (trials, trials[::-1]):
        (found,) = _select(parse_recipe(tuned), order).chosen
        assert (found.learning_rate, found.at_edge) == (rate, at_edge)


def test_a_rate_that_diverges_is_not_chosen(tuned: dict[str, Any], tmp_path: Path) -> None:
    tuned["supervisions"] = [{"kind": "one-hot"}, {"kind": "self-distillation", "generations": 2}]
    tuned["tune"]["learning_rate"] = [0.1, 1e37]
    result = distillens.run(tuned, tmp_path / "run")
    assert result.tuning is not None
    assert [one.learning_rate for one in result.tuning.chosen] == [0.1, 0.1]
    assert sum("diverged with learning rate 1e+37" in note for note in result.notes) == 2
    tuned["tune"]["learning_rate"] = [1e36, 1e37]
    with pytest.raises(TrainingError, match="diverged with every learning rate of tune"):
        distillens.run(tuned, tmp_path / "all")


def test_selection_without_validation_examples_is_refused_before_anything_runs(
    tuned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del tuned["data"]["validation_size"]
    del tuned["supervisions"][2]["early_stop"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tuned))
    line = refused(capsys, "run", recipe, "--out", tmp_path / "run")
    assert "tune selects learning rates on the validation split, but data.validation_size is 0" in (
        line
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"learning_rates": 1},
            r"unknown key 'supervisions.2.training.learning_rates'.*'learning_r",
        ),
        ({"schedule": {"warmups": 1}}, "'supervisions.2.training.schedule.warmups'.*'warmup'"),
        ({"epochs": 0}, "supervisions.2.training.epochs: .*got 0"),
        ({"learning_rate": -1}, "supervisions.2.training.learning_rate: .*got -1"),
        (
            {"optimizer": "adam", "momentum": 0.5},
            "supervisions.2.training: momentum 0.5 belongs to",
        ),
        ({"learning_rate": 0.2}, "sets training.learning_rate, which tune selects"),
        (3, "supervisions.2.training: .*keys with values are needed, got 3"),
    ],
)
def test_mistakes_in_a_training_of_its_own_are_named(
    tuned: dict[str, Any], training: Any, message: str
) -> None:
    tuned["supervisions"][2]["training"] = training
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(tuned)
    assert "\n" not in str(caught.value)


def test_the_sides_of_a_switch_have_no_training_of_their_own(tiny: dict[str, Any]) -> None:
    first = {"kind": "one-hot", "training": {"epochs": 2}}
    tiny["supervisions"].append(
        {"kind": "switched", "first": first, "then": {"kind": "one-hot"}, "at": 0.5}
    )
    with pytest.raises(RecipeError, match="both sides of a switch share one training"):
        parse_recipe(tiny)


def test_a_training_of_its_own_is_merged_key_by_key(tiny: dict[str, Any]) -> None:
    tiny["student"]["training"] |= {"momentum": 0.8, "schedule": {"kind": "cosine", "warmup": 1}}
    tiny["supervisions"][1]["training"] = {"epochs": 9, "schedule": {"warmup": 2}}
    tiny["supervisions"][2]["training"] = {"optimizer": "adam", "learning_rate": "1e-3"}
    recipe = parse_recipe(tiny)
    own, offline, online = (recipe.training_of(entry) for entry in recipe.supervisions)
    assert own == recipe.student.training
    assert (offline.epochs, offline.learning_rate, offline.momentum) == (9, 0.05, 0.8)
    assert (offline.schedule.kind, offline.schedule.warmup) == ("cosine", 2)
    assert (online.optimizer, online.learning_rate, online.momentum) == ("adam", 1e-3, 0.9)
    # A run that is taken up again reads its recipe back.
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_where_a_training_is_written_does_not_matter(tiny: dict[str, Any], tmp_path: Path) -> None:
    usual = {"epochs": 3, "batch_size": 32, "learning_rate": 0.05}
    other = {"epochs": 4, "batch_size": 16, "learning_rate": 0.02, "weight_decay": 0.01}
    labels = {"kind": "one-hot"}
    taught: list[dict[str, Any]] = [
        {"kind": "self-distillation", "generations": 2},
        {"kind": "offline", "temperature": {"start": 8, "end": 1}},
        {"kind": "online", "temperature": 4},
        {"kind": "co-trained"},
        {"kind": "switched", "at": 0.5, "first": {"kind": "online"}, "then": {"kind": "one-hot"}},
    ]
    tiny["data"]["augmentation"] = {"crop": 1}
    tiny["complexity"]["epochs"] = [0, 3]
    made = []
    for name, base, entries in (
        ("above", usual, [labels, *({**each, "training": other} for each in taught)]),
        (
            "below",
            {**other, "epochs": 2},
            [
                {**labels, "training": {**usual, "weight_decay": 0}},
                *({**each, "training": {"epochs": 4}} for each in taught),
            ],
        ),
    ):
        content = {**tiny, "student": {**tiny["student"], "training": base}}
        made.append(distillens.run({**content, "supervisions": entries}, tmp_path / name))
    above, below = made
    assert digests(above) == digests(below)
    assert {cell.supervision: cell.epochs for cell in above.cells} == {
        "teacher": 3, "no KD": 3, **{row.name: 4 for row in above.rows[2:]}
    }  # fmt: skip
    curves = [curves_of_run(tmp_path / name) for name in ("above", "below")]
    first, second = ([point.teacher_epoch for point in each.points] for each in curves)
    assert first == second
    assert "online τ=4 (epochs 4, batch size 16, learning rate 0.02" in markdown_table(above)
    assert [row.learning_rate for row in below.rows] == [None, 0.05, *[0.02] * 5]
    last = curves[0].points[-1]
    assert (last.epoch, last.targets, last.teacher_epoch) == (3, "online teacher", 3)


def test_what_reads_a_run_knows_its_trainings(tiny: dict[str, Any], tmp_path: Path) -> None:

    from distillens.export.export import export_run

    tiny["complexity"] = None
    tiny["supervisions"] = [
        {"kind": "one-hot"},
        {
            "kind": "switched", "at": 0.5, "first": {"kind": "one-hot"},
            "then": {"kind": "offline", "temperature": 4},
            "training": {"epochs": 5, "batch_size": 16},
        },
    ]  # fmt: skip
    result = distillens.run(tiny, tmp_path / "run")
    switched = result.rows[2].name
    done = export_run(tmp_path / "run", student=switched, out=tmp_path / "export")
    assert done.epoch == 5
    audit = measure_all(
        tmp_path / "run", student=switched, over_training=40, kernel_examples=0, resamples=100
    )
    assert audit.over_training is not None
    (way,) = audit.over_training.students
    assert sorted({point.epoch for point in way.points}) == [0, 1, 2, 3, 4, 5]
    assert way.switch is not None
    # Half of 5 epochs of 8 batches.
    assert way.switch.begins == 2.5


def test_the_interval_of_a_gain_is_over_seeds_and_test_examples(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny |= {"complexity": None, "deviation": False}
    tiny["supervisions"] = tiny["supervisions"][:2]
    for seeds, method in (
        ([0, 1], "Student t over 2 differences paired by seed and paired differences of 100 test"),
        ([0], "paired differences of 100 test examples only, one seed"),
    ):
        folder = tmp_path / str(len(seeds))
        result = distillens.run({**tiny, "seeds": seeds}, folder)
        run = Run(folder)
        right = {
            name: np.array([
                read_arrays(run.student(place, name, seed).logits)["test"].argmax(1)
                == labels_of(tiny)
                for seed in seeds
            ]).astype(float)
            for place, name in enumerate(("no KD", "offline τ=4"))
        }  # fmt: skip
        difference = right["offline τ=4"] - right["no KD"]
        found = paired_gain(
            right["offline τ=4"].mean(1), right["no KD"].mean(1), differences_N=difference.mean(0)
        )
        gain = result.rows[2].gain
        assert gain is not None
        assert gain.interval is not None
        assert found.interval is not None
        assert gain.value == pytest.approx(found.value)
        assert gain.interval.low == pytest.approx(found.interval.low)
        assert gain.interval.method.startswith(method)
    assert json.loads((tmp_path / "1" / "results.json").read_text())["tuning"] is None


def labels_of(recipe: dict[str, Any]) -> np.ndarray:
    from distillens.data import DataRecipe, load_splits

    return load_splits(DataRecipe.model_validate(recipe["data"])).test.labels.numpy()
