"""What one use of parameters contributes to a kernel: gradients as they are, or in two factors.

The gradient of an output by a weight that is applied at T positions is Σ_t g_t aᵀ_t, a sum of outer
products of the layer's inputs a and the gradients g by its outputs. It can be written out and
contracted as a vector, or contracted factor by factor:
k(x, x′) = Σ_tt′ (aₜ·a′ₜ′)(gₜ·g′ₜ′), which for one position (T = 1) is (a·a′)(g·g′).

Shapes: B, D examples of two blocks, C outputs, K groups, T positions, a fan-in, g fan-out (both of
a group), M columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Role = Literal["weight", "bias"]
Pairing = Literal["diagonal", "full"]
"""Which pairs of outputs: each with itself, (C, B, D), or each with each, (B, C, D, C)."""


@dataclass(frozen=True)
class Cost:
    """What a way of contracting costs: multiply-adds and numbers moved, for a pair and an example.

    ``held`` is how many numbers of an example are kept until its pairs are done.
    """

    pair_products: float
    pair_moved: float
    example_products: float
    held: float
    example_patched: float = 0.0
    """Multiply-adds of products of a convolution's patches, which have to be made."""
    example_convolved: float = 0.0
    """Multiply-adds of one convolution that has a group for each example."""
    channels: float = 0.0
    """Of the convolution's output, in a group."""


class Factor(ABC):
    """The gradients of a block's outputs by the parameters of one use, in whatever form."""

    roles: tuple[Role, ...]

    @abstractmethod
    def gradient(self, role: Role) -> Tensor:
        """Write the gradients out, (B, C, numbers of the parameter) in the parameter's order."""

    def write(self, role: Role, target_BCp: Tensor) -> None:
        """Write the gradients to a place."""
        target_BCp.copy_(self.gradient(role))

    def add(self, role: Role, target_BCp: Tensor) -> None:
        """Add the gradients to what is in a place."""
        target_BCp += self.gradient(role)

    def convolve(self, role: Role, target_BCp: Tensor) -> None:
        """Write the gradients to a place by a convolution, where `convolved_cost` says it can be."""
        self.write(role, target_BCp)

    @abstractmethod
    def numbers(self, role: Role) -> int:
        """Return how many numbers the parameter has."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """C."""

    @property
    def positions(self) -> int:
        """T; 1 for gradients that are no outer products."""
        return 1

    def written_cost(self, pairing: Pairing) -> Cost:
        """Return the cost of writing the gradients out and contracting them as vectors."""
        size = float(sum(self.numbers(role) for role in self.roles))
        pairs = self.outputs ** (2 if pairing == "full" else 1)
        return Cost(
            pair_products=pairs * size,
            pair_moved=0.0,
            example_products=self.outputs * self.positions * size,
            held=self.outputs * size,
        )

    def convolved_cost(self, pairing: Pairing) -> Cost | None:
        """Return the cost of writing the gradients out by a convolution; None if there is none."""
        return None

    def late_cost(self, pairing: Pairing) -> Cost | None:
        """Return the cost of keeping factors and writing gradients when they are contracted.

        None where that is not to be had.
        """
        return None


class Written(Factor):
    """Gradients that a rule forms at once, such as those of a normalisation."""

    def __init__(self, gradients: dict[Role, Tensor]) -> None:
        self.roles = tuple(gradients)
        self._gradients = gradients

    def gradient(self, role: Role) -> Tensor:
        """Return the gradients, (B, C, numbers)."""
        return self._gradients[role]

    def numbers(self, role: Role) -> int:
        """Return how many numbers the parameter has."""
        return self._gradients[role].shape[2]

    @property
    def outputs(self) -> int:
        """C."""
        return next(iter(self._gradients.values())).shape[1]


class Paired(Factor):
    """A factor that can also be contracted pair of positions by pair of positions."""

    gradients_BCKTg: Tensor

    @abstractmethod
    def inputs_product(self, other: Paired) -> Tensor:
        """Return a·a′ for all positions of all pairs, (K, B·T, D·T′)."""

    @abstractmethod
    def inputs_cost(self) -> tuple[float, float]:
        """Return the multiply-adds of `inputs_product` for a pair of positions; held numbers."""

    def apart(self, copying: bool) -> Paired:
        """Return the factor without what its tensors are views of; a copy if asked for."""
        return self

    @abstractmethod
    def joined(self, parts: Sequence[Paired]) -> Paired:
        """Return one factor of the examples of several, this one the first of them."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Paired:
        """Return the factor of some of the examples."""

    @abstractmethod
    def pull(self, vectors_BCM: Tensor) -> Tensor:
        """Return Jᵀv for M columns, in the factor's own shape of the parameters, (M, …)."""

    @abstractmethod
    def push(self, parameters_M: Tensor) -> Tensor:
        """Return Ju for M parameter vectors as `pull` gives them, (B, C, M)."""

    @property
    def outputs(self) -> int:
        """C."""
        return self.gradients_BCKTg.shape[1]

    @property
    def positions(self) -> int:
        """T."""
        return self.gradients_BCKTg.shape[3]

    @property
    def bias(self) -> bool:
        """Whether the bias takes part: it adds 1 to each a·a′."""
        return "bias" in self.roles

    def paired_cost(self, pairing: Pairing) -> Cost:
        """Return the cost of contracting pairs of positions."""
        groups, positions, fan_out = self.gradients_BCKTg.shape[2:]
        pairs = self.outputs ** (2 if pairing == "full" else 1)
        inputs, held = self.inputs_cost()
        squares = groups * positions**2
        return Cost(
            pair_products=squares * (inputs + pairs * fan_out),
            # Two products are written, read, multiplied and summed.
            pair_moved=squares * (2.0 + 4.0 * pairs) if positions > 1 else 1.0 + 3.0 * pairs,
            example_products=0.0,
            held=held + self.outputs * groups * positions * fan_out,
        )

    def pairs(self, other: Paired, pairing: Pairing) -> Tensor:
        """Contract with another block: (C, B, D) for "diagonal", (B, C, D, C) for "full"."""
        left, right = self.gradients_BCKTg, other.gradients_BCKTg
        B, C, K, T, g = left.shape
        D, _, _, U, _ = right.shape
        inputs_KBTDU = self.inputs_product(other).view(K, B, T, D, U)
        if pairing == "full":
            product = torch.matmul(
                left.permute(2, 0, 3, 1, 4).reshape(K, B * T * C, g),
                right.permute(2, 0, 3, 1, 4).reshape(K, D * U * C, g).mT,
            ).view(K, B, T, C, D, U, C)
            return torch.einsum("kbtdu,kbtcdue->bcde", inputs_KBTDU, product)
        found = left.new_empty(C, B, D)
        for c in range(C):
            product = torch.matmul(
                left[:, c].transpose(0, 1).reshape(K, B * T, g),
                right[:, c].transpose(0, 1).reshape(K, D * U, g).mT,
            ).view(K, B, T, D, U)
            product *= inputs_KBTDU
            found[c] = product.sum(dim=(0, 2, 4))
        return found

    def squares(self) -> Tensor:
        """Return each output's product with itself, (B, C)."""
        found = [
            self.part(b, b + 1).pairs(self.part(b, b + 1), "diagonal")[:, 0, 0]
            for b in range(len(self.gradients_BCKTg))
        ]
        return torch.stack(found)


