"""How long an audit takes, and how much memory: `python benchmarks/audit_speed.py 20000 1000`.

Writes two random float32 arrays (logits) to a temporary folder, maps them and audits them.
Prints seconds in the pass and after it, processor seconds, and the peak of resident memory.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from distillens.files.arrays import read_rows
from distillens.measures.confidence import audit


def write(folder: Path, examples: int, classes: int) -> None:
    """Write teacher.npy, student.npy and labels.npy, in pieces."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(classes, size=examples)
    shape = (examples, classes)
    maps = [
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
        for name in ("teacher", "student")
    ]
    for start in range(0, examples, 5000):
        rows = slice(start, min(start + 5000, examples))
        count = rows.stop - rows.start
        teacher = 2 * rng.standard_normal((count, classes), dtype=np.float32)
        teacher[np.arange(count), labels_N[rows]] += 9
        maps[0][rows] = teacher
        maps[1][rows] = 1.2 * teacher + rng.standard_normal((count, classes), dtype=np.float32)
    for array in maps:
        array.flush()
    np.save(folder / "labels.npy", labels_N)


def main() -> None:
    """Time one audit of the size given on the command line."""
    examples, classes = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own, so that its memory is not counted.
        writing = multiprocessing.get_context("spawn").Process(
            target=write, args=(folder, examples, classes)
        )
        writing.start()
        writing.join()
        roles = [read_rows(folder / f"{name}.npy") for name in ("teacher", "student", "labels")]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, processor = time.perf_counter(), time.process_time()
        audit(*roles)
        print(f"{examples:,} examples x {classes:,} classes")
        print(f"seconds: {time.perf_counter() - started:.1f}")
        print(f"processor seconds: {time.process_time() - processor:.1f}")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"peak resident memory: {after / 1e6:.2f} GB (before: {before / 1e6:.2f} GB)")


if __name__ == "__main__":
    main()
