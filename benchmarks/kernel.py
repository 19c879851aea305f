"""How fast, in how much memory and how exactly Grams are computed: distillens beside its peers.

``python benchmarks/kernel.py`` prints one JSON line a case and method on the standard output, a last
line with the ratios, and its progress on the other. What the numbers mean is in
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kernel_cases import CASES, DEVICE_CASES, Case, inputs_for, network_on
from kernel_device import measure
from kernel_measure import ENGINE, REFERENCE
from kernel_peers import PEERS, PUBLISHED, settings
from machine import DATA, busy_note, machine, tell
from own_process import available_memory, run_child

METHODS = (ENGINE, *PEERS)
CHILD = Path(__file__).with_name("kernel_measure.py")
# Where float32 rounding takes a unit across the kink of a ReLU, its derivative jumps: in a deep
# network on many examples that outweighs all rounding, in all float32 methods alike. So a method
# counts if it is accurate, or as accurate as the best of them.
ACCURATE, AS_ACCURATE = 1e-5, 1.5


@dataclass(frozen=True)
class Options:
    """How to measure: everything that is the same for all cases and methods."""

    threads: int
    repeats: int
    timeout: float
    memory: int
    engine_memory: int | None = None
    scale: float = 1.0
    data: Path | None = None
    nngeometry_python: str | None = None


def measure_case(
    case: Case, methods: tuple[str, ...], options: Options
) -> Iterator[dict[str, Any]]:
    """Yield the numbers of each method on one case.

    Network and examples are made once and read by every child; the reference comes first.
    """
    whole = case
    case = case.scaled(options.scale)
    with tempfile.TemporaryDirectory(prefix="distillens-kernel-") as name:
        folder = Path(name)
        inputs = inputs_for(case, options.data)
        weights = network_on(case.network, case.classes, inputs).state_dict()
        torch.save(
            {"name": whole.name, "scale": options.scale, "weights": weights, "inputs": inputs},
            folder / "case.pt",
        )
        common = {
            "case": case.name,
            "examples": case.count,
            "outputs": case.classes,
            "parameters": sum(
                p.numel() for p in network_on(case.network, case.classes, inputs[:1]).parameters()
            ),
            "inputs": "random normal"
            if options.data is None or case.network == "transformer"
            else "images",
        }
        del inputs, weights
        found = _child(case, REFERENCE, None, 0, folder, options)
        if found["status"] != "ok":
            tell(f"{case.name}: no float64 reference: {found['status']}")
        for method in methods:
            tell(f"{case.name}: {method}")
            numbers = _best(case, method, folder, options)
            yield {
                **common,
                "method": method,
                **numbers,
                "reference": f"{case.rows} × {case.columns} examples, float64",
            }


def _best(case: Case, method: str, folder: Path, options: Options) -> dict[str, Any]:
    """Measure a method with the best of its settings: each is tried once, cold."""
    if method.startswith("nngeometry") and options.nngeometry_python is None:
        return {"status": "not measured: give --nngeometry-python"}
    if method == ENGINE:
        return _child(case, method, None, options.repeats, folder, options)
    choices = settings(method, case.count)
    tried: dict[int, dict[str, Any]] = {}
    if len(choices) > 1:
        tried = {choice: _child(case, method, choice, 0, folder, options) for choice in choices}
    best = min(choices, key=lambda choice: tried.get(choice, {}).get("cold_seconds", math.inf))
    if tried and tried[best]["status"] != "ok":
        numbers = tried[best]
    else:
        numbers = _child(case, method, best, options.repeats, folder, options)
    return {
        **numbers,
        "setting": best,
        "settings_tried": {
            str(choice): each.get("cold_seconds", each["status"]) for choice, each in tried.items()
        },
    }


def _child(
    case: Case, method: str, setting: int | None, repeats: int, folder: Path, options: Options
) -> dict[str, Any]:
    """Return the numbers of one child process, or as many as it came to."""
    reference, entries = folder / "reference.pt", folder / "entries.pt"
    entries.unlink(missing_ok=True)
    job = {
        "case": str(folder / "case.pt"),
        "method": method,
        "setting": setting,
        "repeats": repeats,
        "full": case.full,
        "threads": options.threads,
        "memory": options.memory,
        "engine_memory": options.engine_memory,
        "entries": str(reference if method == REFERENCE else entries),
    }
    interpreter = options.nngeometry_python if method.startswith("nngeometry") else None
    said, wrong = run_child(
        CHILD,
        job,
        interpreter=interpreter or sys.executable,
        threads=options.threads,
        timeout=options.timeout,
    )
    by_event = {line["event"]: line for line in said}
    failed = by_event.get("failed", {}).get("why")
    numbers: dict[str, Any] = {"status": failed or wrong or "ok"}
    if "cold" in by_event:
        numbers["cold_seconds"] = by_event["cold"]["seconds"]
        numbers["peak_bytes"] = by_event["cold"]["peak_bytes"]
    if "warm" in by_event:
        numbers["seconds"] = by_event["warm"]["seconds"]
        numbers["warm_seconds"] = by_event["warm"]["all"]
    if method != REFERENCE and entries.exists() and reference.exists():
        numbers |= _errors(entries, reference)
    return numbers


def _errors(entries: Path, reference: Path) -> dict[str, float]:
    """Return ‖K − K₆₄‖ / ‖K₆₄‖ (Frobenius) of the entries that have a reference, and of their rows.

    The median over rows is not moved by a few examples with a unit at the kink of a ReLU.
    """
    found, wanted = (torch.load(path, weights_only=True) for path in (entries, reference))
    difference = found - wanted
    rows = torch.linalg.norm(difference, dim=1) / torch.linalg.norm(wanted, dim=1)
    return {
        "relative_error": float(torch.linalg.norm(difference) / torch.linalg.norm(wanted)),
        "median_row_error": float(rows.median()),
    }


def ratios(case: Case, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the engine's numbers against the fastest peer that is as accurate.

    Once among the peers as published, and once among all. A peer that failed or is less exact is
    named, and does not count.
    """
    by_method = {line["method"]: line for line in lines if line["case"] == case.name}
    # Without repeats the cold run is all there is.
    key = "seconds" if any("seconds" in line for line in lines) else "cold_seconds"
    errors = {name: line.get("relative_error", math.inf) for name, line in by_method.items()}
    bound = max(ACCURATE, AS_ACCURATE * min(errors.values(), default=0.0))
    sound = {
        name: line
        for name, line in by_method.items()
        if line["status"] == "ok" and key in line and errors[name] <= bound
    }
    left_out = {
        name: line["status"] if line["status"] != "ok" else f"relative error {errors[name]}"
        for name, line in by_method.items()
        if name not in sound
    }
    own = sound.get(ENGINE)
    peers = {name: line for name, line in sound.items() if name != ENGINE}
    published = {name: line for name, line in peers.items() if name in PUBLISHED}
    return {
        "aim": {"times_faster": case.at_least, "share_of_memory": case.memory_at_most},
        "left_out": left_out,
        "published": _against(own, published, key),
        "tuned": _against(own, peers, key),
    }