class Outer(Paired):
    """Inputs (B, K, T, a) and gradients by outputs (B, C, K, T, g): linear maps, convolutions.

    The weight has the order (K·g, a).
    """

    def __init__(
        self, inputs_BKTa: Tensor, gradients_BCKTg: Tensor, roles: tuple[Role, ...]
    ) -> None:
        self.inputs_BKTa, self.gradients_BCKTg, self.roles = inputs_BKTa, gradients_BCKTg, roles

    def numbers(self, role: Role) -> int:
        """Return how many numbers the parameter has."""
        groups, _, fan_in = self.inputs_BKTa.shape[1:]
        fan_out = self.gradients_BCKTg.shape[4]
        return groups * fan_out * (fan_in if role == "weight" else 1)

    def gradient(self, role: Role) -> Tensor:
        """Write the gradients out, (B, C, numbers)."""
        B, C, K, T, g = self.gradients_BCKTg.shape
        if role == "bias":
            return self.gradients_BCKTg.sum(dim=3).reshape(B, C, K * g)
        if T == 1:
            inputs_B1K1a = self.inputs_BKTa[:, None]
            return (self.gradients_BCKTg.mT * inputs_B1K1a).reshape(B, C, -1)
        if C == 1:
            return torch.matmul(self.gradients_BCKTg[:, 0].mT, self.inputs_BKTa).reshape(B, 1, -1)
        # All outputs share the inputs: one product of C·g rows.
        rows = self.gradients_BCKTg.permute(0, 2, 1, 4, 3).reshape(B, K, C * g, T)
        product = torch.matmul(rows, self.inputs_BKTa).view(B, K, C, g, -1)
        return product.transpose(1, 2).reshape(B, C, -1)

    def write(self, role: Role, target_BCp: Tensor) -> None:
        """Write the gradients to a place, without a copy where they are one product."""
        _, C, K, T, g = self.gradients_BCKTg.shape
        if role == "bias" or C * K > 1 or T == 1:
            super().write(role, target_BCp)
            return
        rows = self.gradients_BCKTg[:, 0, 0].mT
        torch.bmm(rows, self.inputs_BKTa[:, 0], out=target_BCp[:, 0].unflatten(1, (g, -1)))

    def late_cost(self, pairing: Pairing) -> Cost | None:
        """Return the cost of keeping factors; None for groups, and for one position."""
        if "weight" not in self.roles or self.positions == 1 or self.inputs_BKTa.shape[1] > 1:
            return None
        return replace(self.written_cost(pairing), held=self.paired_cost(pairing).held)

    @property
    def unit(self) -> int:
        """How many neighbouring columns of the weight share what they are made of."""
        return 1

    @property
    def made(self) -> int:
        """How many numbers an example's column takes while its gradients are written; 0 for views."""
        return 0

    def unwritten(self, copying: bool) -> Outer:
        """Return what has to be kept to write gradients later; its inputs copied if asked for."""
        return self.apart(copying)

    def columns(self, examples: slice, columns: slice) -> Tensor:
        """Return some inputs of some examples, (B, T, w); of one group, in whole units."""
        return self.inputs_BKTa[examples, 0, :, columns]

    def inputs_product(self, other: Paired) -> Tensor:
        """Return a·a′, one more with a bias, (K, B·T, D·T′)."""
        assert isinstance(other, Outer)
        K = self.inputs_BKTa.shape[1]
        if "weight" not in self.roles:
            rows = len(self.inputs_BKTa) * self.positions
            return self.gradients_BCKTg.new_ones(K, rows, len(other.inputs_BKTa) * other.positions)
        left = self.inputs_BKTa.transpose(0, 1).flatten(1, 2)
        right = other.inputs_BKTa.transpose(0, 1).flatten(1, 2)
        product = torch.matmul(left, right.mT)
        if self.bias:
            product += 1
        return product

    def inputs_cost(self) -> tuple[float, float]:
        """Return the fan-in, and the numbers of an example's inputs."""
        return float(self.inputs_BKTa.shape[3]), float(self.inputs_BKTa[0].numel())

    def apart(self, copying: bool) -> Outer:
        """Return the factor without what its tensors are views of; its inputs copied if asked for."""
        inputs = self.inputs_BKTa.clone() if copying else own(self.inputs_BKTa)
        return Outer(inputs, own(self.gradients_BCKTg), self.roles)

    def joined(self, parts: Sequence[Paired]) -> Outer:
        """Return one factor of the examples of several."""
        outers = [part for part in parts if isinstance(part, Outer)]
        return Outer(
            torch.cat([part.inputs_BKTa for part in outers]),
            torch.cat([part.gradients_BCKTg for part in outers]),
            self.roles,
        )

    def part(self, start: int, stop: int) -> Outer:
        """Return the factor of some of the examples."""
        return Outer(self.inputs_BKTa[start:stop], self.gradients_BCKTg[start:stop], self.roles)

    def squares(self) -> Tensor:
        """Return each output's product with itself, (B, C)."""
        if self.positions == 1 and self.inputs_BKTa.shape[1] == 1:
            size = torch.zeros_like(self.inputs_BKTa[:, 0, 0, :1])
            if "weight" in self.roles:
                size = self.inputs_BKTa.square().sum(dim=(1, 2, 3))[:, None]
            return (size + self.bias) * self.gradients_BCKTg.square().sum(dim=(2, 3, 4))
        B, C = self.gradients_BCKTg.shape[:2]
        # Gradients that are written out take no more room than what is held already, or that of one.
        largest = max(self.numbers(role) for role in self.roles)
        step = max(1, (self.inputs_BKTa.numel() + self.gradients_BCKTg.numel()) // (2 * largest))
        found = self.gradients_BCKTg.new_zeros(B, C)
        for start in range(0, B, step):
            part = self.part(start, start + step)
            for c in range(C):
                one = Outer(part.inputs_BKTa, part.gradients_BCKTg[:, c : c + 1], self.roles)
                for role in self.roles:
                    found[start : start + step, c] += one.gradient(role).square().sum(dim=2)[:, 0]
        return found

    def pull(self, vectors_BCM: Tensor) -> Tensor:
        """Return Jᵀv, (M, K, g, a + 1); the last column is the bias's."""
        inputs_KBTa = self._with_ones().transpose(0, 1).flatten(1, 2)
        found = []
        for m in range(vectors_BCM.shape[2]):
            weighed = torch.einsum("bcktg,bc->kbtg", self.gradients_BCKTg, vectors_BCM[:, :, m])
            found.append(torch.matmul(weighed.flatten(1, 2).mT, inputs_KBTa))
        return torch.stack(found)

    def push(self, parameters_M: Tensor) -> Tensor:
        """Return Ju for u of the shape that `pull` gives, (B, C, M)."""
        B, _, K, T, g = self.gradients_BCKTg.shape
        inputs_KBTa = self._with_ones().transpose(0, 1).flatten(1, 2)
        found = []
        for parameters_Kga in parameters_M:
            moved = torch.matmul(inputs_KBTa, parameters_Kga.mT).view(K, B, T, g)
            found.append(torch.einsum("bcktg,kbtg->bc", self.gradients_BCKTg, moved))
        return torch.stack(found, dim=2)

    def _with_ones(self) -> Tensor:
        inputs = self.inputs_BKTa
        if "weight" not in self.roles:
            inputs = inputs[..., :0]
        return torch.nn.functional.pad(inputs, (0, 1), value=1.0) if self.bias else inputs


def own(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where it keeps more than its own numbers alive."""
    larger = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
    return tensor.clone() if larger else tensor
