"""Data and teachers that cannot be used, given to the real command: one line and status 2."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from cases import class_folders, pictures, write_idx
from conftest import command, refused
from PIL import Image
from pyarrow import parquet

from distillens.errors import CheckpointError
from distillens.models import ModelRecipe, build_model, load_weights, save_weights

LABELS = np.arange(20) % 3
FLOATS = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path, at: float) -> None:
    """Damage the 16 bytes at a share of a file's length."""
    content = bytearray(path.read_bytes())
    start = int(at * len(content))
    content[start : start + 16] = bytes(byte ^ 0xFF for byte in content[start : start + 16])
    path.write_bytes(content)


def npz(**changes: Any) -> Callable[[Path], Path]:
    """Return what writes a good npz but for some arrays; None leaves one out."""

    def write(folder: Path) -> Path:
        arrays = {
            "train_inputs": FLOATS,
            "train_labels": LABELS,
            "test_inputs": FLOATS,
            "test_labels": LABELS,
            **changes,
        }
        path = folder / "data.npz"
        np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
        return path

    return write


def damaged_npz(damage: Callable[[Path], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = npz()(folder)
        damage(path)
        return path

    return write


def plain_array(folder: Path) -> Path:
    np.save(folder / "data.npy", FLOATS)
    return folder / "data.npy"


def other_value(array: np.ndarray, place: int, value: Any) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


def idx(damage: Callable[[Path], object], labels: int = 20) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_idx(folder, pictures()[:, 0], (np.arange(labels) % 3).astype(np.uint8))
        damage(folder)
        return folder

    return write


def repacked(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-7]))


def table(
    labels: Any, images: list[Any] | None = None, damage: Callable[[Path], object] | None = None
) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        Image.fromarray(pictures()[0, 0]).save(folder / "one.png")
        content = (folder / "one.png").read_bytes()
        cells = [{"bytes": content, "path": None}] * len(labels) if images is None else images
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(cells, kind), "label": labels}
        for split in ("train", "test"):
            parquet.write_table(pa.table(columns), folder / f"{split}.parquet")
        if damage is not None:
            damage(folder / "train.parquet")
        return folder

    return write


