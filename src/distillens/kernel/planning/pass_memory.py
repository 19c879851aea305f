"""The memory and the time of making gradients, measured on a few examples.

What a network needs depends on its operations, so that it is measured instead of modelled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.kernel.tracing.memory import peak_bytes, some_examples

Make = Callable[[Tensor, int], object]
"""Makes the gradients of examples in passes of a number of examples."""


@dataclass(frozen=True)
class PassMemory:
    """Bytes that making gradients takes in addition to the gradients that are kept."""

    fixed: int
    each: int
    """For each example of a pass."""


def counted_memory(make: Make, sample: Tensor) -> PassMemory:
    """Return the memory of a pass, counted for one and for two examples."""
    one, two = (peak_bytes(lambda n=n: make(some_examples(sample, n), n)) for n in (1, 2))
    each = max(two - one, 1)
    return PassMemory(max(one - each, 0), each)


def timed_pass(make: Make, sample: Tensor, count: int) -> float:
    """Return the seconds of a pass of ``count`` examples."""
    inputs = some_examples(sample, count)
    began = time.perf_counter()
    make(inputs, count)
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
