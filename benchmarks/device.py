"""Everything that needs a GPU, in one call: tests, step times, the kernel table, and the CIFAR-100 row.

    python benchmarks/device.py --data packed --out results --minutes 9.5

runs its parts in this order and writes results/device.json after every measurement, so that a call
which is cut short leaves what it had. The row is trained for as many epochs as fit into the minutes that
are left, computed from the measured step times; its learning-rate schedule is the paper's in proportion.
With --toy everything runs on a CPU in about a minute, on random images and with small networks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernel_cases import DEVICE_CASES
from kernel_device import measure
from machine import machine
from packed_images import read_images
from plain_step import PlainStep, bound_milliseconds, ceilings, milliseconds

import distillens
from distillens.models import ModelRecipe, build_model, measure_cost

PARTS = ("tests", "steps", "kernel", "row")
BATCH = 128
STEP_EPOCHS = 3
"""Epochs of which the last is timed; the step is captured in the first."""
SUPERVISIONS: dict[str, dict[str, Any]] = {
    "no KD": {"kind": "one-hot"},
    "offline τ=1": {"kind": "offline", "temperature": 1},
    "offline τ=4": {"kind": "offline", "temperature": 4},
    "online τ=1": {"kind": "online", "temperature": 1},
    "online τ=4": {"kind": "online", "temperature": 4},
}
TOY_CASES = ("lenet5x8-512",)
SINGLE = ("no KD", "offline τ=4", "online τ=4")


@dataclass(frozen=True)
class Setting:
    """What is measured: networks and images, and where files go."""

    data: Path
    """An npz of images and labels."""
    images: int
    side: int
    classes: int
    teacher: dict[str, Any]
    student: dict[str, Any]
    scratch: Path
    device: torch.device

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.images // BATCH)

    def recipe(
        self, epochs: int, names: Sequence[str], teacher_run: Path | None = None
    ) -> dict[str, Any]:
        """Return the row as a recipe, with some of its supervisions."""

        def training(rate: float) -> dict[str, Any]:
            warmup = 10 * epochs / 256
            # All that is needed of an epoch is its logits; weights of 16 MB a student are kept rarely.
            return {
                "epochs": epochs, "batch_size": BATCH, "learning_rate": rate, "weight_decay": 2e-4,
                "schedule": {"milestones": [0.375, 0.75, 0.875], "warmup": warmup},
            }  # fmt: skip

        teacher: dict[str, Any] = {"model": self.teacher, "training": training(0.1)}
        student = {**training(0.04), "clip_norm": 5, "checkpoint_every": epochs}
        return {
            "name": "device-row",
            "seeds": [0],
            "precision": "bfloat16",
            "data": {
                "source": "npz",
                "path": str(self.data),
                "augmentation": {"crop": 4, "flip": True},
            },
            "teacher": teacher if teacher_run is None else {"run": str(teacher_run)},
            "student": {"model": self.student, "training": student},
            "supervisions": [SUPERVISIONS[name] for name in names],
            "complexity": None,
            "deviation": False,
        }


@dataclass
class Record:
    """The results so far, written after every change."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)

    def put(self, part: str, name: str, value: Any) -> None:
        """Add a result, print it, and write all of them."""
        self.values.setdefault(part, {})[name] = value
        print(f"{part}: {name}: {value}", flush=True)
        self.write()

    def write(self) -> None:
        """Write all results."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.values, indent=1, ensure_ascii=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts."""
    asked = parse(arguments)
    began = time.perf_counter()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device; give --device cpu --toy to try the script on a CPU")
    record = Record(asked.out / "device.json")
    about = machine(torch.get_num_threads())
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    record.put("machine", "about", {**about, "card": card, "distillens": distillens.__version__})
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(asked, device, Path(folder))
        deadline = began + 60 * asked.minutes
        for part in asked.parts:
            started = time.perf_counter()
            {"tests": tests, "steps": steps, "kernel": kernel, "row": row}[part](
                setting, record, deadline
            )
            record.put(part, "seconds", round(time.perf_counter() - started, 1))
    record.put("machine", "seconds", round(time.perf_counter() - began, 1))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-100: parquet files or packed mosaics")
    parser.add_argument("--out", type=Path, default=Path("device-results"))
    parser.add_argument("--minutes", type=float, default=9.5, help="when everything has to be done")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--toy", action="store_true", help="random images, small networks, one epoch"
    )
    asked = parser.parse_args(arguments)
    for part in asked.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}; parts are {', '.join(PARTS)}")
    if asked.data is None and not asked.toy:
        parser.error("--data is needed: a folder of CIFAR-100 (or --toy for random images)")
    return asked


def prepare(asked: argparse.Namespace, device: torch.device, scratch: Path) -> Setting:
    """Write the examples as an npz and choose the networks."""
    if asked.toy:
        noise = np.random.default_rng(0)
        arrays = {
            f"{letter}_{split}": values
            for split, count in (("train", 2 * BATCH), ("test", 50))
            for letter, values in (
                ("x", noise.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)),
                ("y", (np.arange(count) % 10).astype(np.uint8)),
            )
        }
        networks: tuple[dict[str, Any], ...] = (
            {"name": "resnet8"},
            {"name": "lenet5", "pad_to": 0},
        )
    else:
        arrays = read_images(asked.data)
        networks = ({"name": "resnet56"}, {"name": "lenet5", "width": 8})
    data = scratch / "examples.npz"
    np.savez(data, allow_pickle=False, **arrays)
    images = arrays["x_train"]
    side = len(images[0])
    classes = int(arrays["y_train"].max()) + 1
    return Setting(data, len(images), side, classes, *networks, scratch, device)


