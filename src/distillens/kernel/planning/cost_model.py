"""The cost model: which strategy contracts the gradients of a use in the least time.

Materialised gradients are contracted in large matrix products, but are formed in small ones: when a
pass ends, or streamed when they are contracted. Factored gradients are contracted by two products and
an elementwise pass over them. The speed of each operation is measured once per process, type and device.

Shapes: B examples, C outputs that the kernel is taken of.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from distillens.kernel.factors.cost import SMALL_PRODUCTS, Cost, Operation, Speed
from distillens.kernel.factors.factor import Factor, Pairing, Role
from distillens.kernel.factors.factored import Factored
from distillens.kernel.factors.limits import Limits
from distillens.kernel.factors.outer_products import OuterProducts
from distillens.kernel.factors.streamed import StreamedShape
from distillens.kernel.rules import operations
from distillens.kernel.tracing.directions import Directions
from distillens.kernel.tracing.uses import Tracer, Use, UseSite

Strategy = Literal["materialised", "direct", "streamed", "factored"]
"""How gradients are contracted. "materialised": formed in each pass, from factors. "direct": formed by
an operation of the layer's own. "streamed": formed when they are contracted, some columns at a time.
"factored": never formed."""

KEEPS_FACTORS = ("factored", "streamed")
"""The strategies that keep factors of examples."""

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


@dataclass(frozen=True)
class UsePlan:
    """A use of parameters, and how its gradients are contracted."""

    site: UseSite
    roles: tuple[Role, ...]
    choice: Choice

    @property
    def materialised(self) -> list[tuple[Role, str]]:
        """The roles and names of the parameters whose gradients are materialised in each pass."""
        # Only the weight is streamed; the bias is a sum that is made while its terms are there.
        kept = {"factored": self.roles, "streamed": ("weight",)}.get(self.choice.strategy, ())
        return [(role, self.site.names[role]) for role in self.roles if role not in kept]


@dataclass(frozen=True)
class UsePlans:
    """The plans of all uses, in the order of the calls."""

    each: tuple[UsePlan, ...] = ()
    offsets: dict[str, slice] = field(default_factory=dict)
    """Where the gradients by a parameter lie among the materialised ones."""
    materialised: int = 0
    """How many numbers are materialised for an example and output."""
    pair_numbers: int = 0
    """Products of positions that exist at once for a pair of examples."""
    streamed: tuple[StreamedShape, ...] = ()
    output_numbers: int = 0
    """Numbers of an example in the outputs of all uses."""
    forming: int = 0
    """A bound on the numbers that forming an example's gradients takes, for the largest use."""


def plan_uses(
    tracer: Tracer,
    sites: Sequence[UseSite],
    sample: Tensor,
    directions: Directions,
    purpose: Purpose,
    limits: Limits,
) -> UsePlans:
    """Return how the gradients of examples like the sample are best contracted."""
    _, uses = tracer.run(sample)
    counts = Counter(name for use in uses for name in use.names.values())
    B, C = len(sample), len(directions)
    plans: list[UsePlan] = []
    streamed: list[StreamedShape] = []
    offsets: dict[str, slice] = {}
    materialised = pair_numbers = output_numbers = forming = 0
    for site, use in zip(sites, uses, strict=True):
        roles = tuple(use.names)
        # Only the shapes matter, so that no gradient has to be computed.
        gradient = use.output.new_zeros(()).expand(use.output.shape)
        factor = site.factor(use, [gradient] * C, roles)
        output_numbers += use.output.numel() // B
        shared = any(counts[name] > 1 for name in use.names.values())
        plan = UsePlan(site, roles, choose(factor, purpose, shared))
        plans.append(plan)
        forming = max(forming, _forming_numbers(use, factor, plan.choice.strategy, B))
        if plan.choice.strategy == "factored":
            assert isinstance(factor, Factored)
            pair_numbers = max(pair_numbers, factor.numbers_of_pair(purpose.pairing))
        elif plan.choice.strategy == "streamed":
            assert isinstance(factor, OuterProducts)
            streamed.append(StreamedShape.of(factor, limits))
        for role, name in plan.materialised:
            if name not in offsets:
                size = factor.numbers(role)
                offsets[name] = slice(materialised, materialised + size)
                materialised += size
    return UsePlans(
        tuple(plans), offsets, materialised, pair_numbers, tuple(streamed), output_numbers, forming
    )


def _forming_numbers(use: Use, factor: Factor, strategy: Strategy, examples: int) -> int:
    """Return a bound on the numbers that forming an example's gradients by a use takes.

    Inputs and gradients may be copied twice to change the order of their axes. Materialising takes the
    inputs that are made for it, and the gradients once before they are written to their place.
    """
    C = factor.outputs
    numbers = 2 * (use.call.inputs.numel() + C * use.output.numel()) // examples
    if strategy in ("materialised", "direct"):
        numbers += C * sum(factor.numbers(role) for role in factor.roles)
        numbers += 2 * int(factor.inputs_cost()[1]) if isinstance(factor, Factored) else 0
    return numbers
