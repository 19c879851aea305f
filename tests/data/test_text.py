"""Text: sentences become tokens in one way only, and recipes run on them as on pictures."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cases import sentences, write_tsv
from conftest import curves_of_run
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from distillens.analyses.array_task import read_task
from distillens.analyses.measure import measure_run
from distillens.cli.main import main
from distillens.data import Batches, DataRecipe, load_splits
from distillens.errors import CheckpointError, DataError, ModelError, RecipeError, RunError
from distillens.export.export import export_run, load_export
from distillens.export.programs import read_onnx
from distillens.kernel import EmpiricalNTK, oracle_gram
from distillens.models import Encoder, ModelRecipe, build_model, load_weights
from distillens.results.base import from_json
from distillens.results.complexity import ComplexityCurves, KernelComplexity
from distillens.results.confidence import Confidence
from distillens.runs.layout import Run
from distillens.runs.open import OpenRun
from distillens.runs.read import read_arrays
from distillens.study import read_recipe, run

pytest.importorskip("tokenizers")


def recipe_of(folder: Path, **more: Any) -> DataRecipe:
    tokenizers = more.pop("tokenizers", [{"vocabulary": 60, "length": 12}])
    return DataRecipe.model_validate(
        {"source": "text", "path": str(folder), "tokenizers": tokenizers, **more}
    )


def test_tokens_say_the_sentence_and_keep_its_index(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = write_tsv(tmp_path)
    splits = load_splits(recipe_of(folder, validation_size=10, train_size=30))
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 10, 20)
    reader = Tokenizer.from_str(splits.tokenizers[0])
    source = {"train": sentences(60, 5), "test": sentences(20, 10)}
    for part, origin in (
        (splits.train, "train"),
        (splits.validation, "train"),
        (splits.test, "test"),
    ):
        assert part.vocabularies == (reader.get_vocab_size(),)
        assert part.inputs.shape == (len(part), 12)
        for tokens, label, index in zip(part.inputs, part.labels, part.indices, strict=True):
            sentence, expected = source[origin][int(index)]
            assert int(label) == expected
            kept = tokens[tokens >= 0].tolist()
            # What is padded is the end, and only that.
            assert tokens[len(kept) :].eq(-1).all()
            assert kept == reader.encode(sentence).ids
    batch = next(Batches(splits.train, 7).epoch(0))
    assert batch.inputs.dtype == torch.int64
    where = torch.searchsorted(splits.train.indices, batch.indices)
    assert torch.equal(batch.inputs, splits.train.inputs[where])


FINGERPRINT = """
import sys
from distillens.data import DataRecipe, load_splits
print(load_splits(DataRecipe.model_validate_json(sys.argv[1])).fingerprint)
"""


def test_the_vocabulary_is_the_same_in_every_process(shared_data: Path) -> None:
    recipe = recipe_of(
        shared_data / "sst2",
        train_size=2000,
        test_size=50,
        tokenizers=[{"vocabulary": 1000, "length": 16}],
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT, recipe.model_dump_json()],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    }
    assert prints == {load_splits(recipe).fingerprint + "\n"}


def test_only_training_sentences_make_the_vocabulary(tmp_path: Path) -> None:
    folder = write_tsv(tmp_path)
    before = load_splits(recipe_of(folder, validation_size=20))
    (folder / "validation.tsv").write_text("sentence\tlabel\nzebras everywhere\t1\nnone\t0\n")
    other = load_splits(recipe_of(folder, validation_size=20))
    assert other.tokenizers == before.tokenizers
    # Nor do sentences of the validation split.
    assert before.validation is not None
    out = set(before.validation.indices.tolist())
    lines = (folder / "train.tsv").read_text().splitlines()
    changed = [
        f"zzz qqq\t{line[-1]}" if number - 1 in out else line for number, line in enumerate(lines)
    ]
    (folder / "train.tsv").write_text("\n".join(changed))
    assert load_splits(recipe_of(folder, validation_size=20)).tokenizers == before.tokenizers


def test_two_tokenizers_stand_side_by_side(tmp_path: Path) -> None:
    folder = write_tsv(tmp_path / "data")
    one = load_splits(recipe_of(folder))
    saved = tmp_path / "teacher"
    saved.mkdir()
    (saved / "tokenizer.json").write_text(one.tokenizers[0])
    own = {"vocabulary": 40, "length": 8}
    both = load_splits(recipe_of(folder, tokenizers=[own, {"path": str(saved), "length": 12}]))
    assert both.train.inputs.shape == (60, 2, 12)
    assert torch.equal(both.train.inputs[:, 1], one.train.inputs)
    assert both.train.inputs[:, 0, 8:].eq(-1).all()
    assert both.train.vocabularies == (
        load_splits(recipe_of(folder, tokenizers=[own])).train.vocabularies[0],
        one.train.vocabularies[0],
    )
    shape, known = both.train.input_shape, both.train.vocabularies
    teacher = build_model(
        ModelRecipe.model_validate({"name": "encoder", "tokenizer": 1, "width": 8, "heads": 2}),
        shape, 1, seed=0, vocabularies=known,
    ).eval()  # fmt: skip
    alone = build_model(
        ModelRecipe.model_validate({"name": "encoder", "width": 8, "heads": 2}),
        (12,), 1, seed=0, vocabularies=known[1:],
    ).eval()  # fmt: skip
    torch.testing.assert_close(teacher(both.train.inputs), alone(one.train.inputs))


def test_padding_does_not_change_an_output() -> None:
    torch.manual_seed(0)
    model = Encoder(20, 9, 3, layers=2, width=8, heads=2).eval()
    tokens = torch.randint(0, 20, (4, 5))
    padded = torch.cat([tokens, torch.full((4, 4), -1)], 1)
    torch.testing.assert_close(model(padded), model(tokens))
    assert not torch.allclose(model(padded.clamp_min(0)), model(tokens))


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv.gz"])
def test_other_tables_give_the_same_examples(tmp_path: Path, ending: str) -> None:
    plain = load_splits(recipe_of(write_tsv(tmp_path / "plain")))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train", "validation"):
        text = (tmp_path / "plain" / f"{name}.tsv").read_text()
        if ending.startswith("csv"):
            rows = [line.split("\t") for line in text.splitlines()]
            text = "\r\n".join(f'"{a}",{b}' for a, b in rows)
        content = text.encode()
        zipped = gzip.compress(content) if ending.endswith("gz") else content
        (other / f"{name}.{ending}").write_bytes(zipped)
    assert load_splits(recipe_of(other)).fingerprint == plain.fingerprint


def test_parquet_with_named_labels_is_text_too(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    for name, rows in (("train", sentences(12)), ("test", sentences(6, 1))):
        table = pa.table(
            {
                "id": [f"r{place}" for place in range(len(rows))],
                "text": [sentence for sentence, _ in rows],
                "verdict": [("no", "yes")[label] for _, label in rows],
            }
        )
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    splits = load_splits(recipe_of(tmp_path, text_column="text", label_column="verdict"))
    assert splits.train.classes == ("no", "yes")
    assert splits.test.labels.tolist() == [label for _, label in sentences(6, 1)]
    with pytest.raises(DataError, match=r"3 columns would do .* set data.label_column"):
        load_splits(recipe_of(tmp_path))


def tsv(*lines: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "train.tsv").write_text("\n".join(lines))


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda f: (f / "train.tsv").unlink(), "needed"),
    "empty": (tsv(""), "is empty; its first line must name the columns"),
    "header alone": (tsv("sentence\tlabel"), "columns would do"),
    "cells": (tsv("sentence\tlabel", "a film"), "row 2 has 1 cells, the header 2"),
    "no text": (tsv("sentence\tlabel", "good\t1", " \t0"), "example 1 has no text"),
    "twice": (tsv("label\tlabel", "1\t1"), "names a column twice"),
    "label": (tsv("sentence\tlabel", "a\t-1", "b\t0"), "label -1 of example 0 is out of range"),
    "two": (lambda f: (f / "train.csv").write_text("a,b"), r"as \.csv and \.tsv; keep one of them"),
    "bytes": (lambda f: (f / "train.tsv").write_bytes(b"\xff\xfe\x00"), "cannot be read as text"),
    "one class": (tsv("sentence\tlabel", "a\t0", "b\t0"), "one class; at least two|out of range"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_tables_are_one_line(tmp_path: Path, how: str) -> None:
    damage, message = DAMAGED[how]
    folder = write_tsv(tmp_path)
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        load_splits(recipe_of(folder))
    assert "\n" not in str(caught.value)


def test_a_folder_of_other_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("sentences")
    with pytest.raises(DataError, match=r"holds no .*train\.tsv or train\.csv"):
        load_splits(recipe_of(tmp_path))


def test_tokenizers_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    folder = write_tsv(tmp_path)
    with pytest.raises(DataError, match=r"no tokenizer .*; give a folder with a tokenizer.json"):
        load_splits(recipe_of(folder, tokenizers=[{"path": str(tmp_path)}]))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no readable tokenizer"):
        load_splits(recipe_of(folder, tokenizers=[{"path": str(tmp_path)}]))
    for wrong, message in (
        ({"tokenizers": []}, "source 'text' needs data.tokenizers"),
        ({"tokenizers": [{}]}, "either a path or the size"),
        ({"source": "npz"}, "holds no text"),
    ):
        with pytest.raises(ValidationError, match=message):
            recipe_of(folder, **wrong)


def test_models_of_other_inputs_are_refused() -> None:
    def build(name: str, shape: tuple[int, ...], known: tuple[int, ...], **more: Any) -> Any:
        recipe = ModelRecipe.model_validate({"name": name, **more})
        return build_model(recipe, shape, 2, seed=0, vocabularies=known)

    with pytest.raises(ModelError, match="mlp works on numbers, the inputs are tokens"):
        build("mlp", (9,), (20,))
    with pytest.raises(ModelError, match="encoder works on text"):
        build("encoder", (9,), ())
    with pytest.raises(ModelError, match="asks for tokenizer 1; the data have 1"):
        build("encoder", (9,), (20,), tokenizer=1)
    with pytest.raises(ModelError, match="3 heads"):
        build("encoder", (9,), (20,), heads=3)
    with pytest.raises(RecipeError, match="vocabularies is set from the data"):
        build("encoder", (9,), (20,), vocabularies=(3,))


BERT = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}


@pytest.fixture
def bert(tmp_path: Path) -> str:
    """The name of a tiny BERT with weights drawn at random, in a folder of its own."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "bert"
    torch.manual_seed(0)
    config = transformers.BertConfig(**{k: v for k, v in BERT.items() if k != "model_type"})
    transformers.BertModel(config).save_pretrained(folder)
    return f"transformers:{folder}"


