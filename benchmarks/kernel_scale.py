"""Whether the kernel engine reaches the paper's scale in time and memory, and what no memory holds.

``python benchmarks/kernel_scale.py`` prints one JSON line a part, each measured in a process of its
own. Parts ``lenet5x8`` and ``resnet20``: the Gram of N=4,096 images and the adjusted complexity of
four target sets. Part ``beyond``: the same of 60,000 images, whose Gram is never formed, within
certified intervals; part ``contains``: 8,192 of them, by both ways. What the numbers mean is in
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from kernel_cases import IMAGE, SEED, Network, images, network_on
from machine import DATA, busy_note, machine, tell
from own_process import Peak, available_memory, high_water, limit_memory, run_child, say

from distillens.analyses.kernel_complexity import kernel_complexity
from distillens.data import DataRecipe, Normalisation, load_splits
from distillens.measures import label_targets, teacher_targets
from distillens.models import ModelRecipe, build_model
from distillens.results.complexity import KernelComplexity

GIB = 2**30
RIDGE = 1e-3
"""Share of the mean diagonal, where the Gram is not formed."""
FASHION = DATA.parent / "fashion-mnist"


@dataclass(frozen=True)
class Part:
    """What is measured and what it may take."""

    measure: Callable[[dict[str, Any]], None]
    examples: int
    seconds: float
    bytes: int


def paper(job: dict[str, Any]) -> None:
    """Measure four target sets of one output at the paper's scale, in this process."""
    x, y = (
        images(Path(job["data"]), job["examples"])
        if job["data"]
        else random_images(job["examples"])
    )
    model = network_on(cast(Network, job["part"]), 1, x)
    peak = Peak()
    found = kernel_complexity(
        model,
        x,
        target_sets(x, y),
        outputs=0,
        ridge=job["ridge"],
        max_memory=job["engine_memory"] or 6 * GIB,
    )
    _say(found, peak)


def beyond(job: dict[str, Any]) -> None:
    """Measure labels and random labels on images whose Gram does not fit, in this process."""
    x, y = fashion(job["examples"])
    peak = Peak()
    found = kernel_complexity(
        lenet(), x, group_targets(y), outputs=0, ridge=RIDGE, max_memory=3 * GIB
    )
    _say(found, peak)


def contains(job: dict[str, Any]) -> None:
    """Measure the same by Cholesky and by iteration: does the interval hold the exact value?"""
    x, y = fashion(job["examples"])
    peak = Peak()
    targets, model = group_targets(y), lenet()
    exact = kernel_complexity(model, x, targets, outputs=0, ridge=RIDGE)
    # Less than the Gram takes: it has to iterate.
    room = 2 * 8 * len(x) ** 2
    found = kernel_complexity(model, x, targets, outputs=0, ridge=RIDGE, max_memory=room)
    inside = {
        one.name: one.plain_low <= other.plain <= one.plain_high
        for one, other in zip(found.targets, exact.targets, strict=True)
    }
    say("exact", values={one.name: one.plain for one in exact.targets}, inside=inside)
    _say(found, peak)


def _say(found: KernelComplexity, peak: Peak) -> None:
    say(
        "measured",
        seconds=found.seconds,
        peak_bytes=peak.above_baseline(),
        process_bytes=high_water(),
        method=found.method,
        ridge=found.ridge,
        adjusted_complexity={one.name: one.adjusted for one in found.targets},
        intervals={one.name: (one.plain_low, one.plain_high) for one in found.targets},
        widest=max((one.plain_high - one.plain_low) / one.plain for one in found.targets),
        determined=all(one.determined for one in found.targets),
        found_notes=found.notes,
    )


def lenet() -> torch.nn.Module:
    """Return a freshly initialised LeNet-5 with one output, for pictures of Fashion-MNIST."""
    recipe = ModelRecipe.model_validate({"name": "lenet5"})
    return build_model(recipe, (1, 28, 28), 1, seed=SEED).eval()