def tests(setting: Setting, record: Record, deadline: float) -> None:
    """Run the tests that need a GPU."""
    root = Path(__file__).resolve().parents[1]
    # Collecting all tests takes longer than running these.
    files = [
        str(f) for f in sorted(root.glob("tests/**/test_*.py")) if "mark.cuda" in f.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", *files]
    left = max(10.0, deadline - time.perf_counter())
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=root, timeout=left, check=False
        )
    except subprocess.TimeoutExpired:
        record.put("tests", "result", f"not finished within {left:.0f} s")
        return
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    record.put(
        "tests", "result", {"status": done.returncode, "last line": lines[-1] if lines else ""}
    )
    if done.returncode not in (0, 5):
        record.put("tests", "output", lines[-40:])


def steps(setting: Setting, record: Record, deadline: float) -> None:
    """Time the steps of the row's networks beside a plain loop and the bounds of the device."""
    device = setting.device
    rates = ceilings(device, 8192 if device.type == "cuda" else 256)
    record.put("steps", "ceilings", {"bf16 operations/s": rates[0], "copied bytes/s": rates[1]})
    shape, count = (3, setting.side, setting.side), 100 if device.type == "cuda" else 2

    def fresh(model: dict[str, Any]) -> Any:
        return build_model(ModelRecipe(**model), shape, setting.classes, seed=0)

    inputs = torch.randn(BATCH, *shape, device=device)
    labels = torch.arange(BATCH, device=device) % setting.classes
    for name, model in (("teacher", setting.teacher), ("student", setting.student)):
        plain = PlainStep(fresh(model), inputs, labels)
        record.put("steps", f"plain loop, {name}, ms", milliseconds([plain], count, device))
        cost = measure_cost(fresh(model), shape, device="cpu", batch=1, runs=1).multiply_adds
        bound = bound_milliseconds(fresh(model).to(device), BATCH, shape, cost, rates)
        record.put("steps", f"bound, {name}", bound)
    five = [PlainStep(fresh(setting.student), inputs, labels) for _ in SUPERVISIONS]
    record.put("steps", "plain loop, five students, ms", milliseconds(five, count, device))
    del five
    folder = setting.scratch / "steps"
    distillens.run(setting.recipe(STEP_EPOCHS, list(SUPERVISIONS)), folder)
    record.put("steps", "distillens, teacher, ms", last_epoch(setting, folder / "teacher"))
    together = sum(last_epoch(setting, path) for path in sorted(folder.glob("students/*/seed-0")))
    record.put("steps", "distillens, five students, ms", together)
    for name in SINGLE:
        alone = setting.scratch / f"steps-{name}"
        distillens.run(setting.recipe(STEP_EPOCHS, [name], folder), alone)
        (path,) = alone.glob("students/*/seed-0")
        record.put("steps", f"distillens, {name}, ms", last_epoch(setting, path))


def last_epoch(setting: Setting, network: Path) -> float:
    """Return the milliseconds of a step in the last epoch, its teacher's logits included."""
    lines = (network / "history.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["seconds"] / setting.steps * 1000


def kernel(setting: Setting, record: Record, deadline: float) -> None:
    """Measure Gram matrices beside torch.func, in at most a third of the time that is left."""
    toy = setting.device.type == "cpu"
    cases = [case for case in DEVICE_CASES if not toy or case.name in TOY_CASES]
    lines = measure(
        setting.device,
        seconds=(deadline - time.perf_counter()) / 3,
        cases=cases,
        scale=0.02 if toy else 1.0,
        repeats=1 if toy else 3,
    )
    for line in lines:
        name = f"{line['case']}, {line['method']}"
        named = name if line["setting"] is None else f"{name} of {line['setting']}"
        record.put("kernel", named, {k: v for k, v in line.items() if k not in ("case", "method")})


def row(setting: Setting, record: Record, deadline: float) -> None:
    """Train the row for as many epochs as fit, and write the accuracy of each network."""
    times = record.values.get("steps", {})
    if "distillens, five students, ms" not in times:
        sys.exit("the row needs the step times; run the part steps before it")
    per_step = times["distillens, teacher, ms"] + times["distillens, five students, ms"]
    left = deadline - time.perf_counter()
    # A tenth is left for reading data, checkpoints, and the logits of the finished networks.
    epochs = int(0.9 * left / (per_step / 1000 * setting.steps))
    if setting.device.type == "cpu":
        epochs = min(epochs, 2)
    if epochs < 1:
        record.put("row", "result", f"not trained: {left:.0f} s are left, an epoch takes longer")
        return
    record.put("row", "epochs", min(epochs, 256))
    folder = setting.scratch / "row"
    recipe = setting.recipe(min(epochs, 256), list(SUPERVISIONS))
    with watched(folder, record):
        result = distillens.run(recipe, folder)
    for line in result.rows:
        interval = line.accuracy.interval
        limits = [] if interval is None else [interval.low, interval.high]
        record.put("row", line.name, {"test accuracy": line.accuracy.value, "interval": limits})


@contextmanager
def watched(folder: Path, record: Record) -> Iterator[None]:
    """Write how far each network of a run is, every 20 seconds and at the end."""
    over = threading.Event()

    def look() -> None:
        for path in sorted(folder.rglob("history.jsonl")):
            lines = [json.loads(text) for text in path.read_text().splitlines()]
            name = str(path.parent.relative_to(folder))
            kept = lines[15::16] + ([] if len(lines) % 16 == 0 else lines[-1:])
            record.values.setdefault("row", {}).setdefault("training", {})[name] = kept
        record.write()

    def watch() -> None:
        while not over.wait(20):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()


if __name__ == "__main__":
    main()
