"""Statements on the page of a real run, recomputed from the arrays of the run by independent code."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import command
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("statements")
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05}
    recipe = {
        "name": "statements",
        "seeds": list(SEEDS),
        "data": {
            "source": "digits", "test_size": 300, "validation_size": 100, "train_size": 300,
            "label_noise": 0.2,
        },
        "teacher": {"model": {"name": "mlp", "hidden": [64]}, "training": training},
        "student": {"model": {"name": "mlp", "hidden": [8]}, "training": training},
        "supervisions": [{"kind": "one-hot"}, {"kind": "offline", "temperature": 1}],
        "complexity": None,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert command("run", path, "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def logits(run: Path, network: str, split: str = "test") -> np.ndarray:
    with np.load(run / network / "logits.npz") as found:
        return found[split]


def student(place: int, seed: int) -> str:
    return f"students/{('00-one-hot', '01-offline-t1')[place]}/seed-{seed}"


def fact(page: str, name: str) -> str:
    found = re.search(rf"<dt>{name}</dt><dd><b>([^<]*)</b>", page)
    assert found is not None, name
    return html.unescape(found[1])


def accuracy(run: Path, place: int, seed: int) -> float:
    """The share of test examples on which the confidence analysis found the student right."""
    (points,) = run.glob(f"analyses/confidence-*/points-{place:02d}-seed-{seed}-test.npz")
    with np.load(points) as found:
        return float(np.isin(found["who"], (0, 1)).mean())


def number(text: str) -> float:
    found = re.search(r"[−+-]?[\d.,]+", text)
    assert found is not None
    return float(found[0].replace("−", "-").replace(",", ""))


def test_the_test_accuracy_is_the_mean_over_seeds(run: Path, page: str) -> None:
    values = [accuracy(run, 1, seed) for seed in SEEDS]
    assert number(fact(page, "Test accuracy")) == pytest.approx(100 * np.mean(values), abs=0.051)


def test_the_gain_is_the_mean_paired_difference(run: Path, page: str) -> None:
    gain = [accuracy(run, 1, seed) - accuracy(run, 0, seed) for seed in SEEDS]
    shown = number(fact(page, "Gain over labels alone"))
    assert shown == pytest.approx(100 * np.mean(gain), abs=0.051)


def test_the_ratio_of_parameters_counts_the_stored_weights(run: Path, page: str) -> None:
    def count(network: str) -> int:
        weights = sorted((run / network).glob("epoch-*.safetensors"))[-1]
        return sum(values.size for values in load_file(weights).values())

    ratio = count("teacher") / count(student(1, 0))
    assert number(fact(page, "Parameters")) == pytest.approx(ratio, rel=0.06)


def test_the_matrix_counts_the_top_classes_of_both_networks(run: Path, page: str) -> None:
    teacher = logits(run, "teacher").argmax(1)
    student_top = logits(run, student(1, 0)).argmax(1)
    table = page[page.index("Classes of student and teacher") :]
    rows = re.findall(r'<tr><th scope="row">(\d)</th>(.*?)</tr>', table, flags=re.DOTALL)[:10]
    assert len(rows) == 10
    for name, cells in rows:
        counts = [
            number(cell) if cell != "·" else 0 for cell in re.findall(r"<td>(.*?)</td>", cells)
        ]
        expected = np.bincount(student_top[teacher == int(name)], minlength=10)
        assert counts == expected.tolist(), name


def test_the_first_differing_example_moved_the_most_probability(run: Path, page: str) -> None:
    softmax = [
        np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
        for z in (logits(run, "teacher").astype(float), logits(run, student(1, 0)).astype(float))
    ]
    teacher, ours = softmax
    top, own = teacher.argmax(1), ours.argmax(1)
    rows = np.arange(len(top))
    moved = teacher[rows, top] - ours[rows, top] + ours[rows, own] - teacher[rows, own]
    moved[top == own] = -1
    best = int(moved.argmax())
    card = re.search(
        r'data-supervision="offline τ=1" data-split="test".*?</li>', page, flags=re.DOTALL
    )
    assert card is not None
    text = re.sub(r"<[^>]+>", "\n", card[0])
    assert f"student: {own[best]}, {100 * ours[best, own[best]]:.0f} %" in text
    assert f"teacher: {top[best]}, {100 * teacher[best, top[best]]:.0f} %" in text


def test_pictures_are_those_of_the_data(run: Path, page: str) -> None:
    card = re.search(
        r'<li class="card"[^>]*data-split="test"[^>]*>\s*<img src="data:image/png;base64,([^"]+)".*?'
        r"label: (\d).*?test, index (\d+)",
        page,
        flags=re.DOTALL,
    )
    assert card is not None
    digits: Any = load_digits()
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(card[1]))), dtype=float)
    original = digits.images[int(card[3])]
    assert np.corrcoef(pixels.ravel(), original.ravel())[0, 1] > 0.999
    assert digits.target[int(card[3])] == int(card[2])


def test_the_verdict_follows_from_the_interval_that_is_shown(page: str) -> None:
    word = re.search(r'<span class="word">([^<]+)</span>', page)
    span = re.search(r"<dt>Gain over labels alone</dt><dd><b>[^<]*</b> <span>\[([^\]]+)\]", page)
    assert word is not None
    assert span is not None
    low, high = (number(part) for part in html.unescape(span[1]).split(", "))
    mean = number(fact(page, "Gain over labels alone"))
    expected = "Cannot be told"
    if low >= -0.5 and high <= 0.5:
        expected = "Does not matter"
    elif low > 0:
        expected = "Helps"
    elif high < 0:
        expected = "Hurts"
    elif mean > 0.5:
        expected = "Probably helps"
    assert word[1] == expected
