"""The cheapest way to contract each use, by the time that its parts take on this machine.

A written gradient is contracted in large matrix products, but has to be formed in small ones; a
paired one is two products and a pass over what they made. How fast each of these is, is measured
once a process for each type and device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from distillens.kernel.factors import Cost, Factor, Paired, Pairing

Way = Literal["written", "paired"]


@dataclass(frozen=True)
class Speed:
    """What the machine does in a second."""

    products: float
    """Multiply-adds of large matrix products."""
    small_products: float
    """Multiply-adds of batches of small matrix products."""
    moved: float
    """Numbers read or written by elementwise operations."""

    def seconds(self, cost: Cost, examples: float, pairs: float) -> float:
        """Return the time that so many examples and pairs of them take."""
        return (
            pairs * (cost.pair_products / self.products + cost.pair_moved / self.moved)
            + examples * cost.example_products / self.small_products
        )


@dataclass(frozen=True)
class Choice:
    """A way and what it costs."""

    way: Way
    cost: Cost


def choose(
    factor: Factor,
    pairing: Pairing,
    speed: Speed,
    pairs_each: float | None,
    written_only: bool,
) -> Choice:
    """Return the faster way for a use, or the smaller one.

    Parameters
    ----------
    factor
        Of the use, for a few examples.
    pairing
        Which pairs of outputs are contracted.
    speed
        Of this machine.
    pairs_each
        With how many others an example is paired; None to choose the way that takes less room.
    written_only
        The use shares a parameter with another: their gradients have to be added first.
    """
    written = Choice("written", factor.written_cost(pairing))
    if written_only or not isinstance(factor, Paired):
        return written
    paired = Choice("paired", factor.paired_cost(pairing))
    if pairs_each is None:
        return min((written, paired), key=lambda choice: choice.cost.held)
    return min((written, paired), key=lambda choice: speed.seconds(choice.cost, 1.0, pairs_each))


def measured_speed(dtype: torch.dtype, device: torch.device) -> Speed:
    """Return how fast this machine is in this type, measured once."""
    return _measured(dtype, str(device), torch.get_num_threads())


@lru_cache
def _measured(dtype: torch.dtype, device: str, threads: int) -> Speed:
    large = torch.ones(256, 16384, dtype=dtype, device=device)
    left = torch.ones(32, 32, 256, dtype=dtype, device=device)
    right = torch.ones(32, 256, 288, dtype=dtype, device=device)
    flat = torch.ones(2**22, dtype=dtype, device=device)
    return Speed(
        products=256 * 256 * 16384 / _seconds(lambda: large @ large.T, device),
        small_products=32 * 32 * 256 * 288 / _seconds(lambda: torch.bmm(left, right), device),
        # Two are read and one is written for each number.
        moved=3 * flat.numel() / _seconds(lambda: flat * flat, device),
    )


def _seconds(work: Callable[[], object], device: str) -> float:
    """Return the shortest of a few runs."""
    best = float("inf")
    for _ in range(4):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
