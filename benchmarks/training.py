"""How fast a grid of teacher, supervisions and seeds trains: distillens against the usual loop.

``python benchmarks/training.py`` prints JSON on the standard output and its progress on the other. What
the numbers mean is in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cached_step import measure_cached_step
from grid import CAREFUL, OURS, PUBLIC, TEACHER, WAYS, Grid, Setting, run_grid
from machine import DATA, busy_note, machine, tell

from distillens.data import DataRecipe, load_splits
from distillens.errors import DistillensError
from distillens.measures import accuracy_estimate, paired_gain, wilson_interval
from distillens.results.base import Estimate

MODELS = ({"name": "resnet56"}, {"name": "lenet5", "width": 8})
TARGETS = {PUBLIC: {"1": 2.5, "3": 3.5}, CAREFUL: {"1": 1.1, "3": 1.5}}
STEP_TARGET = 1.05


def benchmark(
    setting: Setting,
    counts: tuple[int, ...],
    *,
    pairs: int = 150,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run everything and return what is printed.

    Parameters
    ----------
    setting
        Data, models and sizes; its seeds are the most of ``counts``.
    counts
        Numbers of seeds to state the grid's time for.
    pairs
        Of steps, for the cost of a cached step.
    say
        Told how far it is.
    """
    started = machine(torch.get_num_threads())
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="distillens-benchmark-") as name:
        folder = Path(name)
        say("cost of a step with cached logits")
        step = measure_cached_step(
            setting.splits.train,
            setting.teacher,
            setting.student,
            folder / "steps",
            pairs,
            batch_size=setting.batch_size,
        )
        grid = run_grid(setting, folder, say)
    ways = {way: way_numbers(grid, way, setting, counts) for way in WAYS}
    return {
        "setting": {
            "teacher": setting.teacher,
            "student": setting.student,
            "train_images": len(setting.splits.train),
            "test_images": len(setting.splits.test),
            "classes": len(setting.splits.train.classes),
            "epochs": setting.epochs,
            "steps_a_network": setting.epochs
            * math.ceil(len(setting.splits.train) / setting.batch_size),
            "batch_size": setting.batch_size,
            "seeds": list(range(setting.seeds)),
        },
        "ways": ways,
        "ratios": ratios(ways, counts),
        "targets": {"ratios": TARGETS, "cached_step_over_one_hot_step": STEP_TARGET},
        "step": step,
        "accuracy": accuracies(grid, len(setting.splits.test)),
        "notes": busy_note(started),
        "not_timed": "reading and decoding the data set, for all three alike; the last evaluation "
        "is in grid_with_evaluation_seconds only",
        "provenance": {
            **started,
            "seconds": time.perf_counter() - clock,
            "load_average_after": os.getloadavg(),
        },
    }


def way_numbers(grid: Grid, way: str, setting: Setting, counts: tuple[int, ...]) -> dict[str, Any]:
    """Return one way's seconds and images a second."""
    mine = [trained for trained in grid.trained if trained.way == way]
    visits = setting.epochs * len(setting.splits.train)
    teacher = sum(t.seconds for t in mine if t.supervision == TEACHER)
    students = {
        str(count): sum(t.seconds for t in mine if t.supervision != TEACHER and t.seed < count)
        for count in counts
    }
    by_supervision: dict[str, list[float]] = {}
    for trained in mine:
        by_supervision.setdefault(trained.supervision, []).append(trained.seconds)
    networks = 1 + setting.seeds * (len(by_supervision) - 1)
    return {
        "images_per_second": {
            **{
                name: visits * len(seconds) / sum(seconds)
                for name, seconds in by_supervision.items()
            },
            "grid": visits * networks / sum(t.seconds for t in mine),
        },
        "teacher_seconds": teacher,
        "student_seconds": students,
        "grid_seconds": {count: teacher + seconds for count, seconds in students.items()},
        "grid_with_evaluation_seconds": {str(setting.seeds): grid.whole_seconds[way]},
        "networks": [
            {
                "supervision": trained.supervision,
                "seed": trained.seed,
                "seconds": trained.seconds,
                "test_accuracy": trained.test_correct / len(setting.splits.test),
            }
            for trained in mine
        ],
    }


def ratios(ways: dict[str, Any], counts: tuple[int, ...]) -> dict[str, Any]:
    """Return how many times longer each loop takes than distillens, by the number of seeds."""
    found: dict[str, Any] = {}
    for way in (PUBLIC, CAREFUL):
        name = f"{way}/{OURS}"
        for key in ("grid_seconds", "grid_with_evaluation_seconds"):
            other, own = ways[way][key], ways[OURS][key]
            found.setdefault(key, {})[name] = {count: other[count] / own[count] for count in own}
        most = str(max(counts))
        found.setdefault("teacher_seconds", {})[name] = (
            ways[way]["teacher_seconds"] / ways[OURS]["teacher_seconds"]
        )
        found.setdefault("student_seconds", {})[name] = (
            ways[way]["student_seconds"][most] / ways[OURS]["student_seconds"][most]
        )
    return found


