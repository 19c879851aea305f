"""What the Grams of the kernel benchmark cost at the least: `python benchmarks/kernel_floor.py`.

Prints one JSON line a case of one output: the multiply-adds of one forward and backward pass, of
forming the gradients that are contracted as vectors and of half the Gram, and the seconds that they
take at the best rate that this machine's matrix products reach. Elementwise work, moving numbers and
checking cost nothing here, so no exact method that writes gradients out is faster than this. Beside
them how many times more multiply-adds torch.func's recipe takes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from kernel_cases import CASES, Case, inputs_for, network_on
from kernel_peers import torch_func
from machine import DATA, busy_note, machine
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distillens.kernel import EmpiricalNTK

_COUNTED = 8
"""Examples of the passes that are counted."""


def multiply_adds(case: Case, data: Path | None) -> dict[str, float]:
    """Return the multiply-adds of a case of one output, by what they are for."""
    inputs = inputs_for(case, data)
    model = network_on(case.network, case.classes, inputs).eval()
    layers = EmpiricalNTK(model, outputs=0).plan(inputs).layers
    # Contracting takes a multiply-add for each number of gradients that are formed, or else held.
    formed = {name for layer in layers if layer.strategy != "factored" for name in layer.parameters}
    weights = [weight for name, weight in model.named_parameters() if name in formed]
    contracted = sum(weight.numel() for weight in weights)
    contracted += sum(layer.held for layer in layers if layer.strategy == "factored")
    with FlopCounterMode(display=False) as counter:
        outputs = model(inputs[:_COUNTED])
        torch.autograd.grad(outputs[:, 0].sum(), weights)
    pairs = case.count * (case.count + 1) / 2
    return {
        "passes_and_forming": counter.get_total_flops() / 2 / _COUNTED * case.count,
        "half_the_gram": pairs * contracted,
    }


def recipe_multiply_adds(case: Case, data: Path | None) -> float | None:
    """Return the multiply-adds of torch.func's recipe; None for a network with convolutions.

    Under vmap these are grouped ones, which torch's counter takes for dense.
    """
    inputs = inputs_for(case, data)
    model = network_on(case.network, case.classes, inputs).eval()
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return None
    with FlopCounterMode(display=False) as counter:
        torch_func(model, inputs, 0, 0)
    return counter.get_total_flops() / 2


def best_rate() -> float:
    """Return the multiply-adds a second of the fastest of some large matrix products."""
    best = 0.0
    for side in (256, 512, 1024):
        for depth in (2**12, 2**14, 2**16):
            left = torch.ones(side, depth)
            for _ in range(5):
                began = time.perf_counter()
                torch.mm(left, left.T)
                best = max(best, side * side * depth / (time.perf_counter() - began))
    return best


def main() -> int:
    """Print a line for each case; return the exit code."""
    started = machine(torch.get_num_threads())
    rate = best_rate()
    for case in CASES:
        if case.full:
            continue
        data = DATA if DATA.is_dir() else None
        parts, recipe = multiply_adds(case, data), recipe_multiply_adds(case, data)
        line: dict[str, Any] = {
            "case": case.name,
            "multiply_adds": parts,
            "a_second": rate,
            "seconds": sum(parts.values()) / rate,
            "recipe_over_these": None if recipe is None else recipe / sum(parts.values()),
        }
        print(json.dumps(line), flush=True)
    provenance = {**started, "load_average_after": os.getloadavg()}
    print(json.dumps({"notes": busy_note(started), "provenance": provenance}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
