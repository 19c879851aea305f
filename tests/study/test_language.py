"""Language models: next tokens are the examples, whatever the batches, the padding and the tool."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cases import write_tsv
from conftest import command, refused

import distillens
from distillens.analyses.measure import measure_run
from distillens.data import Batches, DataRecipe, Examples, load_splits
from distillens.data.tokens import NextTokens
from distillens.errors import DataError, ModelError
from distillens.files.tables import Rows
from distillens.integrations.ray import train_in_worker
from distillens.measures.statistics.intervals import mean_over_sentences
from distillens.models import LanguageModel, load_weights
from distillens.progress import Progress
from distillens.results.confidence import Confidence
from distillens.runs.open import OpenRun
from distillens.study.language_models.task import (
    first_tokens,
    token_labels,
    token_logits,
)
from distillens.supervision import Distillation, FixedTeacher, OneHot
from distillens.training import TrainingRecipe, fit

pytest.importorskip("tokenizers")


def tokens(count: int = 20, length: int = 7, vocabulary: int = 11) -> Examples:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, vocabulary, (count, length), generator=generator)
    for row in range(count):
        inputs[row, 2 + row % (length - 1) :] = -1
    indices = torch.arange(100, 100 + count)
    return Examples(
        inputs, torch.zeros(count, dtype=torch.int64), indices, ("a", "b"), (vocabulary,)
    )


def model_of(examples: Examples, seed: int = 0, **more: Any) -> LanguageModel:
    torch.manual_seed(seed)
    sizes = {"layers": 1, "width": 8, "heads": 2, "dropout": 0.0, **more}
    return LanguageModel(examples.vocabularies[0], examples.input_shape[0], **sizes)


def test_a_token_says_nothing_of_what_comes_after_it() -> None:
    examples = tokens()
    model = model_of(examples, layers=2).eval()
    row = examples.inputs[4:5].clone()
    before = model(row)
    row[:, 3] = (row[:, 3] + 1) % 11
    after = model(row)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3], before[:, 3])


def test_logits_by_token_are_those_of_each_sentence_alone() -> None:
    examples = tokens()
    model = model_of(examples).eval()
    logits, (labels, index) = token_logits(model, examples), token_labels(examples)
    row = 0
    for sentence, stable in zip(examples.inputs, examples.indices, strict=True):
        kept = sentence[sentence >= 0]
        alone = model(kept[None, :-1])[0].detach().numpy()
        stop = row + len(alone)
        np.testing.assert_allclose(logits[row:stop], alone, rtol=1e-4, atol=1e-6)
        assert labels[row:stop].tolist() == kept[1:].tolist()
        assert index[row:stop].tolist() == [
            int(stable) * 7 + place for place in range(1, len(kept))
        ]
        row = stop
    assert row == len(logits)


def losses_of(parts: int, processes: int) -> float:
    """Return a batch's loss as micro-batches and processes add it up."""
    examples = tokens()
    model = model_of(examples).eval()
    supervision = Distillation(FixedTeacher(model_of(examples, seed=1)), 2.0)
    total = 0.0
    for rank in range(processes):
        source = Batches(examples, 20, seed=0, rank=rank, processes=processes)
        (batch,) = NextTokens(source).epoch(0)
        for part in batch.split(parts):
            loss = supervision.loss(model(part.inputs), part, 0)
            total += float(loss.detach()) * part.weight / processes
    return total


def test_shares_of_a_batch_add_up_to_its_mean_over_tokens() -> None:
    whole = losses_of(1, 1)
    for parts, processes in ((3, 1), (1, 3), (2, 2)):
        assert losses_of(parts, processes) == pytest.approx(whole, rel=1e-6)


def test_batches_held_on_the_device_are_those_of_the_host() -> None:
    held, host = (
        list(NextTokens(Batches(tokens(), 8, seed=0, resident=resident)).epoch(1))
        for resident in (True, False)
    )
    for mine, other in zip(held, host, strict=True):
        assert torch.equal(mine.inputs, other.inputs)
        assert torch.equal(mine.labels, other.labels)
        assert mine.weight == other.weight
        # Rows of a table of labels of examples would not be those of tokens.
        assert mine.rows is None
        assert mine.known_labels is None


def test_a_student_of_sure_logits_is_the_student_of_labels() -> None:
    """A teacher whose logits are s · one-hot, s large, is the labels (design: invariances)."""
    examples = tokens()

    class Sure(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 60.0 * torch.nn.functional.one_hot(following[inputs.shape], 11).float()

    batches = NextTokens(Batches(examples, 20, seed=None))
    (batch,) = batches.epoch(0)
    following = {batch.inputs.shape: batch.labels.clamp_min(0)}
    recipe = TrainingRecipe(epochs=3, batch_size=20, learning_rate=0.1, accumulate=1)
    found = []
    for supervision in (OneHot(), Distillation(FixedTeacher(Sure()))):
        model = model_of(examples)
        fit(model, supervision, batches, recipe)
        found.append(model.state_dict())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-6)