def fashion(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return training pictures of Fashion-MNIST, normalised, and their labels."""
    splits = load_splits(DataRecipe(source="idx", path=str(FASHION), train_size=count))
    return Normalisation.of(splits.train)(splits.train.inputs), splits.train.labels


def group_targets(y: torch.Tensor) -> dict[str, np.ndarray]:
    """Return ±1 for the classes in two groups, and the same shuffled."""
    half = (y.numpy() >= 5).astype(np.int64)
    shuffled = np.random.default_rng(SEED).permutation(half)
    return {
        "labels": label_targets(half, 2, "binary"),
        "random labels": label_targets(shuffled, 2, "binary"),
    }


def target_sets(x: torch.Tensor, y: torch.Tensor) -> dict[str, np.ndarray]:
    """Return four target sets of one output: what they are matters little to the time.

    The labels are the lower or the upper half of the classes; the teacher is an untrained ResNet-8.
    """
    half = (y.numpy() >= (int(y.max()) + 1) // 2).astype(np.int64)
    rng = np.random.default_rng(SEED)
    recipe = ModelRecipe.model_validate({"name": "resnet8"})
    teacher = build_model(recipe, IMAGE, 1, seed=SEED + 1).eval()
    with torch.no_grad():
        logits = torch.cat([teacher(part) for part in x.split(256)]).double().numpy()
    return {
        "labels": label_targets(half, 2, "binary"),
        "random labels": label_targets(rng.permutation(half), 2, "binary"),
        "teacher τ=1": teacher_targets(logits, 1.0),
        "teacher τ=4": teacher_targets(logits, 4.0),
    }


def random_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normal random numbers in place of images, and random labels in place of theirs."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(count, *IMAGE, generator=generator)
    return x, torch.randint(100, (count,), generator=generator)


PARTS = {
    "lenet5x8": Part(paper, 4096, 240.0, 8 * GIB),
    "resnet20": Part(paper, 4096, 240.0, 8 * GIB),
    "beyond": Part(beyond, 60_000, 600.0, 4 * GIB),
    "contains": Part(contains, 8192, 900.0, 12 * GIB),
}


def measure_part(part: str, job: dict[str, Any], scale: float, timeout: float) -> dict[str, Any]:
    """Run one part in a process of its own and hold it against its limits."""
    asked = PARTS[part]
    job = {**job, "part": part, "examples": max(8, round(asked.examples * scale))}
    said, wrong = run_child(Path(__file__), job, threads=job["threads"], timeout=timeout)
    by_event = {line.pop("event"): line for line in said}
    failed = by_event.get("failed", {}).get("why")
    done = by_event.get("measured", {})
    return {
        "part": part,
        "examples": job["examples"],
        "status": failed or wrong or "ok",
        **by_event.get("exact", {}),
        **done,
        "limits": {"seconds": asked.seconds, "process_bytes": asked.bytes},
        "within": bool(done)
        and done["seconds"] <= asked.seconds
        and done["process_bytes"] <= asked.bytes,
    }


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--data", type=Path, help="CIFAR-100, a folder of parquet files")
    parser.add_argument("--random", action="store_true", help="random numbers, even with data")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=900, help="seconds a part (900)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the examples, for trials"
    )
    parser.add_argument("--ridge", type=float, default=0.0, help="share of the mean diagonal (0)")
    parser.add_argument("--engine-memory", type=float, help="GiB, max_memory of distillens")
    asked = parser.parse_args()
    data = asked.data or (DATA if DATA.is_dir() else None)
    job = {
        "data": None if asked.random or data is None else str(data),
        "threads": asked.threads,
        "ridge": asked.ridge,
        "memory": int(0.9 * available_memory()),
        "engine_memory": int(asked.engine_memory * GIB) if asked.engine_memory else None,
    }
    started = machine(asked.threads)
    for part in asked.parts:
        tell(part)
        line = measure_part(part, job, asked.scale, asked.timeout)
        line["inputs"] = "images" if job["data"] else "random normal"
        print(json.dumps(line, ensure_ascii=False), flush=True)
    provenance = {**started, "load_average_after": os.getloadavg()}
    print(json.dumps({"notes": busy_note(started), "provenance": provenance}, ensure_ascii=False))
    return 0


def child(text: str) -> None:
    """Measure the part that the job names."""
    job = json.loads(text)
    torch.set_num_threads(job["threads"])
    limit_memory(job["memory"])
    try:
        PARTS[job["part"]].measure(job)
    except Exception as error:  # it is the part's result
        say("failed", why=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


if __name__ == "__main__":
    # A child gets its job as one JSON object.
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        child(sys.argv[1])
    else:
        sys.exit(main())
