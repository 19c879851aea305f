"""What a measurement was made on, and what makes it doubtful."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar100"


def machine(threads: int) -> dict[str, Any]:
    """Return machine, versions, command and load, for a result's provenance."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {processor()}, "
        f"{os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": threads,
        "load_average_before": os.getloadavg(),
    }


def busy_note(started: dict[str, Any]) -> list[str]:
    """Return a note if other processes were busy before the start, else nothing."""
    load = started["load_average_before"][0]
    if load < 0.5:
        return []
    return [
        f"other processes were busy before the start (load average {load:.2f}); threads that wait "
        "for each other make the times, and their ratios, unreliable: repeat on an idle machine"
    ]


def processor() -> str:
    """Return the processor's name."""
    file = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (file.read_text().splitlines() if file.is_file() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or "unknown processor"


def tell(line: str) -> None:
    """Print progress."""
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", file=sys.stderr, flush=True)