def test_intervals_take_whole_sentences() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        counts = generator.integers(1, 12, 150).astype(float)
        # Tokens of a sentence are alike: intervals over tokens would be far too narrow.
        sums = counts * generator.normal(2.0, 1.0, 150)
        interval = mean_over_sentences(sums, counts).interval
        assert interval is not None
        covered += interval.low <= 2.0 <= interval.high
    assert 0.91 < covered / 400 < 0.98
    assert mean_over_sentences(np.ones(1), np.ones(1)).interval is None


def test_first_tokens_keeps_whole_sentences() -> None:
    examples = tokens()
    counts = (examples.inputs[:, 1:] >= 0).sum(1)
    kept = first_tokens(examples, int(counts[:3].sum()))
    assert kept.indices.tolist() == [100, 101, 102]
    with pytest.raises(DataError, match="first sentence has 1 tokens, more than the 0"):
        first_tokens(examples, 0)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    folder = write_tsv(tmp_path / "data", train=80, test=40)
    training = {"epochs": 3, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.02}
    return {
        "kind": "language",
        "name": "tiny-language",
        "data": {
            "source": "text", "path": str(folder), "tokenizers": [{"vocabulary": 50, "length": 12}],
        },
        "teacher": {"model": {"layers": 1, "width": 16, "heads": 2}, "training": training},
        "student": {"model": {"layers": 1, "width": 8, "heads": 2}, "training": training},
        "supervisions": [
            {"kind": "offline"},
            {"kind": "one-hot"},
            {"kind": "online", "temperature": 2},
            {"kind": "switched", "first": {"kind": "one-hot"}, "then": {"kind": "offline"}, "at": 0.5},
        ],
        "audited_tokens": 150,
    }  # fmt: skip