def test_hugging_face_models_see_the_mask(bert: str) -> None:
    recipe = ModelRecipe.model_validate({"name": bert, "tokenizer": 1})
    model = build_model(recipe, (2, 9), 1, seed=0, vocabularies=(9, 60)).eval()
    tokens = torch.randint(1, 60, (4, 2, 5))
    padded = torch.cat([tokens, torch.full((4, 2, 4), -1)], 2)
    torch.testing.assert_close(model(padded), model(tokens))
    inner: Any = model.get_submodule("network")
    expected = inner(input_ids=tokens[:, 1]).logits
    torch.testing.assert_close(model(tokens), expected)
    with pytest.raises(ModelError, match="knows 64 tokens, the data's tokenizer 0 makes 100"):
        build_model(ModelRecipe(name=bert), (9,), 1, seed=0, vocabularies=(100,))
    with pytest.raises(ModelError, match=r"knows 16 positions, .* makes 40"):
        build_model(ModelRecipe(name=bert), (40,), 1, seed=0, vocabularies=(60,))
    fresh = ModelRecipe.model_validate({"name": bert, "pretrained": False})
    grown: Any = build_model(fresh, (9,), 3, seed=0, vocabularies=(100,))
    assert grown.network.get_input_embeddings().weight.shape == (100, 8)


