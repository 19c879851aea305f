"""The cheapest way to contract each use, by the time that its parts take on this machine.

A written gradient is contracted in large matrix products, but has to be formed in small ones, as
soon as a pass ends or late; a paired one is two products and a pass over what they made. How fast
each of these is, is measured once a process for each type and device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from distillens.kernel.factors import Cost, Factor, Paired, Pairing
from distillens.kernel.rules.convolution import Patched, Window

Way = Literal["written", "convolved", "late", "paired"]

_THIN, _WIDE = 16, 128
"""Channels between which the speeds of forming a convolution's gradients are interpolated."""
_EXAMPLES = 32
"""Of the blocks that are formed; with few, all stays in the caches."""


@dataclass(frozen=True)
class Speed:
    """What the machine does in a second."""

    products: float
    """Multiply-adds of large matrix products."""
    small_products: float
    """Multiply-adds of batches of small matrix products."""
    moved: float
    """Numbers read or written by elementwise operations."""
    patched: float
    """Multiply-adds of gradients by a convolution's weights from its patches, 128 channels."""
    thinly_patched: float
    """The same of 16 channels."""
    convolved: float
    """Multiply-adds of the same by a convolution with a group for each example, 128 channels."""
    thinly_convolved: float
    """The same of 16 channels."""

    def forming(self, cost: Cost) -> float:
        """Return the time that the products take by which an example's gradients are formed."""
        wide = min(max((cost.channels - _THIN) / (_WIDE - _THIN), 0.0), 1.0)
        thin = 1.0 - wide
        return (
            cost.example_products / self.small_products
            + cost.example_patched / (thin * self.thinly_patched + wide * self.patched)
            + cost.example_convolved / (thin * self.thinly_convolved + wide * self.convolved)
        )

    def seconds(self, cost: Cost, examples: float, pairs: float) -> float:
        """Return the time that so many examples and pairs of them take."""
        contracting = cost.pair_products / self.products + cost.pair_moved / self.moved
        return pairs * contracting + examples * (self.forming(cost) + cost.held / self.moved)


@dataclass(frozen=True)
class Choice:
    """A way and what it costs."""

    way: Way
    cost: Cost


@dataclass(frozen=True)
class Purpose:
    """What gradients are made for, and where: which way is best depends on it."""

    pairing: Pairing
    """Which pairs of outputs are contracted."""
    speed: Speed
    """Of this machine."""
    pairs_each: float | None
    """With how many others an example is paired; None for gradients that take the least room."""
    at_once: bool = False
    """All examples are contracted at once, so that gradients can be written late."""
    jacobians: bool = False
    """Plain Jacobians are made in place of what rules would make."""


def choose(factor: Factor, purpose: Purpose, written_only: bool) -> Choice:
    """Return the faster way for a use, or the smaller one.

    Parameters
    ----------
    factor
        Of the use, for a few examples.
    purpose
        What the gradients are made for.
    written_only
        The use shares a parameter with another: their gradients have to be added first.
    """
    pairing, speed, pairs_each = purpose.pairing, purpose.speed, purpose.pairs_each
    written = Choice("written", factor.written_cost(pairing))
    if written_only or not isinstance(factor, Paired):
        return written
    choices = [written, Choice("paired", factor.paired_cost(pairing))]
    if convolved := factor.convolved_cost(pairing):
        choices.append(Choice("convolved", convolved))
    if purpose.at_once and (late := factor.late_cost(pairing)):
        choices.append(Choice("late", late))
    if pairs_each is None:
        # Of those that take the same room the faster.
        return min(choices, key=lambda c: (c.cost.held, speed.seconds(c.cost, 1.0, 0.0)))
    return min(choices, key=lambda choice: speed.seconds(choice.cost, 1.0, pairs_each))


_TYPICAL = {
    "cpu": Speed(4e10, 2e10, 1e9, 1e10, 6e9, 8e9, 1e10),
    # An estimate from data sheets, not measured.
    "cuda": Speed(2e13, 5e12, 5e11, 4e12, 2e12, 5e11, 5e11),
}


FEW = 256
"""Measuring takes half a second, which fewer examples do not win back."""


def typical_speed(device: torch.device) -> Speed:
    """Return how fast such a device typically is."""
    return _TYPICAL.get(device.type, _TYPICAL["cpu"])


def measured_speed(dtype: torch.dtype, device: torch.device, examples: int | None = None) -> Speed:
    """Return how fast this machine is in this type, measured once; a typical speed for few examples."""
    if examples is not None and examples < FEW:
        return typical_speed(device)
    return _measured(dtype, str(device), torch.get_num_threads())


@lru_cache
def _measured(dtype: torch.dtype, device: str, threads: int) -> Speed:
    large = torch.ones(256, 16384, dtype=dtype, device=device)
    left = torch.ones(32, 32, 256, dtype=dtype, device=device)
    right = torch.ones(32, 256, 288, dtype=dtype, device=device)
    flat = torch.ones(2**22, dtype=dtype, device=device)
    patched, convolved = _forming(_WIDE, 48, 14, 5, dtype, device)
    thinly_patched, thinly_convolved = _forming(_THIN, 16, 34, 3, dtype, device)
    products, small_products, moved = _seconds(
        device,
        lambda: large @ large.T,
        lambda: torch.bmm(left, right),
        lambda: flat * flat,
    )
    return Speed(
        products=256 * 256 * 16384 / products,
        small_products=32 * 32 * 256 * 288 / small_products,
        # Two are read and one is written for each number.
        moved=3 * flat.numel() / moved,
        patched=patched,
        thinly_patched=thinly_patched,
        convolved=convolved,
        thinly_convolved=thinly_convolved,
    )


def _forming(
    channels: int, into: int, side: int, kernel: int, dtype: torch.dtype, device: str
) -> tuple[float, float]:
    """Return the multiply-adds a second of both ways to form a convolution's gradients."""
    window = Window((kernel, kernel), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    pictures = torch.ones(_EXAMPLES, into, side, side, dtype=dtype, device=device)
    positions = (side - kernel + 1) ** 2
    gradients = torch.ones(_EXAMPLES, 1, 1, channels, positions, dtype=dtype, device=device).mT
    into_B1p = torch.empty(_EXAMPLES, 1, channels * into * kernel**2, dtype=dtype, device=device)

    def factor() -> Patched:
        # Anew each time, since it keeps its patches.
        return Patched(pictures, window, gradients, ("weight",))

    work = into_B1p.numel() * positions
    patched, convolved = _seconds(
        device,
        lambda: factor().write("weight", into_B1p),
        lambda: factor().convolve("weight", into_B1p),
    )
    return work / patched, work / convolved


def _seconds(device: str, *works: Callable[[], object]) -> list[float]:
    """Return the shortest of a few runs of each.

    They take turns, so that a machine that is slower for a while is so for all that are compared.
    """
    best = [float("inf")] * len(works)
    for _ in range(4):
        for place, work in enumerate(works):
            _wait(device)
            began = time.perf_counter()
            work()
            _wait(device)
            best[place] = min(best[place], time.perf_counter() - began)
    return best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
