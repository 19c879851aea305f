"""One measurement of the kernel benchmark, in a process of its own.

Called by `kernel.py` with one JSON object; it prints JSON lines: what one computation took (the
first is the cold one), the peak of memory of the first, and where it left the Gram's entries that
have a reference.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from kernel_cases import CASES, Case, architecture
from kernel_peers import PEERS
from kernel_rewritten import rewritten
from own_process import Peak, limit_memory, say
from torch import Tensor, nn

from distillens.kernel import oracle_gram

ENGINE, REFERENCE = "distillens", "float64"


def saved_case(path: Path) -> tuple[nn.Module, Tensor, Case]:
    """Return the network, its examples and the case at their trial size."""
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    known = {case.name: case for case in CASES}
    case = known[saved["name"]].scaled(saved["scale"])
    model = architecture(case.network, case.classes)
    model.load_state_dict(saved["weights"])
    return model, saved["inputs"], case


def computation(job: dict[str, Any], model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Return what is timed; libraries are imported here, before the clock."""
    method = job["method"]
    if method == ENGINE:
        # Looked up by name, so that the peers run where there is no engine.
        engine = import_module("distillens.kernel").EmpiricalNTK
        outputs = "full" if job["full"] else 0
        options = {} if job["engine_memory"] is None else {"max_memory": job["engine_memory"]}
        return lambda: engine(model, outputs=outputs, **options).gram(x).values
    if method.startswith("nngeometry"):
        import_module("nngeometry")
        model = rewritten(model)
    peer, setting, memory = PEERS[method], job["setting"], job["memory"]
    return lambda: peer(model, x, setting, memory)


def reference(model: nn.Module, x: Tensor, case: Case, memory: int) -> Tensor:
    """Return the float64 Gram of the case's rows and columns."""
    rows, columns = (
        x[[i * case.count // some for i in range(some)]] for some in (case.rows, case.columns)
    )
    outputs = "full" if case.full else 0
    # A block of the oracle needs several times its Jacobians inside vmap; speed does not matter.
    budget = min(memory // 3, 4 * 2**30)
    return oracle_gram(model, rows, columns, outputs=outputs, max_bytes=budget)


def main() -> None:
    """Measure what the argument says."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    limit_memory(job["memory"])
    model, x, case = saved_case(Path(job["case"]))
    if job["method"] == REFERENCE:
        entries = reference(model, x, case, job["memory"])
    else:
        compute = computation(job, model, x)
        peak = Peak()
        entries, seconds = None, []
        for repeat in range(1 + job["repeats"]):
            start = time.perf_counter()
            gram = compute()
            seconds.append(time.perf_counter() - start)
            if repeat == 0:
                say("cold", seconds=seconds[0], peak_bytes=peak.above_baseline())
                down, across = case.positions(case.rows), case.positions(case.columns)
                entries = gram[down][:, across].double()
            del gram  # or the next one has less memory
        assert entries is not None
        if seconds[1:]:
            say("warm", seconds=statistics.median(seconds[1:]), all=seconds[1:])
    torch.save(entries, job["entries"])
    say("done")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # whatever a peer raises is its result, not the benchmark's end
        text = " ".join(str(error).split())[:200]
        memory_ran_out = isinstance(error, MemoryError) or any(
            words in text for words in ("can't allocate memory", "memory ran out")
        )
        say("failed", why="out of memory" if memory_ran_out else f"{type(error).__name__}: {text}")
