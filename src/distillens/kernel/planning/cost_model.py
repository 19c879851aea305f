"""The cost model: which strategy contracts the gradients of a use in the least time.

Materialised gradients are contracted in large matrix products, but are formed in small ones: when a
pass ends, or streamed when they are contracted. Factored gradients are contracted by two products and
an elementwise pass over them. The speed of each operation is measured once per process, type and device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from distillens.kernel.factors.cost import SMALL_PRODUCTS, Cost, Operation, Speed
from distillens.kernel.factors.factor import Factor, Pairing
from distillens.kernel.factors.factored import Factored
from distillens.kernel.rules import operations

Strategy = Literal["materialised", "direct", "streamed", "factored"]
"""How gradients are contracted. "materialised": formed in each pass, from factors. "direct": formed by
an operation of the layer's own. "streamed": formed when they are contracted, some columns at a time.
"factored": never formed."""

FEW = 256
"""Measuring the speed takes half a second, which Grams of fewer examples do not regain."""
_TRACE, _PASS, _WRITE = 40.0, 0.8, 0.4
"""Costs of tracing a network, of a pass of torch.func and of writing out its gradients; see
`jacobians_pay`."""


@dataclass(frozen=True)
class Choice:
    """A strategy and its cost."""

    strategy: Strategy
    cost: Cost


@dataclass(frozen=True)
class Purpose:
    """What gradients are made for, on which the best strategy depends."""

    pairing: Pairing
    """Which pairs of outputs are contracted."""
    speed: Speed
    """Speed of the machine."""
    pairs_each: float | None
    """With how many examples an example is paired; None for gradients that take the least memory."""
    at_once: bool = False
    """Whether all examples are contracted at once, so that gradients can be streamed."""
    jacobians: bool = False
    """Whether plain Jacobians are made instead of what the rules would make."""


def choose(factor: Factor, purpose: Purpose, shared: bool) -> Choice:
    """Return the strategy for a use that takes the least time, or the least memory.

    Parameters
    ----------
    factor
        The factor of the use for a few examples.
    purpose
        What the gradients are made for.
    shared
        The use shares a parameter with another use, so that their gradients have to be summed.
    """
    pairing, speed, pairs_each = purpose.pairing, purpose.speed, purpose.pairs_each
    choices = [Choice("materialised", factor.materialised_cost(pairing))]
    if shared or not isinstance(factor, Factored):
        return choices[0]
    choices.append(Choice("factored", factor.factored_cost(pairing)))
    if direct := factor.direct_cost(pairing):
        choices.append(Choice("direct", direct))
    if purpose.at_once and (streamed := factor.streamed_cost(pairing)):
        choices.append(Choice("streamed", streamed))
    if pairs_each is None:
        # Among those that take the same memory, the fastest.
        return min(choices, key=lambda c: (c.cost.held, speed.seconds(c.cost, 1.0, 0.0)))
    return min(choices, key=lambda choice: speed.seconds(choice.cost, 1.0, pairs_each))


def jacobians_pay(examples: int, outputs: int, parameters: int, activations: int) -> bool:
    """Return whether plain Jacobians are faster than layer rules.

    The rules need a trace of the network first, which takes as long as the gradients of some forty
    examples. ``torch.func.vmap`` needs none, but writes out the gradient by every parameter of every
    example, and often copies it. In units of one forward and backward pass of one example a Gram takes

        by rules       40 + N·C
        by Jacobians   N·C·(0.8 + 0.4·P/A)

    The constants were fitted on a CPU, and never on a GPU, to LeNet-5x8 (P/A = 42), ResNet-20 (0.7) and
    a transformer (2).

    Parameters
    ----------
    examples, outputs
        N, the examples of both sides of the Gram together, and C.
    parameters, activations
        P, and A: the numbers that the forward pass of one example saves for its backward pass.
    """
    passes = float(examples * outputs)
    by_jacobians = passes * (_PASS + _WRITE * parameters / max(1, activations))
    return by_jacobians < _TRACE + passes


def _large_products(dtype: torch.dtype, device: str) -> tuple[float, Callable[[], object]]:
    large = torch.ones(256, 16384, dtype=dtype, device=device)
    return 256 * 256 * 16384, lambda: large @ large.T


def _small_products(dtype: torch.dtype, device: str) -> tuple[float, Callable[[], object]]:
    left = torch.ones(32, 32, 256, dtype=dtype, device=device)
    right = torch.ones(32, 256, 288, dtype=dtype, device=device)
    return 32 * 32 * 256 * 288, lambda: torch.bmm(left, right)


def _elementwise(dtype: torch.dtype, device: str) -> tuple[float, Callable[[], object]]:
    flat = torch.ones(2**22, dtype=dtype, device=device)
    # Two numbers are read and one is written.
    return 3 * flat.numel(), lambda: flat * flat


# The speeds of GPUs are estimates from data sheets, not measurements.
_OPERATIONS = (
    Operation("products", {"cpu": 4e10, "cuda": 2e13}, _large_products),
    Operation("moved", {"cpu": 1e9, "cuda": 5e11}, _elementwise),
    Operation(SMALL_PRODUCTS, {"cpu": 2e10, "cuda": 5e12}, _small_products),
)


def typical_speed(device: torch.device) -> Speed:
    """Return how fast such a device typically is."""
    every = (*_OPERATIONS, *operations())
    return _speed({o.name: o.typical.get(device.type, o.typical["cpu"]) for o in every})


def measured_speed(dtype: torch.dtype, device: torch.device, examples: int | None = None) -> Speed:
    """Return how fast this machine is, measured once; a typical speed for few examples."""
    if examples is not None and examples < FEW:
        return typical_speed(device)
    every = (*_OPERATIONS, *operations())
    return _measured(every, dtype, str(device), torch.get_num_threads())


@lru_cache
def _measured(every: tuple[Operation, ...], dtype: torch.dtype, device: str, threads: int) -> Speed:
    """Return the speed by the fastest of a few runs of each operation.

    The operations take turns, so that a machine that is slower for a while is so for all of them.
    """
    benchmarks = [each.benchmark(dtype, device) for each in every]
    best = [float("inf")] * len(every)
    for _ in range(4):
        for k, (_, work) in enumerate(benchmarks):
            _synchronise(device)
            began = time.perf_counter()
            work()
            _synchronise(device)
            best[k] = min(best[k], time.perf_counter() - began)
    rates = [count / least for (count, _), least in zip(benchmarks, best, strict=True)]
    return _speed({each.name: rate for each, rate in zip(every, rates, strict=True)})


def _speed(rates: dict[str, float]) -> Speed:
    return Speed(products=rates.pop("products"), moved=rates.pop("moved"), forming=rates)


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
