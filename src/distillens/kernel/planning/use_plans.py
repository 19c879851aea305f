"""How the gradients by each use of parameters are contracted, and where materialised ones lie.

Shapes: B examples, C outputs that the kernel is taken of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from distillens.kernel.factors.factor import Factor, Role
from distillens.kernel.factors.factored import Factored
from distillens.kernel.factors.limits import Limits
from distillens.kernel.factors.outer_products import OuterProducts
from distillens.kernel.factors.streamed import StreamedShape
from distillens.kernel.planning.cost_model import Choice, Purpose, Strategy, choose
from distillens.kernel.tracing.directions import Directions
from distillens.kernel.tracing.uses import Tracer, Use, UseSite

KEEPS_FACTORS = ("factored", "streamed")
"""The strategies that keep factors of examples."""


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
