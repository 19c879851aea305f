"""The kernel benchmark on one device, in this process: the engine beside torch.func.

`measure` yields one line a case and method and writes all lines so far to a file after each, so that
a run that is cut off leaves what it measured. On a GPU the time is that between two events of the
device, and the peak that of the memory that torch allocated; on a CPU, where this is for tests, they
are a clock and None. Products in float32 are not rounded to TF32, for any method.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from kernel_cases import DEVICE_CASES, Case, inputs_for, network_on
from kernel_measure import ENGINE, reference
from kernel_peers import PEERS
from torch import Tensor, nn

from distillens.files.atomic import write_atomically
from distillens.kernel import EmpiricalNTK
from distillens.kernel.tracing.precision import full_products

METHODS: tuple[tuple[str, int | None], ...] = (
    (ENGINE, None),
    ("torch.func-blocks", 64),
    ("torch.func-blocks", 256),
    ("torch.func", None),
)
"""Names, and how many examples go through torch.func at a time. Last is its documented recipe, whose
memory may not suffice."""


def device_name(device: torch.device) -> str:
    """Return the name of the card, or of the processor's kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def measure(
    device: str | torch.device,
    *,
    seconds: float,
    out: Path | None = None,
    cases: Sequence[Case] = DEVICE_CASES,
    methods: Sequence[tuple[str, int | None]] = METHODS,
    data: Path | None = None,
    scale: float = 1.0,
    repeats: int = 3,
) -> Iterator[dict[str, Any]]:
    """Yield a line for each case and method.

    Parameters
    ----------
    device
        "cuda", or "cpu" for a trial at toy size.
    seconds
        When this long has passed nothing new is started; what is left says so in its status.
    out
        A JSON file that holds all lines so far after each.
    cases, methods
        What to measure.
    data
        CIFAR-100, a folder of parquet files; random numbers without.
    scale
        Share of the examples.
    repeats
        Computations after the first one.
    """
    device, until = torch.device(device), time.monotonic() + seconds
    lines: list[dict[str, Any]] = []
    for case in cases:
        for line in _case(case.scaled(scale), device, methods, data, repeats, until):
            lines.append(line)
            if out is not None:
                content = {"device": device_name(device), "torch": torch.__version__, "rows": lines}
                write_atomically(out, json.dumps(content, indent=1))
            yield line


def _case(
    case: Case,
    device: torch.device,
    methods: Sequence[tuple[str, int | None]],
    data: Path | None,
    repeats: int,
    until: float,
) -> Iterator[dict[str, Any]]:
    common = {"case": case.name, "examples": case.count, "outputs": case.classes}
    made: tuple[nn.Module, Tensor, Tensor | None] | None = None
    for method, setting in methods:
        line: dict[str, Any] = {**common, "method": method, "setting": setting}
        if time.monotonic() > until:
            yield {**line, "status": "not measured: out of time"}
            continue
        with full_products():
            made = made or _made(case, device, data)
            numbers = _method(*made, case, method, setting, repeats, until)
        yield {**line, **numbers}


def _made(
    case: Case, device: torch.device, data: Path | None
) -> tuple[nn.Module, Tensor, Tensor | None]:
    """Return a case's network, its examples, and what some entries of its Gram have to be."""
    inputs = inputs_for(case, data)
    model = network_on(case.network, case.classes, inputs).to(device)
    x = inputs.to(device)
    return model, x, _tried(lambda: reference(model, x, case, 2**33))[0]


def _method(
    model: nn.Module,
    x: Tensor,
    wanted: Tensor | None,
    case: Case,
    method: str,
    setting: int | None,
    repeats: int,
    until: float,
) -> dict[str, Any]:
    """Return the numbers of one method."""

    def compute() -> Tensor:
        if method == ENGINE:
            return EmpiricalNTK(model, outputs="full" if case.full else 0).gram(x).values
        return PEERS[method](model, x, setting or case.count, _room(x.device))

    took: list[float] = []
    peak: int | None = None
    line: dict[str, Any] = {}
    for repeat in range(1 + repeats):
        if repeat > 1 and time.monotonic() > until:
            break
        (gram, why), seconds, bytes_ = _timed(lambda: _tried(compute), x.device)
        if gram is None:
            return {"status": why}
        took.append(seconds)
        if repeat == 0:
            peak = bytes_
            if wanted is not None:
                down, across = case.positions(case.rows), case.positions(case.columns)
                found = gram[down][:, across].double()
                line["relative_error"] = float((found - wanted).norm() / wanted.norm())
        del gram
    line |= {"status": "ok", "cold_seconds": took[0], "peak_bytes": peak}
    if took[1:]:
        line |= {"seconds": statistics.median(took[1:]), "warm_seconds": took[1:]}
    return line


def _room(device: torch.device) -> int:
    """Return the bytes that a peer may take."""
    return int(0.9 * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 2**32


def _tried(work: Callable[[], Tensor]) -> tuple[Tensor | None, str]:
    """Return what some work gives, or why it fails: that is a method's result."""
    try:
        return work(), "ok"
    except torch.OutOfMemoryError:
        return None, "out of memory"
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float, int | None]:
    """Return what some work gives, its seconds, and the most bytes that it held at once."""
    gc.collect()
    if device.type != "cuda":
        began = time.perf_counter()
        return work(), time.perf_counter() - began, None
    torch.cuda.empty_cache()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    found = work()
    end.record()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return found, start.elapsed_time(end) / 1000, peak