def test_a_text_students_kernel_is_the_oracles() -> None:
    torch.manual_seed(0)
    model = Encoder(30, 7, 1, layers=2, width=8, heads=2).eval()
    tokens = torch.randint(0, 30, (6, 7))
    tokens[1, 4:], tokens[3, 2:] = -1, -1
    kernel = EmpiricalNTK(model, outputs=0, dtype=torch.float64, alone=True)
    found = kernel.gram(tokens)
    expected = oracle_gram(model, tokens, outputs=0)
    torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12)
    # Rules cover every layer: nothing was left to torch.func.
    assert found.notes == ()


def test_a_bert_classifiers_kernel_is_the_oracles(bert: str) -> None:
    model = build_model(ModelRecipe(name=bert), (7,), 2, seed=0, vocabularies=(60,)).eval()
    tokens = torch.randint(0, 60, (4, 7))
    tokens[1, 4:] = -1
    kernel = EmpiricalNTK(model, outputs=1, dtype=torch.float64, alone=True)
    found = kernel.gram(tokens)
    # What transformers does with a mask depends on its values, which vmap cannot follow.
    expected = oracle_gram(model, tokens, outputs=1, vectorised=False)
    torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12)
    assert found.notes == ()


@pytest.fixture
def arrays(bert: str, tmp_path: Path) -> list[str]:
    """A command on the tokens of two tokenizers: an encoder reads the second, a BERT the first."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 30, (24, 2, 7), generator=draw)
    tokens[3, :, 5:] = -1
    # Another type than the one that models take.
    np.save(tmp_path / "tokens.npy", tokens.numpy().astype(np.int16))
    np.save(tmp_path / "labels.npy", np.arange(24) % 2)
    command = ["complexity", "--inputs", str(tmp_path / "tokens.npy"), "--classes", "1"]
    described = (
        ("", "{name: encoder, layers: 1, width: 8, heads: 2, tokenizer: 1}"),
        ("teacher", f"{{name: '{bert}', tokenizer: 0}}"),
    )
    for role, model in described:
        recipe = ModelRecipe.model_validate(yaml.safe_load(model))
        built = build_model(recipe, (2, 7), 1, seed=1, vocabularies=(60, 30))
        stored = tmp_path / f"{role}weights.safetensors"
        save_file(built.state_dict(), stored)
        command += [f"--{role or 'model'}", model]
        command += [f"--{role}-weights" if role else "--weights", str(stored)]
    return [*command, "--targets", f"labels={tmp_path}/labels.npy", "--json"]


def complexity_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    with pytest.raises(SystemExit):
        main(command)
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_a_users_model_of_text_is_measured_on_tokens(
    arrays: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = complexity_of([*arrays, "--vocabulary", "60", "--vocabulary", "30"], capsys)[0]
    found = from_json(KernelComplexity, out, "the output")
    encoder = Encoder(30, 7, 1, layers=1, width=8, heads=2, tokenizer=1).eval()
    load_weights(tmp_path / "weights.safetensors", encoder)
    tokens = torch.as_tensor(np.load(tmp_path / "tokens.npy").astype(np.int64))
    gram = oracle_gram(encoder, tokens, outputs=0).numpy()
    labels = 2.0 * (np.arange(24) % 2) - 1
    assert found.targets[0].plain == pytest.approx(labels @ np.linalg.solve(gram, labels), rel=1e-6)
    assert found.teacher_kernel is not None
    # Of one tokenizer the tokens need no axis.
    np.save(tmp_path / "one.npy", tokens[:, 1].numpy())
    task = read_task(
        "{name: encoder, layers: 1, width: 8, heads: 2}",
        tmp_path / "weights.safetensors",
        tmp_path / "one.npy",
        {"labels": tmp_path / "labels.npy"},
        classes=1,
        outputs=0,
        vocabularies=(30,),
    )
    torch.testing.assert_close(task.network(task.inputs), encoder(tokens))


def test_tokens_that_do_not_fit_are_one_line(
    arrays: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*sizes: int) -> str:
        words = [word for size in sizes for word in ("--vocabulary", str(size))]
        wrong = complexity_of([*arrays, *words], capsys)[1]
        assert wrong.count("\n") == 1
        return wrong

    assert "or the size of the vocabulary for tokens" in said()
    assert "tokens are integers (N, T)" in said(60)
    assert "tokens of a vocabulary of 20 go from 0 to 19" in said(60, 20)
    assert "at least one token, got 0" in said(60, 0)
    tokens = np.load(tmp_path / "tokens.npy")
    for place, name in (((3, 1, 2), "gap"), ((5, 0, slice(None)), "empty"), ((7, 1, 0), "left")):
        wrong = tokens.copy()
        wrong[place] = -1
        np.save(tmp_path / "tokens.npy", wrong)
        assert f"row {place[0]} has no token or one behind a -1" in said(60, 30), name
    np.save(tmp_path / "tokens.npy", np.zeros((24, 2, 7)))
    assert "tokens are integers (N, 2, T)" in said(60, 30)


@pytest.fixture
def study(tmp_path: Path, bert: str) -> dict[str, Any]:
    """A pretrained teacher with a tokenizer of its own, and a student with another."""
    folder = write_tsv(tmp_path / "data", train=80, test=30)
    whole = load_splits(recipe_of(folder))
    saved = Path(bert.partition(":")[2])
    (saved / "tokenizer.json").write_text(whole.tokenizers[0])
    training = {"optimizer": "adamw", "learning_rate": 0.01, "batch_size": 16}
    return {
        "name": "tiny-text",
        "data": {
            "source": "text",
            "path": str(folder),
            "tokenizers": [{"vocabulary": 50, "length": 12}, {"path": str(saved), "length": 14}],
        },
        "teacher": {"model": {"name": bert, "tokenizer": 1}, "training": {"epochs": 3, **training}},
        "student": {
            "model": {"name": "encoder", "layers": 1, "width": 8, "heads": 2},
            "training": {"epochs": 4, **training},
        },
        "supervisions": [
            {"kind": "one-hot"},
            {"kind": "offline", "temperature": 2},
            {"kind": "online"},
            {"kind": "self-distillation"},
            {"kind": "co-trained"},
        ],
        "complexity": {"examples": 12, "epochs": [0, 4], "random_draws": 2, "ridge": 1e-3},
    }


def test_a_study_of_text_is_a_study(study: dict[str, Any], tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    out = tmp_path / "run"
    result = run(study, out)
    accuracies = {cell.supervision: cell.test_accuracy for cell in result.cells}
    # A word gives the label away.
    assert accuracies["no KD"] > 0.9
    (record,) = OpenRun.open(out).records("confidence")
    confidence = record.result(Confidence)
    assert len(confidence.students) == 5
    assert {point.epoch for point in curves_of_run(out).points} == {0, 4}
    # The teacher's cached logits are those of the network on its own tokens.
    opened = Run(out)
    splits = load_splits(read_recipe(opened.recipe).data)
    stored = Tokenizer.from_file(str(opened.tokenizer(0)))
    assert stored.to_str() == splits.tokenizers[0]
    teacher = build_model(
        ModelRecipe.model_validate(study["teacher"]["model"]), splits.train.input_shape, 1,
        seed=0, vocabularies=splits.train.vocabularies,
    )  # fmt: skip
    load_weights(opened.teacher.weights(3), teacher)
    with torch.no_grad():
        logits = teacher.eval()(splits.train.inputs)
    torch.testing.assert_close(
        logits, torch.from_numpy(read_arrays(opened.teacher.logits, "")["train"])
    )
    digest = json.loads(opened.teacher.cell.read_text())["weights_digest"]
    (block,) = {
        path
        for path in (out / "cache").glob("*.npy")
        if json.loads(path.with_suffix(".json").read_text())["checkpoint"] == digest
    }
    torch.testing.assert_close(torch.from_numpy(np.load(block)), logits)
    again = measure_run(out, "complexity", {"examples": 10, "epochs": [4]})
    assert again.result(ComplexityCurves).examples == 10


class Both(nn.Module):
    """Reads the rows of two tokenizers."""

    def __init__(self, vocabularies: tuple[int, ...]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(size + 1, 1) for size in vocabularies)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the sum over rows of the mean weight of a token; padding is one like others."""
        first, second = self.tables
        return first(tokens[:, 0] + 1) + second(tokens[:, 1] + 1)