def accuracies(grid: Grid, test_count: int) -> dict[str, Any]:
    """Return last-epoch test accuracies by supervision and way, and how far the ways lie apart."""
    shares: dict[str, dict[str, list[float]]] = {}
    for trained in grid.trained:
        by_way = shares.setdefault(trained.supervision, {})
        by_way.setdefault(trained.way, []).append(trained.test_correct / test_count)
    by_supervision: dict[str, Any] = {}
    for supervision, by_way in shares.items():
        entry: dict[str, Any] = {
            way: _shares_with_noise(values, test_count) for way, values in by_way.items()
        }
        own = accuracy_estimate(by_way[OURS], test_count)
        for way in (PUBLIC, CAREFUL):
            other = accuracy_estimate(by_way[way], test_count)
            entry[f"{OURS} - {way}"] = _difference(own, other)
        by_supervision[supervision] = entry
    overall: dict[str, Any] = {}
    for way in (PUBLIC, CAREFUL):
        own, other = (
            [share for name, by_way in shares.items() if name != TEACHER for share in by_way[which]]
            for which in (OURS, way)
        )
        gain = paired_gain(own, other)
        overall[f"{OURS} - {way}"] = {
            "difference": gain.value,
            "interval": [gain.interval.low, gain.interval.high] if gain.interval else None,
            "method": gain.interval.method if gain.interval else None,
        }
    return {"by_supervision": by_supervision, "mean_over_students": overall}


def _shares_with_noise(values: list[float], test_count: int) -> dict[str, Any]:
    wilson = [wilson_interval(share, test_count) for share in values]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": values,
        "wilson_95": [[interval.low, interval.high] for interval in wilson],
    }


def _difference(own: Estimate, other: Estimate) -> dict[str, Any]:
    # Newcombe's hybrid interval for a difference, from the interval of each side (1998, method 10).
    # The ways share their test examples, which makes it too wide rather than too narrow.
    assert own.interval is not None
    assert other.interval is not None
    value = own.value - other.value
    low = value - math.hypot(own.value - own.interval.low, other.interval.high - other.value)
    high = value + math.hypot(own.interval.high - own.value, other.value - other.interval.low)
    return {"difference": value, "interval": [low, high], "within_noise": low <= 0 <= high}


def table(result: dict[str, Any]) -> str:
    """Return the numbers that matter as lines of text."""
    lines = [f"{'':14}{'images/s':>36}   test accuracy in %, mean ± std (95 % of the first seed)"]
    lines.append(f"{'':14}" + "".join(f"{way:>12}" for way in WAYS))
    for name, entry in result["accuracy"]["by_supervision"].items():
        speeds = "".join(f"{result['ways'][way]['images_per_second'][name]:12.0f}" for way in WAYS)
        lines.append(f"{name:14}{speeds}   " + " | ".join(_percent(entry[way]) for way in WAYS))
    for way in WAYS:
        seconds = result["ways"][way]["grid_seconds"]
        lines.append(
            f"{way}: "
            + ", ".join(f"{value:.0f} s with {count} seed(s)" for count, value in seconds.items())
        )
    for name, by_count in result["ratios"]["grid_seconds"].items():
        lines.append(
            f"{name}: "
            + ", ".join(f"{v:.2f} with {count} seed(s)" for count, v in by_count.items())
        )
    step = result["step"]
    low, high = step["interval"]
    lines.append(
        "cached step / one-hot step: "
        f"{step['cached_step_over_one_hot_step']:.3f} ({low:.3f} to {high:.3f})"
    )
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)


def _percent(entry: dict[str, Any]) -> str:
    low, high = entry["wilson_95"][0]
    spread = "" if entry["std"] is None else f" ± {100 * entry['std']:.2f}"
    return f"{100 * entry['mean']:.2f}{spread} ({100 * low:.1f} to {100 * high:.1f})"


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        counts = ()
    if not counts or counts[0] < 1:
        raise argparse.ArgumentTypeError(f"give numbers of seeds such as 1,3, got {text!r}")
    return counts


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"give a whole number of at least 1, got {text!r}")
    return int(text)


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", default=str(DATA), help="folder of parquet files, or a hub name")
    parser.add_argument("--images", type=_positive, default=3000, help="training images (3000)")
    parser.add_argument("--test-images", type=_positive, default=2000, help="test images (2000)")
    parser.add_argument("--epochs", type=_positive, default=3, help="of every network (3)")
    parser.add_argument("--seeds", type=_counts, default=(1, 3), help="numbers of seeds (1,3)")
    parser.add_argument(
        "--pairs", type=_positive, default=150, help="step pairs, cached and not (150)"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    asked = parser.parse_args()
    data = {"train_size": asked.images, "test_size": asked.test_images, "path": asked.data}
    try:
        splits = load_splits(DataRecipe.model_validate({"source": "huggingface", **data}))
        teacher, student = MODELS
        setting = Setting(splits, teacher, student, asked.epochs, max(asked.seeds))
        result = benchmark(setting, asked.seeds, pairs=asked.pairs, say=tell)
    except DistillensError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(result), file=sys.stderr)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    print(text, end="")
    if asked.out is not None:
        asked.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
