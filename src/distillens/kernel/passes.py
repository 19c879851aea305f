"""What making the gradients of some examples takes, measured on a few of them.

What a network needs depends on its operations, so that it is measured instead of modelled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.kernel.memory import peak_bytes, some_examples

Make = Callable[[Tensor, int], object]
"""Makes the gradients of the examples, so many at a time."""


@dataclass(frozen=True)
class Passes:
    """Bytes that making gradients takes beside those that are kept."""

    fixed: int
    each: int
    """For each example of a pass."""


def measured_passes(make: Make, sample: Tensor) -> Passes:
    """Make the gradients of one and of two examples, and see what it takes."""
    one, two = (peak_bytes(lambda n=n: make(some_examples(sample, n), n)) for n in (1, 2))
    each = max(two - one, 1)
    return Passes(max(one - each, 0), each)


def timed_pass(make: Make, sample: Tensor, count: int) -> float:
    """Return the seconds that the gradients of so many examples take in one pass."""
    inputs = some_examples(sample, count)
    began = time.perf_counter()
    make(inputs, count)
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