def _against(
    own: dict[str, Any] | None, peers: dict[str, dict[str, Any]], key: str
) -> dict[str, Any] | None:
    """Return how the engine compares with the fastest of some peers, None if there is none."""
    if not peers:
        return None
    fastest = min(peers, key=lambda name: peers[name][key])
    if own is None:
        return {"fastest_peer": fastest}
    peer = peers[fastest]
    return {
        "fastest_peer": fastest,
        "times_faster": peer[key] / own[key],
        "times_faster_cold": min(line["cold_seconds"] for line in peers.values())
        / own["cold_seconds"],
        "share_of_memory": own["peak_bytes"] / peer["peak_bytes"],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    names = [case.name for case in CASES]
    known = list(dict.fromkeys([*names, *(case.name for case in DEVICE_CASES)]))
    parser.add_argument("--cases", type=_some_of(known), default=names, help=", ".join(known))
    parser.add_argument("--methods", type=_some_of(METHODS), default=METHODS, help=str(METHODS))
    parser.add_argument("--data", type=Path, help="CIFAR-100, a folder of parquet files")
    parser.add_argument("--random", action="store_true", help="random numbers, even with data")
    parser.add_argument("--nngeometry-python", help="interpreter of nngeometry's environment")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3, help="warm ones, after the cold one (3)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds a process (900)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the examples, for trials"
    )
    parser.add_argument("--memory", type=float, help="GiB that a process may take (90 %% of free)")
    parser.add_argument("--engine-memory", type=float, help="GiB, max_memory of distillens")
    parser.add_argument("--out", type=Path, help="also write the lines here")
    parser.add_argument(
        "--device",
        default="cpu",
        help="cuda: measure on the GPU, in this process, with --minutes, --scale, --repeats, --out",
    )
    parser.add_argument("--minutes", type=float, default=10, help="start nothing after them (10)")
    return parser


def on_device(asked: argparse.Namespace, data: Path | None) -> int:
    """Measure on a GPU; return the exit code."""
    if not torch.cuda.is_available():
        tell(f"--device {asked.device}: torch {torch.__version__} finds no GPU on this machine")
        return 2
    chosen = set(asked.cases) if list(asked.cases) != [case.name for case in CASES] else None
    lines = measure(
        asked.device,
        seconds=60 * asked.minutes,
        out=asked.out,
        cases=[case for case in DEVICE_CASES if chosen is None or case.name in chosen],
        data=data,
        scale=asked.scale,
        repeats=asked.repeats,
    )
    for line in lines:
        print(json.dumps(line), flush=True)
    return 0


def _some_of(known: list[str] | tuple[str, ...]) -> Any:
    def chosen(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; known: {', '.join(known)}")
        return names

    return chosen


def main() -> int:
    """Run from the command line; return the exit code."""
    asked = _parser().parse_args()
    data = asked.data or (DATA if DATA.is_dir() else None)
    if asked.device != "cpu":
        return on_device(asked, None if asked.random else data)
    if data is None and not asked.random:
        tell(f"no images at {DATA}; inputs are random normal numbers")
    options = Options(
        threads=asked.threads,
        repeats=asked.repeats,
        timeout=asked.timeout,
        memory=int(asked.memory * 2**30) if asked.memory else int(0.9 * available_memory()),
        engine_memory=int(asked.engine_memory * 2**30) if asked.engine_memory else None,
        scale=asked.scale,
        data=None if asked.random else data,
        nngeometry_python=asked.nngeometry_python,
    )
    started = machine(options.threads)
    lines: list[dict[str, Any]] = []

    def emit(line: dict[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False)
        print(text, flush=True)
        if asked.out is not None:
            with asked.out.open("a") as file:
                file.write(text + "\n")

    cases = [case for case in CASES if case.name in asked.cases]
    for case in cases:
        for line in measure_case(case, asked.methods, options):
            lines.append(line)
            emit(line)
    emit(
        {
            "ratios": {case.name: ratios(case, lines) for case in cases},
            "scale": options.scale,
            "repeats": options.repeats,
            "memory_limit": options.memory,
            "notes": busy_note(started),
            "provenance": {**started, "load_average_after": os.getloadavg()},
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
