"""How the gradients by each use of a parameter are contracted, and where those written out lie.

Shapes: C outputs that the kernel is taken of, O of the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from distillens.kernel.directions import Directions
from distillens.kernel.factors import Factor, Outer, Paired, Pairing, Role
from distillens.kernel.late import LateShape
from distillens.kernel.uses import Place, Tracer, Use
from distillens.kernel.ways import Choice, Purpose, Way, choose

KEPT = ("paired", "late")
"""The ways that keep factors."""


@dataclass(frozen=True)
class Part:
    """A place, what of it counts, and how it is contracted."""

    place: Place
    roles: tuple[Role, ...]
    choice: Choice

    @property
    def written(self) -> list[tuple[Role, str]]:
        """The roles whose gradients passes write out, and the parameters' names."""
        # Of what is written late only the weight: a bias is a sum, made while it is at hand.
        left = {"paired": self.roles, "late": ("weight",)}.get(self.choice.way, ())
        return [(role, self.place.names[role]) for role in self.roles if role not in left]


@dataclass(frozen=True)
class Parts:
    """All uses, in the order of the calls."""

    each: tuple[Part, ...]
    offsets: dict[str, slice]
    """Where a parameter's gradients lie among those that passes write out."""
    written: int
    """How many numbers these are."""
    pair_numbers: int
    """Numbers that products of positions take for a pair of examples."""
    late: tuple[LateShape, ...]
    """Of the gradients that are written late."""
    of_calls: int = 0
    """Numbers of an example in the outputs of all uses."""
    forming: int = 0
    """A bound on the numbers that forming an example's gradients takes, of the largest use."""


def choose_parts(
    tracer: Tracer,
    places: Sequence[Place],
    sample: Tensor,
    directions: Directions,
    purpose: Purpose,
) -> Parts:
    """Return how the gradients of such examples are best contracted."""
    _, uses = tracer.run(sample)
    counts = Counter(name for use in uses for name in use.names.values())
    shared = {name for name, count in counts.items() if count > 1}
    B, C = len(sample), len(directions)
    parts: list[Part] = []
    late: list[LateShape] = []
    offsets: dict[str, slice] = {}
    written = pair_numbers = of_calls = forming = 0
    for place, use in zip(places, uses, strict=True):
        roles = tuple(use.names)
        # Only shapes count, so that no gradient has to be made.
        gradient = use.output.new_zeros(()).expand(use.output.shape)
        factor = place.factor(use, [gradient] * C, roles)
        of_calls += use.output.numel() // B
        tied = any(name in shared for name in use.names.values())
        part = Part(place, roles, choose(factor, purpose, tied))
        parts.append(part)
        forming = max(forming, _forming(use, factor, part.choice.way, B))
        if part.choice.way == "paired":
            assert isinstance(factor, Paired)
            pair_numbers = max(pair_numbers, numbers_of_pair(factor, purpose.pairing))
        elif part.choice.way == "late":
            assert isinstance(factor, Outer)
            late.append(LateShape.of(factor))
        for role, name in part.written:
            if name not in offsets:
                size = factor.numbers(role)
                offsets[name] = slice(written, written + size)
                written += size
    return Parts(tuple(parts), offsets, written, pair_numbers, tuple(late), of_calls, forming)


def _forming(use: Use, factor: Factor, way: Way, examples: int) -> int:
    """Return a bound on the numbers that forming an example's gradients by a use takes.

    Inputs and gradients may be copied twice to another order; what is written out takes patches, and
    the gradients once before they are at their place.
    """
    C = factor.outputs
    numbers = 2 * (use.call.inputs.numel() + C * use.output.numel()) // examples
    if way in ("written", "convolved"):
        numbers += C * sum(factor.numbers(role) for role in factor.roles)
        numbers += 2 * int(factor.inputs_cost()[1]) if isinstance(factor, Paired) else 0
    return numbers


def numbers_of_pair(factor: Paired, pairing: Pairing) -> int:
    """Return how many products of positions a pair of examples takes at once."""
    # The inputs' products and the gradients'; for "full" einsum orders the latter anew.
    outputs = 2 * factor.outputs**2 if pairing == "full" else 1
    return factor.gradients_BCKTg.shape[2] * factor.positions**2 * (1 + outputs)