def written(recipe: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def test_a_study_of_language_models(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(recipe, tmp_path), tmp_path / "run"
    assert command("run", file, "--out", out) == 0
    assert "test loss" in " ".join(capsys.readouterr().out.split())
    run = OpenRun.open(out)
    result = run.result
    assert [row.name for row in result.rows] == [
        "teacher", "offline τ=1", "no KD", "online τ=2", "no KD → offline τ=1 at 0.5",
    ]  # fmt: skip
    splits = load_splits(DataRecipe.model_validate(recipe["data"]))
    counts = (splits.test.inputs[:, 1:] >= 0).sum(1).double().numpy()
    assert result.cells[1].test_count == counts.sum()
    assert result.classes == splits.train.vocabularies[0]
    # Sentences of one form are learnt: below the log of the vocabulary by far.
    for row in result.rows:
        assert row.loss is not None
        assert row.loss.value < 0.9 * np.log(result.classes)
    # Numbers are those of the logits of all tokens, recomputed from the weights.
    student = model_of(splits.test, width=8, dropout=0.1)
    load_weights(run.network(result.cells[1].id).weights(3), student)
    logits, (labels, _) = token_logits(student, splits.test), token_labels(splits.test)
    losses = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
    row, labels_alone = result.rows[1:3]
    assert row.accuracy.value == pytest.approx((logits.argmax(1) == labels).mean())
    assert row.loss is not None
    assert row.loss.value == pytest.approx(float(losses), rel=1e-5)
    assert row.gain is not None
    assert row.gain.value == pytest.approx(row.accuracy.value - labels_alone.accuracy.value)
    assert (out / "report.html").is_file()
    # Taken up again it is the same, and other data are another run.
    assert command("run", file, "--out", out) == 0
    assert OpenRun.open(out).result == result
    assert command("compare", out) == 0
    capsys.readouterr()
    for refusal in (
        ("measure", out, "complexity"),
        ("measure", out, "over-training"),
        ("export", out, "--out", tmp_path / "export"),
        ("check", file),
        ("run", file, "--plan"),
    ):
        assert "language models" in refused(capsys, *refusal)
    # It grows by a seed, and intervals then have the level of results that were seen before.
    grown = distillens.run({**recipe, "seeds": [0, 1]}, out)
    kept = [cell for cell in grown.cells if cell.seed != 1]
    assert kept == list(result.cells)
    assert grown.rows[1].accuracy.interval is not None
    assert grown.rows[1].accuracy.interval.level == 0.975
    write_tsv(tmp_path / "data", train=82, test=40)
    assert "are not those that" in refused(capsys, "run", file, "--out", out)
    # Version 0.1 wrote this file instead of results.json.
    (out / "language.json").write_text("{}")
    assert "language models of version 0.1" in refused(capsys, "table", out)


def test_a_run_holds_the_audit_of_its_tokens(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["supervisions"] = recipe["supervisions"][:2]
    distillens.run(recipe, tmp_path / "run")
    run = OpenRun.open(tmp_path / "run")
    (record,) = run.records("confidence")
    found = record.result(Confidence)
    (mine,) = (each for each in found.students if each.student == "offline τ=1")
    splits = load_splits(DataRecipe.model_validate(recipe["data"]))
    networks = {"teacher": 16, "offline τ=1": 8, "no KD": 8}
    given: dict[str, dict[str, Rows]] = {name: {} for name in (*networks, "labels")}
    for split in ("train", "test"):
        examples = first_tokens(getattr(splits, split), 150)
        labels, index = token_labels(examples)
        given["labels"][split] = Rows(labels, index)
        for cell in run.result.cells:
            network = model_of(examples, width=networks[cell.supervision])
            load_weights(run.network(cell.id).weights(3), network)
            given[cell.supervision][split] = Rows(token_logits(network, examples), index)
    alone = distillens.audit(
        given["teacher"],
        given["offline τ=1"],
        given["labels"],
        reference=given["no KD"],
        kind="logits",
    )
    assert mine.audit.splits == alone.splits
    assert 100 < mine.audit.splits[1].examples <= 150
    assert "each token is an example" in mine.notes[0]
    # The teacher of another run is a reference.
    other = {**recipe, "name": "other", "teacher": {**recipe["teacher"], "seed": 7}}
    distillens.run({**other, "deviation": False}, tmp_path / "other")
    settings = {"other_teacher_run": str(tmp_path / "other"), "resamples": 100}
    again = measure_run(tmp_path / "run", "confidence", settings).result(Confidence)
    assert again.other_teacher == "other"
    assert "other teacher" in {read.role for read in again.students[0].audit.kinds}


def test_students_and_trained_teachers_teach_tokens(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Supervisions, early stopping and tuning of the shared study work on tokens."""
    recipe["data"]["validation_size"] = 20
    recipe["tune"] = {"learning_rate": [0.01, 0.02]}
    recipe["seeds"] = [0, 1]
    recipe["supervisions"] = [
        {"kind": "one-hot"},
        {"kind": "self-distillation"},
        {"kind": "co-trained"},
        {"kind": "offline", "early_stop": "validation", "training": {"epochs": 2}},
    ]
    result = distillens.run(recipe, tmp_path / "run")
    assert result.tuning is not None
    assert len(result.cells) == 9
    for row in result.rows:
        assert row.loss is not None
        assert row.loss.interval is not None
        assert row.loss.interval.low < row.loss.value < 0.95 * np.log(result.classes)


def test_a_worker_trains_the_same_students(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = {**recipe, "supervisions": recipe["supervisions"][:2], "deviation": False}

    def by_workers(context: Any, teacher: Any, students: Any, done: Any) -> None:
        for student in students:
            done(student, train_in_worker(context.run.folder, student))

    mine = distillens.run(recipe, tmp_path / "mine")
    theirs = distillens.run(recipe, tmp_path / "theirs", spread=by_workers)
    assert [c.weights_digest for c in mine.cells] == [c.weights_digest for c in theirs.cells]


class CutError(Exception):
    """The process ends here."""


def cutting(steps: int) -> Progress:
    """Return a progress that raises once so many steps are done."""
    left = [steps]

    @contextmanager
    def progress(title: str, total: int, done: int = 0) -> Iterator[Any]:
        def advance(count: int) -> None:
            left[0] -= count
            if left[0] < 0:
                raise CutError

        yield advance

    return progress


@pytest.mark.parametrize("steps", [7, 22])
def test_an_interrupted_study_ends_with_the_same_weights(
    recipe: dict[str, Any], tmp_path: Path, steps: int
) -> None:
    # Epochs of five steps: the cut is in the second epoch of the teacher, or of the student.
    recipe = {**recipe, "supervisions": recipe["supervisions"][2:3], "deviation": False}
    whole = distillens.run(recipe, tmp_path / "whole")
    with pytest.raises(CutError):
        distillens.run(recipe, tmp_path / "cut", progress=cutting(steps))
    again = distillens.run(recipe, tmp_path / "cut")
    assert [cell.weights_digest for cell in again.cells] == [
        cell.weights_digest for cell in whole.cells
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"supervisions": [{"kind": "offline", "loss": {"name": "dkd"}}]}, "leave loss out"),
        ({"supervisions": [{"kind": "offline", "early_stop": "validation"}]}, "validation split"),
        ({"loss": "squared-error"}, "loss is 'squared-error'"),
        ({"cache_top_k": 5}, "leave cache_top_k out"),
        ({"complexity": {"examples": 10}}, "complexity is not available for language models"),
        ({"teacher": {"run": "elsewhere"}}, "give teacher.model and teacher.training"),
        ({"teacher_seed": 3}, "replaced by teacher.seed"),
        ({"kind": "languages"}, "no kind of recipe 'languages'; did you mean 'language'"),
        ({"data": {"source": "digits"}}, "one tokenizer"),
        ({"sudent": 1}, "sudent"),
    ],
)
def test_what_a_language_recipe_cannot_say(
    recipe: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**copy.deepcopy(recipe), **change}))
    assert message in refused(capsys, "run", file)


def test_what_is_no_text_of_one_tokenizer_is_refused(recipe: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="one tokenizer"):
        NextTokens(Batches(Examples(torch.zeros(3, 4), torch.zeros(3), torch.arange(3), ("a",)), 2))
    recipe["student"]["model"] = {"name": "encoder", "width": 8, "heads": 2}
    with pytest.raises(ModelError, match=r"encoder gives outputs of shape \(2, \d+\) for 2 inputs"):
        distillens.run(recipe)