def both(input_shape: tuple[int, ...], outputs: int, vocabularies: tuple[int, ...]) -> nn.Module:
    return Both(vocabularies)


@pytest.mark.parametrize("kind", ["encoder", "bert", "own"])
def test_what_a_student_of_text_ships_reads_sentences(
    study: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    from tokenizers import Tokenizer

    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    students = {
        "bert": {"name": study["teacher"]["model"]["name"], "tokenizer": 1, "pretrained": False},
        "own": {"name": "test_text:both"},
    }
    study["student"]["model"] = students.get(kind, study["student"]["model"])
    if kind == "encoder":
        study["student"]["model"]["tokenizer"] = "0"  # builders take it for a number
    study |= {"supervisions": [{"kind": "one-hot"}], "complexity": None, "deviation": False}
    run(study, tmp_path / "run", trust_code=True)
    made = export_run(
        tmp_path / "run",
        formats=["safetensors", "torch", "onnx"],
        out=tmp_path / "out",
        trust_code=True,
    )
    shipped = {"encoder": [0], "bert": [1], "own": [0, 1]}[kind]
    assert len(made.tokenizers) == len(shipped)
    assert made.input_shape == ((2, 14) if kind == "own" else (14,))
    assert all(file.stored_difference is not None for file in made.files)
    splits = load_splits(read_recipe(tmp_path / "run" / "recipe.yaml", trust_code=True).data)
    words = [sentence for sentence, _ in sentences(30, 10)]
    rows = []
    for place, name in zip(shipped, made.tokenizers, strict=True):
        reader = Tokenizer.from_file(str(tmp_path / "out" / name))
        assert reader.to_str() == Tokenizer.from_str(splits.tokenizers[place]).to_str()
        # As a user reads: cut and padded to the length that the program takes.
        length = 14 if place else 12
        cut = [encoded.ids[:length] for encoded in reader.encode_batch(words)]
        rows.append(torch.tensor([ids + [-1] * (14 - len(ids)) for ids in cut]))
    tokens = rows[0] if len(rows) == 1 else torch.stack(rows, 1)
    (stored,) = (tmp_path / "run" / "students").rglob("logits.npz")
    wanted = torch.from_numpy(read_arrays(stored, "")["test"])
    programs = [
        load_export(tmp_path / "out", trust_code=True)[0],
        torch.export.load(tmp_path / "out" / "model.pt2").module(),
        read_onnx(tmp_path / "out" / "model.onnx"),
    ]
    with torch.no_grad():
        for program in programs:
            torch.testing.assert_close(program(tokens), wanted, rtol=1e-4, atol=1e-5)
    if kind == "bert":
        return

    def again() -> None:
        export_run(tmp_path / "run", out=tmp_path / "out", trust_code=True)

    mine = tmp_path / "run" / "tokenizers" / "0" / "tokenizer.json"
    text = mine.read_text()
    mine.write_text("no tokenizer")
    with pytest.raises(RunError, match="not the tokenizer that the run was made with"):
        again()
    mine.write_text(text + " ")
    with pytest.raises(RunError, match="tokenizer 0 of the run is not the one that its data"):
        again()
    mine.unlink()
    with pytest.raises(RunError, match="cannot be read"):
        again()
    # What was shipped before is whole.
    load_export(tmp_path / "out", trust_code=True)
    (tmp_path / "out" / made.tokenizers[0]).write_text(text + " ")
    with pytest.raises(CheckpointError, match="is missing or not what model"):
        load_export(tmp_path / "out", trust_code=True)
