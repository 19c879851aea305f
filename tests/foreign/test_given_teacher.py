"""Teachers that were trained elsewhere: their accuracy, and the files that hold their logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from test_weights import PublishedResNet, trained
from torch import nn

import distillens
from distillens.data import DataRecipe, load_splits
from distillens.data.recipe import PRESETS
from distillens.errors import DataError, DistillensError, ModelError
from distillens.models import ModelRecipe, build_model

DATA = {"source": "digits", "train_size": 120, "validation_size": 60, "test_size": 100}
SPLITS = ("train", "validation", "test")


@pytest.fixture
def short(tiny: dict[str, Any]) -> dict[str, Any]:
    tiny["data"] = DATA
    tiny["student"]["training"]["epochs"] = 1
    tiny["supervisions"] = [{"kind": "offline", "temperature": 4}]
    return {**tiny, "complexity": None, "deviation": False}


@pytest.fixture(scope="module")
def teacher_rows() -> dict[str, np.ndarray]:
    """Logits of a good teacher, a row for every example of the teacher_rows, and the indices in use."""
    splits = load_splits(DataRecipe.model_validate(DATA))
    whole = load_splits(DataRecipe(test_size=1))
    logits = np.random.default_rng(0).normal(size=(1797, 10))
    for part in (whole.train, whole.test):
        logits[part.indices.numpy(), part.labels.numpy()] += 5
    used = {split: getattr(splits, split).indices.numpy() for split in SPLITS}
    return {"logits": logits.astype(np.float32), **used}


def npz_of_all(teacher_rows: dict[str, np.ndarray], folder: Path) -> Any:
    np.savez(folder / "t.npz", train=teacher_rows["logits"], test=teacher_rows["logits"])
    return str(folder / "t.npz")


def npz_in_use(teacher_rows: dict[str, np.ndarray], folder: Path) -> Any:
    # In the order of the source, which is that of the indices.
    rows: dict[str, Any] = {
        split: teacher_rows["logits"][np.sort(teacher_rows[split])] for split in SPLITS
    }
    np.savez(folder / "t.npz", **rows)
    return str(folder / "t.npz")


def npz_with_index(teacher_rows: dict[str, np.ndarray], folder: Path) -> Any:
    rows = {}
    for split in SPLITS:
        shuffled = np.random.default_rng(1).permutation(teacher_rows[split])
        rows |= {split: teacher_rows["logits"][shuffled], f"{split}_index": shuffled}
    np.savez(folder / "t.npz", **rows)
    return str(folder / "t.npz")


def safetensors(teacher_rows: dict[str, np.ndarray], folder: Path) -> Any:
    rows = torch.from_numpy(teacher_rows["logits"])
    save_file({"train": rows, "test": rows.clone()}, folder / "t.safetensors")
    return str(folder / "t.safetensors")


def npy_files(teacher_rows: dict[str, np.ndarray], folder: Path) -> Any:
    np.save(folder / "t.npy", teacher_rows["logits"])
    return {"train": str(folder / "t.npy"), "test": str(folder / "t.npy")}


def parquet_with_index(teacher_rows: dict[str, np.ndarray], folder: Path) -> Any:
    found = {}
    for split in SPLITS:
        shuffled = np.random.default_rng(2).permutation(teacher_rows[split])
        rows = pa.array(list(teacher_rows["logits"][shuffled]), type=pa.list_(pa.float32()))
        pq.write_table(pa.table({"index": shuffled, "logits": rows}), folder / f"{split}.parquet")
        found[split] = f"{folder / split}.parquet::logits"
    return found


def csv_of_pandas(teacher_rows: dict[str, np.ndarray], folder: Path) -> Any:
    """Its header is 0, 1, 2, …, and its first column, without a name, is the row number."""
    found = {}
    for split, indices in ((split, teacher_rows[split]) for split in SPLITS):
        frame = pd.DataFrame(teacher_rows["logits"][indices], index=indices)
        frame.to_csv(folder / f"{split}.csv")
        found[split] = str(folder / f"{split}.csv")
    return found


def csv_in_another_order(teacher_rows: dict[str, np.ndarray], folder: Path) -> Any:
    columns = [f"logit_{i}" for i in range(10)]
    frame = pd.DataFrame(teacher_rows["logits"], columns=columns)[columns[::-1]]
    frame.to_csv(folder / "t.csv", index=False)
    return {"train": str(folder / "t.csv"), "test": str(folder / "t.csv")}


FORMS = [
    csv_in_another_order,
    csv_of_pandas,
    npz_of_all,
    npz_in_use,
    npz_with_index,
    safetensors,
    npy_files,
    parquet_with_index,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_each_example_gets_its_own_logits(
    form: Callable[..., Any],
    short: dict[str, Any],
    teacher_rows: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    short["teacher"] = {"logits": form(teacher_rows, tmp_path)}
    distillens.run(short, tmp_path / "run")
    with np.load(tmp_path / "run" / "teacher" / "logits.npz") as stored:
        for split in SPLITS:
            np.testing.assert_array_equal(
                stored[split], teacher_rows["logits"][teacher_rows[split]]
            )


@pytest.mark.parametrize(
    ("rows", "index", "message"),
    [
        (slice(50), None, "has 50 rows, but 120 examples are used"),
        (slice(None), np.zeros(1797, int), "index 0 twice"),
        (slice(100), np.arange(100), "has no row with index"),
        (slice(3), np.array(["a", "b", "c"]), "numbered from 0"),
    ],
)
def test_rows_that_belong_to_no_example_are_refused(
    rows: slice,
    index: np.ndarray | None,
    message: str,
    short: dict[str, Any],
    teacher_rows: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    arrays: dict[str, Any] = {"train": teacher_rows["logits"][rows], "test": teacher_rows["logits"]}
    if index is not None:
        arrays["train_index"] = index
    np.savez(tmp_path / "t.npz", **arrays)
    short["teacher"] = {"logits": str(tmp_path / "t.npz")}
    with pytest.raises(DataError, match=message):
        distillens.run(short, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_knows_nothing_is_refused_unless_it_is_wanted(
    short: dict[str, Any], teacher_rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Its classes are in another order."""
    logits = np.roll(teacher_rows["logits"], 1, axis=1)
    np.savez(tmp_path / "t.npz", train=logits, test=logits)
    teacher: dict[str, Any] = {"logits": str(tmp_path / "t.npz")}
    short["teacher"] = teacher
    with pytest.raises(ModelError, match=r"right on .* % of the training and validation examples"):
        distillens.run(short, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    teacher["allow_weak"] = True
    distillens.run(short, tmp_path / "run")


def test_the_accuracy_of_a_given_teacher_is_shown_first(
    short: dict[str, Any], teacher_rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    from distillens.progress import silent

    shown: list[str] = []

    def progress(title: str, total: int, done: int = 0) -> Any:
        shown.append(title)
        return silent(title, total, done)

    short["teacher"] = {"logits": npz_of_all(teacher_rows, tmp_path)}
    result = distillens.run(short, tmp_path / "run", progress=progress)
    teacher = result.cells[0]
    assert shown[0] == (
        f"teacher: right on {100 * teacher.train_accuracy:.1f} % of 120 training examples and "
        f"{100 * (teacher.validation_accuracy or 0):.1f} % of 60 validation examples"
    )


@pytest.mark.parametrize(
    "teacher",
    [
        {"logits": {"train": "a.npy"}},
        {"logits": {"train": "a.npy", "test": "a.npy", "dev": "a.npy"}},
        {"logits": "a.npy"},
        {"run": "elsewhere", "allow_weak": True},
    ],
)
def test_what_a_recipe_cannot_mean_is_refused(
    teacher: dict[str, Any], short: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.zeros((1797, 10)))
    with pytest.raises(DistillensError):
        distillens.run({**short, "teacher": teacher}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_published_cifar_checkpoint_is_a_teacher_in_three_lines(
    short: dict[str, Any], tmp_path: Path
) -> None:
    """Labels are what the network answers on inputs that are normalised outside of it."""
    published = trained(PublishedResNet(3, "A", "shortcut", "linear")).eval()
    images = np.random.default_rng(0).integers(0, 256, (240, 3, 32, 32), dtype=np.uint8)
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in PRESETS["cifar10"])
    inputs = (torch.from_numpy(images) / 255 - mean) / std
    with torch.no_grad():
        # A random network would give nearly all examples to one class.
        head, logits = cast(nn.Linear, published.get_submodule("linear")), published(inputs)
        head.bias.copy_((head.bias - logits.mean(0)) / logits.std(0))
        head.weight /= logits.std(0)[:, None]
        labels = published(inputs).argmax(1).numpy()
    assert set(labels) == set(range(10))
    torch.save(
        {"state_dict": nn.DataParallel(published).state_dict(), "best_prec1": 91.7},
        tmp_path / "resnet20.th",
    )
    np.savez(
        tmp_path / "d.npz",
        train_inputs=images[:160],
        train_labels=labels[:160],
        test_inputs=images[160:],
        test_labels=labels[160:],
    )
    short["data"] = {"source": "npz", "path": str(tmp_path / "d.npz")}
    short["teacher"] = {
        "model": {"name": "resnet20"},
        "checkpoint": str(tmp_path / "resnet20.th"),
        "normalisation": "cifar10",
    }
    result = distillens.run(short, tmp_path / "run")
    assert result.cells[0].train_accuracy == 1
    assert any("removed the prefix 'module.'" in note for note in result.notes)
    del short["teacher"]["normalisation"]
    short["teacher"]["allow_weak"] = True
    assert distillens.run(short, tmp_path / "other").cells[0].train_accuracy < 1


def test_a_first_row_that_may_be_a_header_is_refused(short: dict[str, Any], tmp_path: Path) -> None:
    rows = np.eye(10, dtype=int)[np.arange(1797) % 10]
    rows[0] = np.arange(10)
    np.savetxt(tmp_path / "t.csv", rows, fmt="%d", delimiter=",")
    path = str(tmp_path / "t.csv")
    short["teacher"] = {"logits": {"train": path, "test": path}}
    with pytest.raises(DataError, match="may be a header"):
        distillens.run(short, tmp_path / "run")


@pytest.mark.parametrize("form", ["permuted columns", "probabilities"])
def test_stored_outputs_of_other_forms_are_the_same_teacher(
    form: str, short: dict[str, Any], teacher_rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Softmax at every temperature is that of the teacher's logits."""
    logits = teacher_rows["logits"].astype(np.float64)
    path = str(tmp_path / "t.csv")
    if form == "probabilities":
        frame = pd.DataFrame(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    else:
        frame = pd.DataFrame(logits)[np.random.default_rng(0).permutation(10)]
    frame.to_csv(path)
    short["teacher"] = {"logits": {"train": path, "test": path}}
    notes = distillens.run(short, tmp_path / "run").notes
    assert any("by their names" in note or "their logarithms" in note for note in notes)
    with np.load(tmp_path / "run" / "teacher" / "logits.npz") as stored:
        wanted = logits[teacher_rows["test"]]
        for tau in (1, 4):
            one, other = (torch.from_numpy(z / tau).softmax(1) for z in (stored["test"], wanted))
            np.testing.assert_allclose(one, other, rtol=1e-5)


def test_probabilities_that_have_no_logarithm_are_refused(
    short: dict[str, Any], teacher_rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.save(tmp_path / "t.npy", np.eye(10)[teacher_rows["logits"].argmax(1)])
    path = str(tmp_path / "t.npy")
    short["teacher"] = {"logits": {"train": path, "test": path}}
    with pytest.raises(DataError, match="probabilities, some of which are 0"):
        distillens.run(short, tmp_path / "run")


TWO_LOGITS = """
from torch import nn


def two():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
"""


@pytest.mark.parametrize("given", ["checkpoint", "logits", "one column"])
def test_two_logits_of_two_classes_are_one(
    given: str, short: dict[str, Any], tmp_path: Path
) -> None:
    """A softmax over two logits is the sigmoid of their difference."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 1, 8, 8)).astype(np.float32)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        logits = network(torch.from_numpy(inputs)).numpy()
    labels = logits.argmax(1)
    halves = {"train": slice(140), "test": slice(140, 200)}
    np.savez(
        tmp_path / "d.npz",
        **{f"{split}_inputs": inputs[part] for split, part in halves.items()},
        **{f"{split}_labels": labels[part] for split, part in halves.items()},
    )
    short["data"] = {"source": "npz", "path": str(tmp_path / "d.npz")}
    difference = logits[:, 1] - logits[:, 0]
    if given == "checkpoint":
        (tmp_path / "two_logits.py").write_text(TWO_LOGITS)
        torch.save(network.state_dict(), tmp_path / "t.pt")
        short["code"] = str(tmp_path)
        short["teacher"] = {
            "model": {"name": "two_logits:two"},
            "checkpoint": str(tmp_path / "t.pt"),
            "normalisation": "none",
        }
    else:
        stored = logits if given == "logits" else difference
        np.savez(tmp_path / "t.npz", **{split: stored[part] for split, part in halves.items()})
        short["teacher"] = {"logits": str(tmp_path / "t.npz")}
    distillens.run(short, tmp_path / "run", trust_code=True)
    with np.load(tmp_path / "run" / "teacher" / "logits.npz") as found:
        np.testing.assert_allclose(found["test"][:, 0], difference[halves["test"]], atol=1e-5)


def test_probabilities_of_the_second_class_are_not_taken_for_logits(
    short: dict[str, Any], tmp_path: Path
) -> None:
    short["data"] = {**DATA, "groups": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}
    rows = np.random.default_rng(0).uniform(size=(1797, 1))
    np.savez(tmp_path / "t.npz", train=rows, test=rows)
    short["teacher"] = {"logits": str(tmp_path / "t.npz")}
    with pytest.raises(DataError, match="between 0 and 1 only"):
        distillens.run(short, tmp_path / "run")


def test_a_teacher_that_may_know_nothing_is_said_in_the_results(
    short: dict[str, Any], tmp_path: Path
) -> None:
    """A recipe may want a weak teacher, but readers of its results must know."""
    rows = np.random.default_rng(3).normal(size=(1797, 10))
    np.savez(tmp_path / "t.npz", train=rows, test=rows)
    short["teacher"] = {"logits": str(tmp_path / "t.npz"), "allow_weak": True}
    notes = distillens.run(short, tmp_path / "run").notes
    assert any("not measurably better than always answering" in note for note in notes)


def test_a_network_of_two_logits_is_exported_for_every_batch_size(tmp_path: Path) -> None:
    (tmp_path / "exported_two.py").write_text(TWO_LOGITS)
    recipe = ModelRecipe(name="exported_two:two")
    recipe.look_in(tmp_path)
    network = build_model(recipe, (1, 8, 8), 1, seed=0, trust_code=True).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    inputs = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(program.module()(inputs), network(inputs))
    assert network(inputs).shape == (5, 1)


def test_two_classes_take_one_or_two_columns(
    short: dict[str, Any], teacher_rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The only output of two classes is the difference of their logits."""
    short["data"] = {**DATA, "groups": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}
    logits = teacher_rows["logits"].astype(np.float64)
    halves = np.exp(logits.reshape(-1, 2, 5))
    two = np.log(halves.sum(axis=2))
    wanted = (two[:, 1:] - two[:, :1]).astype(np.float32)
    used = load_splits(DataRecipe.model_validate(short["data"]))
    for name, rows in (("two", two), ("one", wanted), ("flat", wanted[:, 0])):
        np.savez(tmp_path / "t.npz", train=rows, test=rows)
        short["teacher"] = {"logits": str(tmp_path / "t.npz")}
        distillens.run(short, tmp_path / name)
        with np.load(tmp_path / name / "teacher" / "logits.npz") as stored:
            for split in SPLITS:
                np.testing.assert_array_equal(stored[split], wanted[getattr(used, split).indices])


def test_outputs_that_are_no_logits_of_the_classes_are_refused(
    short: dict[str, Any], teacher_rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    short["data"] = {**DATA, "groups": [[0, 1], [2, 3], [4]]}
    pd.DataFrame(teacher_rows["logits"][:, :3], columns=["a", "b", "c"]).to_csv(
        tmp_path / "t.csv", index=False
    )
    path = str(tmp_path / "t.csv")
    short["teacher"] = {"logits": {"train": path, "test": path}}
    with pytest.raises(DataError, match="the columns a, b, c, the data have the classes 0\\+1"):
        distillens.run(short, tmp_path / "run")
