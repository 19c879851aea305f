"""The contract of a factor: the gradients that one use of parameters contributes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from distillens.kernel.factors.cost import Cost, Work

Role = Literal["weight", "bias"]
Pairing = Literal["diagonal", "full"]
"""Which pairs of outputs are contracted: each with itself, (C, B, D), or all pairs, (B, C, D, C)."""


class Factor(ABC):
    """Gradients of a block's outputs by the parameters of one use.

    A subclass decides in which form it holds them. Every form must give the gradients that
    `gradient` returns. Shapes: B examples, C outputs, p numbers of a parameter.
    """

    roles: tuple[Role, ...]
    """The parameters whose gradients are asked for."""

    @abstractmethod
    def gradient(self, role: Role) -> Tensor:
        """Return the gradients by a parameter, (B, C, p), in the parameter's own order."""

    def write(self, role: Role, target_BCp: Tensor) -> None:
        """Write the gradients by a parameter to a tensor."""
        target_BCp.copy_(self.gradient(role))

    def write_directly(self, role: Role, target_BCp: Tensor) -> None:
        """Write the gradients by the operation that `direct_cost` is the cost of."""
        self.write(role, target_BCp)

    def add(self, role: Role, target_BCp: Tensor) -> None:
        """Add the gradients by a parameter to a tensor."""
        target_BCp += self.gradient(role)

    @abstractmethod
    def numbers(self, role: Role) -> int:
        """Return how many numbers a parameter has."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """C."""

    @property
    def positions(self) -> int:
        """Positions at which the parameter is applied; 1 for gradients that are no outer products."""
        return 1

    def materialised_cost(self, pairing: Pairing) -> Cost:
        """Return the cost of materialising the gradients and contracting them as vectors."""
        size = float(sum(self.numbers(role) for role in self.roles))
        return Cost(
            pair_products=output_pairs(self.outputs, pairing) * size,
            pair_moved=0.0,
            forming=Work(self.outputs * self.positions * size),
            held=self.outputs * size,
        )

    def direct_cost(self, pairing: Pairing) -> Cost | None:
        """Return the cost of materialising the gradients by one operation of the layer's own.

        None if the layer has no such operation.
        """
        return None

    def streamed_cost(self, pairing: Pairing) -> Cost | None:
        """Return the cost of keeping factors and materialising some columns at a time.

        None if the factor cannot be streamed.
        """
        return None


class Materialised(Factor):
    """Gradients that a rule forms at once, such as those of a normalisation."""

    def __init__(self, gradients: Mapping[Role, Tensor]) -> None:
        self.roles = tuple(gradients)
        self._gradients = gradients

    def gradient(self, role: Role) -> Tensor:
        """Return the gradients by a parameter, (B, C, p)."""
        return self._gradients[role]

    def numbers(self, role: Role) -> int:
        """Return how many numbers a parameter has."""
        return self._gradients[role].shape[2]

    @property
    def outputs(self) -> int:
        """C."""
        return next(iter(self._gradients.values())).shape[1]


def output_pairs(outputs: int, pairing: Pairing) -> int:
    """Return how many pairs of outputs are contracted."""
    return outputs**2 if pairing == "full" else outputs
