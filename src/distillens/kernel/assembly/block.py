"""The gradients of a block of examples, each in the form in which it is contracted.

Shapes: B, D examples of two blocks, C outputs, P materialised numbers, M columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.kernel.factors.contraction import add_products, empty_tile, mirror
from distillens.kernel.factors.factor import Pairing
from distillens.kernel.factors.factored import Factored
from distillens.kernel.factors.limits import Limits
from distillens.kernel.factors.streamed import Streamed

PAIR_NUMBERS = 2**25
"""Products of positions that exist at a time if memory allows."""


@dataclass(frozen=True)
class Block:
    """The gradients of some examples: materialised ones in one tensor, other ones by use."""

    materialised_BCP: Tensor
    limits: Limits
    factored: tuple[Factored, ...] = ()
    streamed: tuple[Streamed, ...] = ()
    """Only in a block that is contracted with itself alone."""
    jacobians: tuple[Sequence[Tensor], ...] = ()
    """Instead of all others, for each pass: the gradients by each parameter, (B, C, p), as torch.func
    made them, since joining them would copy them. Such blocks can be contracted only."""

    def __len__(self) -> int:
        return len(self.materialised_BCP)

    def contract(self, other: Block, pairing: Pairing, pair_numbers: int = PAIR_NUMBERS) -> Tensor:
        """Return the tile of the kernel: (C, B, D) for "diagonal", (B, C, D, C) for "full".

        At most ``pair_numbers`` products of positions exist at a time, or those of one row.
        """
        same = other is self
        left, right = self.materialised_BCP, other.materialised_BCP
        tile = empty_tile(left, right, pairing)
        add_products(tile, left, right, pairing, self.limits, upper=same)
        if self.jacobians:
            self._add_jacobians(tile, other, pairing)
        if self.streamed:
            assert same
            numbers = max(each.shape.gradients(len(self)) for each in self.streamed)
            scratch = left.new_empty(numbers)
            for streamed in self.streamed:
                streamed.add(tile, pairing, scratch)
            del scratch
        for mine, its in zip(self.factored, other.factored, strict=True):
            step = max(1, pair_numbers // (len(other) * mine.numbers_of_pair(pairing)))
            if same:
                step = min(step, self.limits.strip_on(tile.device))
            for start in range(0, len(self), step):
                first = start if same else 0
                columns = its.part(first, len(other)) if same else its
                part = mine.part(start, start + step).pairs(columns, pairing)
                _place(tile, slice(start, start + step), slice(first, None), pairing).add_(part)
        if same:
            mirror(tile, pairing)
        return tile.to(left.dtype)

    def _add_jacobians(self, tile: Tensor, other: Block, pairing: Pairing) -> None:
        row = 0
        for left in self.jacobians:
            column = 0
            for right in other.jacobians:
                if other is not self or column >= row:
                    part = empty_tile(left[0], right[0], pairing)
                    for mine, its in zip(left, right, strict=True):
                        add_products(part, mine, its, pairing, self.limits, upper=mine is its)
                    places = slice(row, row + len(left[0])), slice(column, column + len(right[0]))
                    _place(tile, *places, pairing).add_(part)
                column += len(right[0])
            row += len(left[0])

    def squares(self) -> Tensor:
        """Return the kernel of each output of each example with itself, (B, C)."""
        materialised = self.materialised_BCP.square().sum(dim=2)
        return sum((factor.squares() for factor in self.factored), materialised)

    def pull(self, vectors_BCM: Tensor) -> list[Tensor]:
        """Return Jᵀv for M columns: a tensor for materialised gradients and one for each factor."""
        materialised = torch.einsum("bcp,bcm->mp", self.materialised_BCP, vectors_BCM)
        return [materialised, *(factor.pull(vectors_BCM) for factor in self.factored)]

    def push(self, parameters: list[Tensor]) -> Tensor:
        """Return Ju for u in the form that `pull` returns, (B, C, M)."""
        total = torch.einsum("bcp,mp->bcm", self.materialised_BCP, parameters[0])
        for factor, each in zip(self.factored, parameters[1:], strict=True):
            total = total + factor.push(each)
        return total


def _place(tile: Tensor, rows: slice, columns: slice, pairing: Pairing) -> Tensor:
    """Return the part of a tile that belongs to some examples."""
    return tile[rows, :, columns] if pairing == "full" else tile[:, rows, columns]
