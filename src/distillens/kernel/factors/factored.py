"""Gradients in two factors, contracted without being materialised.

The gradient of an output by a weight that is applied at T positions is Σ_t g_t a_tᵀ, a sum of outer
products of the layer's inputs a and the gradients g by its outputs. The kernel of two examples is then
k(x, x′) = Σ_tt′ (a_t·a′_t′)(g_t·g′_t′), which for one position is (a·a′)(g·g′).

Shapes: B, D examples of two blocks, C outputs, K groups, T, U positions, g fan-out of a group,
M columns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from distillens.kernel.factors.cost import Cost, Work
from distillens.kernel.factors.factor import Factor, Pairing, output_pairs


class Factored(Factor):
    """A factor that can also be contracted by pairs of positions."""

    gradients_BCKTg: Tensor

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that hold the factor, examples first."""

    @abstractmethod
    def with_tensors(self, *tensors: Tensor) -> Factored:
        """Return a factor like this one that holds other examples."""

    @abstractmethod
    def inputs_product(self, other: Factored) -> Tensor:
        """Return a·a′ for all pairs of positions of all pairs of examples, (K, B·T, D·U)."""

    @abstractmethod
    def inputs_cost(self) -> tuple[float, float]:
        """Return the multiply-adds of `inputs_product` for a pair of positions, and how many numbers
        of an example are held for it."""

    @abstractmethod
    def pull(self, vectors_BCM: Tensor) -> Tensor:
        """Return Jᵀv for M columns, in a shape of the factor's choice, (M, …)."""

    @abstractmethod
    def push(self, parameters_M: Tensor) -> Tensor:
        """Return Ju for M parameter vectors in the shape of `pull`, (B, C, M)."""

    def compacted(self, copy_inputs: bool) -> Factored:
        """Return the factor without the larger tensors that its tensors are views of.

        Parameters
        ----------
        copy_inputs
            Whether the inputs are copied in any case, since later passes may overwrite them.
        """
        return self

    def joined(self, parts: Sequence[Factored]) -> Factored:
        """Return one factor of the examples of several; this one is the first of them."""
        columns = zip(*(part.tensors for part in parts), strict=True)
        return self.with_tensors(*(torch.cat(each) for each in columns))

    def part(self, start: int, stop: int) -> Factored:
        """Return the factor of some of the examples."""
        return self.with_tensors(*(each[start:stop] for each in self.tensors))

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

    def factored_cost(self, pairing: Pairing) -> Cost:
        """Return the cost of contracting pairs of positions."""
        groups, positions, fan_out = self.gradients_BCKTg.shape[2:]
        pairs = output_pairs(self.outputs, pairing)
        inputs, held = self.inputs_cost()
        squares = groups * positions**2
        return Cost(
            pair_products=squares * (inputs + pairs * fan_out),
            # Two products are written, read, multiplied and summed.
            pair_moved=squares * (2.0 + 4.0 * pairs) if positions > 1 else 1.0 + 3.0 * pairs,
            forming=Work(0.0),
            held=held + self.outputs * groups * positions * fan_out,
        )

    def numbers_of_pair(self, pairing: Pairing) -> int:
        """Return how many products of positions exist at once for a pair of examples."""
        # The products of inputs and of gradients; for "full" einsum reorders the latter in a copy.
        outputs = 2 * self.outputs**2 if pairing == "full" else 1
        return self.gradients_BCKTg.shape[2] * self.positions**2 * (1 + outputs)

    def pairs(self, other: Factored, pairing: Pairing) -> Tensor:
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
        """Return the product of each example's gradients with themselves, (B, C)."""
        ones = (self.part(b, b + 1) for b in range(len(self.gradients_BCKTg)))
        return torch.stack([one.pairs(one, "diagonal")[:, 0, 0] for one in ones])


def compact(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy if it is a view that keeps a larger tensor alive."""
    larger = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
    return tensor.clone() if larger else tensor
