"""Whether the kernel engine reaches the paper's scale in time and memory.

``python benchmarks/kernel_scale.py`` prints one JSON line a part, each measured in a process of its
own. Part ``paper``: the Gram of N=4,096 images and the adjusted complexity of four target sets, for
LeNet-5x8 and ResNet-20. What the numbers mean is in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from kernel_cases import IMAGE, SEED, Network, images, network_on
from machine import DATA, busy_note, machine, tell
from own_process import Peak, available_memory, high_water, limit_memory, run_child, say

from distillens.measures import factorise_gram, label_targets, prediction_targets, teacher_targets
from distillens.models import ModelRecipe, build_model

GIB = 2**30
# By part: examples, the most seconds and the most bytes.
LIMITS = {"lenet5x8": (4096, 240.0, 8 * GIB), "resnet20": (4096, 240.0, 8 * GIB)}


def paper(job: dict[str, Any]) -> None:
    """Measure the Gram of one output and four adjusted complexities, in this process."""
    x, y = (
        images(Path(job["data"]), job["examples"])
        if job["data"]
        else random_images(job["examples"])
    )
    network = cast(Network, job["part"])
    model = network_on(network, 1, x)
    with torch.no_grad():
        predictions = prediction_targets(
            torch.cat([model(part) for part in x.split(256)]).double().numpy()
        )
    targets = target_sets(x, y)
    engine = import_module("distillens.kernel").EmpiricalNTK
    peak = Peak()
    start = time.perf_counter()
    options = {} if job["engine_memory"] is None else {"max_memory": job["engine_memory"]}
    gram = engine(model, outputs=0, **options).gram(x).values
    gram_seconds = time.perf_counter() - start
    say("gram", seconds=gram_seconds, peak_bytes=peak.above_baseline())
    meter = factorise_gram(gram.numpy(), "binary", job["ridge"] * float(gram.diagonal().mean()))
    values = {name: meter.measure(target, predictions) for name, target in targets.items()}
    say(
        "measured",
        seconds=time.perf_counter() - start,
        peak_bytes=peak.above_baseline(),
        process_bytes=high_water(),
        adjusted_complexity={name: value.adjusted for name, value in values.items()},
        residual=max(value.residual for value in values.values()),
        ridge=meter.ridge,
        singular=meter.singular,
    )


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


# What is too large for memory gets a part here as soon as the solves have an interface.
PARTS: dict[str, Callable[[dict[str, Any]], None]] = {"lenet5x8": paper, "resnet20": paper}


def measure_part(part: str, job: dict[str, Any], scale: float, timeout: float) -> dict[str, Any]:
    """Run one part in a process of its own and hold it against its limits."""
    count, most_seconds, most_bytes = LIMITS[part]
    job = {**job, "part": part, "examples": max(8, round(count * scale))}
    said, wrong = run_child(Path(__file__), job, threads=job["threads"], timeout=timeout)
    by_event = {line.pop("event"): line for line in said}
    failed = by_event.get("failed", {}).get("why")
    done = by_event.get("measured", {})
    return {
        "part": part,
        "examples": job["examples"],
        "status": failed or wrong or "ok",
        "gram": by_event.get("gram"),
        **done,
        "limits": {"seconds": most_seconds, "process_bytes": most_bytes},
        "within": bool(done)
        and done["seconds"] <= most_seconds
        and done["process_bytes"] <= most_bytes,
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
        PARTS[job["part"]](job)
    except Exception as error:  # it is the part's result
        say("failed", why=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


if __name__ == "__main__":
    # A child gets its job as one JSON object.
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        child(sys.argv[1])
    else:
        sys.exit(main())
