"""What contracting gradients costs, and how fast a machine is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

SMALL_PRODUCTS = "small_products"
"""Name of the operation of batches of small matrix products, by which most gradients are formed."""


@dataclass(frozen=True)
class Operation:
    """An operation with a speed of its own, such as one that forms gradients, and a benchmark of it."""

    name: str
    typical: Mapping[str, float] = field(hash=False)
    """Multiply-adds per second on a typical device, by device type; at least for ``"cpu"``."""
    benchmark: Callable[[torch.dtype, str], tuple[float, Callable[[], object]]]
    """Returns, for a type and a device, the multiply-adds of some work and a function that does it."""


@dataclass(frozen=True)
class Work:
    """Multiply-adds that form an example's gradients.

    They run at Σ weight · speed over the operations that are named; several operations interpolate
    between speeds that were measured at different sizes.
    """

    multiply_adds: float
    operations: tuple[tuple[str, float], ...] = ((SMALL_PRODUCTS, 1.0),)


@dataclass(frozen=True)
class Cost:
    """What contracting the gradients of one use costs."""

    pair_products: float
    """Multiply-adds of large matrix products for a pair of examples."""
    pair_moved: float
    """Numbers that elementwise operations read or write for a pair of examples."""
    forming: Work
    """Work that forms the gradients of an example."""
    held: float
    """Numbers of an example that are kept until all its pairs are contracted."""


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second."""

    products: float
    """Multiply-adds of large matrix products."""
    moved: float
    """Numbers that elementwise operations read or write."""
    forming: Mapping[str, float] = field(hash=False)
    """Multiply-adds of the operations that form gradients, by name."""

    def forming_seconds(self, cost: Cost) -> float:
        """Return the time that forming the gradients of an example takes."""
        work = cost.forming
        return work.multiply_adds / sum(
            share * self.forming[name] for name, share in work.operations
        )

    def pair_seconds(self, cost: Cost) -> float:
        """Return the time that contracting a pair of examples takes."""
        return cost.pair_products / self.products + cost.pair_moved / self.moved

    def seconds(self, cost: Cost, examples: float, pairs: float) -> float:
        """Return the seconds for a number of examples and of pairs of examples."""
        each = self.forming_seconds(cost) + cost.held / self.moved
        return pairs * self.pair_seconds(cost) + examples * each
