"""A process that computes a Gram grows by max_memory at the most, and what libraries take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MIB = 2**20
LIBRARIES = 32 * MIB
"""Free lists of the allocator and scratch space of convolutions and matrix products."""


def measured(cases: list[dict[str, Any]], threads: int) -> list[dict[str, Any]]:
    child = Path(__file__).with_name("kernel_memory_child.py")
    done = subprocess.run(
        [sys.executable, str(child), json.dumps(cases), str(threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_stays_inside_its_bound(threads: int) -> None:
    cases = [
        {"model": model, "examples": count, "outputs": outputs, "budget": budget * MIB}
        for model, count, outputs, budget in [
            ("lenet", 96, 0, 32),
            ("lenet", 96, 0, 128),
            ("lenet", 48, "full", 64),
            ("resnet", 64, 0, 32),
            ("resnet", 64, 0, 128),
            ("resnet", 24, "full", 64),
            ("resnet", 24, "full", 128),
            ("resnet", 24, "class-diagonal", 32),
            ("resnet", 1200, 0, 256),
            ("positions", 128, 0, 32),
            ("positions", 128, 0, 96),
            ("positions", 400, 0, 110),
            ("positions", 24, "full", 128),
        ]
    ]
    made = measured(cases, threads)
    assert {found["sizes"]["parallel_passes"] for found in made} >= {threads}
    assert [found for found in made if "streamed" in found["strategies"]]
    for found in made:
        assert "error" not in found, found
        assert found["planned"] <= found["budget"], found
        assert found["peak"] <= found["budget"] + LIBRARIES, found