def images(damage: Callable[[Path], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        class_folders(folder)
        damage(folder)
        return folder

    return write


def other_size(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folder / "train" / "dog" / "0.png")


DATA: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "npz cut in half": ("npz", damaged_npz(halve), "no readable npz"),
    "npz empty": ("npz", damaged_npz(lambda p: p.write_bytes(b"")), "no readable npz"),
    "npz damaged inside": ("npz", damaged_npz(lambda p: flip(p, 0.1)), "no readable npz"),
    "npz damaged index": ("npz", damaged_npz(lambda p: flip(p, 0.85)), "no readable npz"),
    "a single array": ("npz", plain_array, "no readable npz"),
    "no file": ("npz", lambda folder: folder / "none.npz", "no file"),
    "no labels": ("npz", npz(train_labels=None), "needs train_inputs and train_labels"),
    "NaN inputs": (
        "npz", npz(train_inputs=other_value(FLOATS, 7, np.nan)), "example 7 holds a NaN",
    ),
    "inputs too large for float32": (
        "npz", npz(train_inputs=other_value(FLOATS.astype(float), 2, 1e300)), "infinity",
    ),
    "integer inputs": ("npz", npz(train_inputs=FLOATS.astype(int)), "uint8 or floating point"),
    "words as inputs": ("npz", npz(train_inputs=FLOATS.astype(str)), "inputs are no array of numbers"),
    "a number as inputs": ("npz", npz(train_inputs=np.float32(1)), "a single number"),
    "inputs of five axes": (
        "npz", npz(train_inputs=FLOATS[:, :, None, None, None]), "inputs must be",
    ),
    "inputs without features": ("npz", npz(train_inputs=FLOATS[:, :0]), "no values"),
    "negative label": (
        "npz", npz(train_labels=other_value(LABELS, 4, -1)), "label -1 of example 4 is out of range",
    ),
    "label beyond the names": (
        "npz", npz(classes=np.array(["a", "b"])), r"label 2 of example 2 is out of range.*\[0, 1\]",
    ),
    "label beyond reason": (
        "npz", npz(train_labels=other_value(LABELS, 4, 10**10)), "label 10000000000 of example 4",
    ),
    "test label beyond the training labels": (
        "npz", npz(test_labels=other_value(LABELS, 4, 9)), "out of range",
    ),
    "fractional labels": ("npz", npz(train_labels=LABELS + 0.5), "one integer an example"),
    "NaN labels": (
        "npz", npz(train_labels=other_value(LABELS * 1.0, 0, np.nan)), "one integer an example",
    ),
    "words as labels": (
        "npz", npz(train_labels=LABELS.astype(str)), "labels are no array of numbers but of <U",
    ),
    "one-hot labels": ("npz", npz(train_labels=np.eye(3)[LABELS].astype(int)), "one integer"),
    "one name of a class": ("npz", npz(classes=np.array("a")), "classes"),
    "too few labels": ("npz", npz(train_labels=LABELS[:19]), "20 inputs but 19 labels"),
    "no examples": (
        "npz", npz(train_inputs=FLOATS[:0], train_labels=LABELS[:0]), "no examples",
    ),
    "no test examples": (
        "npz", npz(test_inputs=FLOATS[:0], test_labels=LABELS[:0]), "no examples",
    ),
    "test inputs of another shape": ("npz", npz(test_inputs=FLOATS[:, :4]), "test inputs"),
    "idx labels cut": (
        "idx", idx(lambda f: halve(f / "t10k-labels-idx1-ubyte")), "promises 20 bytes",
    ),
    "idx gzip cut": (
        "idx", idx(lambda f: halve(f / "train-images-idx3-ubyte.gz")), "damaged or truncated",
    ),
    "idx gzip damaged": (
        "idx", idx(lambda f: flip(f / "train-images-idx3-ubyte.gz", 0.5)), "damaged or truncated",
    ),
    "idx cut before it was zipped": ("idx", idx(repacked), "promises 720 bytes"),
    "idx header cut": (
        "idx",
        idx(lambda f: (f / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08")),
        "no IDX file",
    ),
    "idx of unequal lengths": ("idx", idx(lambda f: None, labels=19), "20 inputs but 19 labels"),
    "idx file missing": (
        "idx", idx(lambda f: (f / "t10k-labels-idx1-ubyte").unlink()), "holds neither",
    ),
    "parquet cut": ("huggingface", table(LABELS, damage=halve), "cannot load"),
    "parquet empty": (
        "huggingface", table(LABELS, damage=lambda p: p.write_bytes(b"")), "cannot load",
    ),
    "parquet damaged inside": (
        "huggingface", table(LABELS, damage=lambda p: flip(p, 0.1)), "cannot|damaged",
    ),
    "parquet without rows": ("huggingface", table(LABELS[:0]), "no examples"),
    "parquet label missing": ("huggingface", table([0, 1, None]), "one integer an example"),
    "parquet label negative": ("huggingface", table([0, 1, -1]), "label -1 of example 2"),
    "parquet fractions as labels": ("huggingface", table([0.5, 1, 0]), "columns would do"),
    "parquet picture cut": (
        "huggingface", table([0, 1], [{"bytes": b"\x89PNG", "path": None}] * 2), "image 0 is no",
    ),
    "parquet picture missing": ("huggingface", table([0, 1], [None] * 2), "image 0 is no readable"),
    "picture cut": ("folder", images(lambda f: halve(f / "train/dog/1.png")), r"dog/1\.png"),
    "picture empty": (
        "folder", images(lambda f: (f / "test/emu/0.png").write_bytes(b"")), r"emu/0\.png",
    ),
    "picture of another size": ("folder", images(other_size), "images differ in size"),
    "folder instead of a picture": (
        "folder", images(lambda f: (f / "train/dog/2.png").mkdir()), r"dog/2\.png",
    ),
}  # fmt: skip


@pytest.fixture
def recipe(tiny: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a recipe of one epoch with other data or another teacher."""
    tiny["complexity"], tiny["deviation"] = None, False
    tiny["student"]["training"]["epochs"] = tiny["teacher"]["training"]["epochs"] = 1
    tiny["supervisions"] = tiny["supervisions"][:2]

    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**tiny, **changes}))
        return path

    return write


@pytest.mark.parametrize(("source", "write", "message"), DATA.values(), ids=DATA)
def test_data_that_cannot_be_used_are_one_line(
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    write: Callable[[Path], Path],
    message: str,
) -> None:
    (tmp_path / "data").mkdir()
    path = write(tmp_path / "data")
    made = recipe(data={"source": source, "path": str(path)})
    line = refused(capsys, "run", made, "--out", tmp_path / "run")
    assert re.search(message, line), line


def test_nothing_but_the_line_reaches_the_terminal(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """In a process of its own, where libraries may write to the terminal as well."""
    path = table([0, 1, -1])(tmp_path)
    made = recipe(data={"source": "huggingface", "path": str(path)})
    arguments = [sys.executable, "-m", "distillens", "run", str(made), "--out", str(tmp_path / "o")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("distillens: ")
    assert done.stderr.count("\n") == 1


def weights(classes: int = 10, value: float | None = None) -> Callable[[Path], Path]:
    """Return what writes a teacher's safetensors, perhaps with one weight set to a value."""

    def write(folder: Path) -> Path:
        network = build_model(ModelRecipe(name="mlp"), (1, 8, 8), classes, seed=0)
        if value is not None:
            next(network.parameters()).data[0, 0] = value
        save_weights(folder / "teacher.safetensors", network)
        return folder / "teacher.safetensors"

    return write


def damaged_weights(damage: Callable[[Path], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = weights()(folder)
        damage(path)
        return path

    return write


def saved(content: Any, damage: Callable[[Path], object] = lambda path: None) -> Callable:
    def write(folder: Path) -> Path:
        torch.save(content, folder / "teacher.pt")
        damage(folder / "teacher.pt")
        return folder / "teacher.pt"

    return write


STATE = {"weight": torch.zeros(3, 3)}
CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.safetensors", "no file"),
    "a folder": (lambda folder: folder, "no file"),
    "seven classes": (weights(7), "another class count"),
    "NaN": (weights(value=float("nan")), "holds a NaN"),
    "safetensors cut": (damaged_weights(halve), "no readable checkpoint"),
    "safetensors empty": (damaged_weights(lambda p: p.write_bytes(b"")), "no readable checkpoint"),
    "safetensors damaged": (damaged_weights(lambda p: flip(p, 0.0)), "no readable checkpoint"),
    "cut": (saved(STATE, halve), "no readable checkpoint|damaged"),
    "empty": (saved(STATE, lambda p: p.write_bytes(b"")), "no readable checkpoint|damaged"),
    "a list": (saved(["no", "state"]), "no state dict: it holds a list"),
    "nothing": (saved({}), "an empty state dict"),
    "a whole module": (saved(torch.nn.Linear(2, 2)), "never unpickled"),
    "numbers": (saved({"weight": 1.0}), "entry 'weight' is a float"),
    "another architecture": (saved(STATE), "has no weight"),
}


@pytest.mark.parametrize(("write", "message"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_cannot_teach_is_one_line(
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path], Path],
    message: str,
) -> None:
    made = recipe(teacher={"model": {"name": "mlp"}, "checkpoint": str(write(tmp_path))})
    line = refused(capsys, "run", made, "--out", tmp_path / "run")
    assert re.search(message, line), line


LOGITS = np.zeros((1797, 10), np.float32)


def logits(damage: Callable[[Path], object] = lambda path: None, **changes: Any) -> Callable:
    def write(folder: Path) -> Path:
        arrays = {"train": LOGITS, "test": LOGITS, **changes}
        np.savez(folder / "logits.npz", **{k: v for k, v in arrays.items() if v is not None})
        damage(folder / "logits.npz")
        return folder / "logits.npz"

    return write


def logits_in_an_npy(folder: Path) -> Path:
    np.save(folder / "logits.npy", LOGITS)
    return folder / "logits.npy"


ARRAYS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.npz", "no file"),
    "cut": (logits(halve), "cannot be read"),
    "a single array": (logits_in_an_npy, "logits of one split"),
    "no test": (logits(test=None), r"has the arrays \['train'\]"),
    "seven classes": (logits(train=LOGITS[:, :7]), r"\(1797, 7\); the task needs \(N, 10\)"),
    "one axis": (logits(train=LOGITS[:, 0]), r"\(1797,\); the task needs"),
    "too few": (logits(test=LOGITS[:50]), "has 50 rows"),
    "none": (logits(train=LOGITS[:0]), "has 0 rows"),
    "words": (logits(train=LOGITS.astype(str)), "not numbers"),
    "NaN": (logits(train=LOGITS * np.nan), "holds a NaN or"),
    "infinity": (logits(test=LOGITS + np.inf), "holds a NaN or"),
    "too large": (logits(train=LOGITS + np.float64(1e300)), "infinity"),
}


@pytest.mark.parametrize(("write", "message"), ARRAYS.values(), ids=ARRAYS)
def test_logits_that_cannot_teach_are_one_line(
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path], Path],
    message: str,
) -> None:
    made = recipe(teacher={"logits": str(write(tmp_path))})
    line = refused(capsys, "run", made, "--out", tmp_path / "run")
    assert re.search(message, line), line


def test_what_a_good_recipe_says_is_no_error(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """The tables above damage one thing each in something that works."""
    (tmp_path / "data").mkdir()
    path = npz()(tmp_path / "data")
    made = recipe(data={"source": "npz", "path": str(path)})
    assert command("run", made, "--out", tmp_path / "run") == 0
    for teacher in (
        {"model": {"name": "mlp"}, "checkpoint": str(weights()(tmp_path)), "allow_weak": True},
        {"logits": str(logits()(tmp_path)), "allow_weak": True},
    ):
        out = tmp_path / f"run-{len(teacher)}"
        assert command("run", recipe(teacher=teacher), "--out", out) == 0


def test_a_folder_whose_data_were_refused_takes_the_mended_recipe(
    tmp_path: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    size = tiny["data"].pop("test_size")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny))
    out = tmp_path / "out"
    assert "set data.test_size" in refused(capsys, "run", path, "--out", out)
    assert command("run", path, f"data.test_size={size}", "--out", out) == 0
    # From now on the folder is this recipe's.
    assert "made by another recipe" in refused(
        capsys, "run", path, "data.test_size=90", "--out", out
    )


def test_a_recipe_that_is_no_file_is_no_name_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nope.yaml; check the path" in refused(capsys, "run", tmp_path / "nope.yaml")
    assert "did you mean 'digits'" in refused(capsys, "run", "digts")


def test_a_checkpoint_of_another_kind_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "weights.pt"
    junk.write_text("hello there\n")
    with pytest.raises(CheckpointError, match="neither safetensors nor a file of"):
        load_weights(junk, torch.nn.Linear(1, 1))
