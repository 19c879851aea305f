"""A measurement in a process of its own: fresh memory, a limit on it and on the time.

The child prints one JSON object a line. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_child(
    script: Path,
    job: dict[str, Any],
    *,
    interpreter: str = sys.executable,
    threads: int,
    timeout: float,
) -> tuple[list[dict[str, Any]], str | None]:
    """Run ``script`` with ``job`` as its only argument.

    Returns
    -------
    tuple
        What it printed, also when it did not come to its end, and what went wrong, or None.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [interpreter, str(script), json.dumps(job)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as late:
        # Declared as bytes or text, and bytes even where text was asked for.
        printed = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return _objects(printed), f"timed out after {timeout:g} s"
    except OSError as error:
        return [], f"cannot start {interpreter}: {error.strerror}"
    if done.returncode == 0:
        return _objects(done.stdout), None
    if done.returncode < 0:
        # The kernel ends with 9 what memory no longer suffices for.
        why = "killed, out of memory?" if done.returncode == -9 else "died"
        return _objects(done.stdout), f"{why} (signal {-done.returncode})"
    return _objects(done.stdout), (done.stderr.strip().splitlines() or ["no message"])[-1]


def say(event: str, **values: Any) -> None:
    """Print one line to the parent, from the child."""
    print(json.dumps({"event": event, **values}), flush=True)


def limit_memory(limit: int) -> None:
    """Let allocations beyond ``limit`` bytes fail, in the child, and spare the other processes."""
    if sys.platform == "linux":
        # RLIMIT_AS would count address space that threads and libraries reserve and never touch.
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


class Peak:
    """The high-water mark of resident memory since this object was made.

    On Linux it is VmHWM, set back to the present size at the start where the system allows it, and
    not ``ru_maxrss``: that one outlives exec, so a child would begin with its parent's size. Elsewhere
    ``ru_maxrss`` it is.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.baseline = _status("VmRSS") or high_water()

    def above_baseline(self) -> int:
        """Return the bytes by which memory rose at most."""
        return high_water() - self.baseline


def high_water() -> int:
    """Return the most bytes that were resident at once in this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory() -> int:
    """Return the bytes that can be had without swapping."""
    return _table(Path("/proc/meminfo")).get(
        "MemAvailable", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )


def _status(key: str) -> int:
    return _table(Path("/proc/self/status")).get(key, 0)


def _table(file: Path) -> dict[str, int]:
    """Return the entries in kB of a table in /proc, in bytes; empty where there is none."""
    try:
        lines: Sequence[str] = file.read_text().splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in words}


def _objects(text: str) -> list[dict[str, Any]]:
    """Return what ``say`` printed; a line cut off by a kill or printed by a library is passed over."""
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(line)
            if isinstance(value, dict) and "event" in value:
                found.append(value)
    return found
