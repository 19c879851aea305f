"""Gradients by an embedding: tokens in place of inputs, so that no one-hot vector is written out.

The gradient by the table is zero but for the rows that an example looks up, and
k(x, x′) = Σ_tt′ [token_t = token′_t′] (g_t·g′_t′).

Shapes: B, D examples of two blocks, C outputs, T positions, V tokens of the table, g numbers of a
row, U distinct tokens, M columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distillens.kernel.factors import Cost, Paired, Pairing, Role

_PASSES = 64.0
"""Multiply-adds that the passes over a number of a product of positions are worth, roughly."""
_NUMBERS = 2**23
"""Numbers of the rows that exist at a time for one block, while tokens are gathered."""


class Tokens(Paired):
    """Tokens (B, T) and gradients by the rows looked up (B, C, 1, T, g)."""

    roles: tuple[Role, ...] = ("weight",)

    def __init__(self, tokens_BT: Tensor, gradients_BCKTg: Tensor, rows: int) -> None:
        self.tokens_BT, self.gradients_BCKTg, self._rows = tokens_BT, gradients_BCKTg, rows

    def numbers(self, role: Role) -> int:
        """Return how many numbers the table has."""
        return self._rows * self.gradients_BCKTg.shape[4]

    def gradient(self, role: Role) -> Tensor:
        """Write the gradients out, (B, C, V·g)."""
        B, C, _, _, g = self.gradients_BCKTg.shape
        target = self.gradients_BCKTg.new_zeros(B, C, self._rows * g)
        self.add(role, target)
        return target

    def write(self, role: Role, target_BCp: Tensor) -> None:
        """Write the gradients to a place, row by row of the table."""
        target_BCp.zero_()
        self.add(role, target_BCp)

    def add(self, role: Role, target_BCp: Tensor) -> None:
        """Add the gradients to what is in a place."""
        C, g = self.outputs, self.gradients_BCKTg.shape[4]
        columns = torch.arange(g, device=self.tokens_BT.device)
        places_BTg = self.tokens_BT[:, :, None] * g + columns
        for c in range(C):
            gradients_BTg = self.gradients_BCKTg[:, c, 0]
            target_BCp[:, c].scatter_add_(1, places_BTg.flatten(1), gradients_BTg.flatten(1))

    def written_cost(self, pairing: Pairing) -> Cost:
        """Return the cost of writing the table's gradients out, whose zeros count in full."""
        size = float(self.numbers("weight"))
        pairs = self.outputs ** (2 if pairing == "full" else 1)
        return Cost(
            pair_products=pairs * size,
            pair_moved=0.0,
            example_products=self.outputs * size,
            held=self.outputs * size,
        )

    def paired_cost(self, pairing: Pairing) -> Cost:
        """Return the cost of the cheaper of both ways in which `pairs` goes."""
        cost = super().paired_cost(pairing)
        if self._rows <= self.positions:
            return cost  # Written out, so small a table takes less room and time.
        pairs = self.outputs ** (2 if pairing == "full" else 1)
        # Gathered at most, it is never slower than written out, and holds T rows for V.
        gathered = min(float(self._rows), self._worth(self)) * self.gradients_BCKTg.shape[4]
        return Cost(pairs * gathered, 0.0, 0.0, cost.held)

    def inputs_product(self, other: Paired) -> Tensor:
        """Return 1 where the tokens are equal, else 0, (1, B·T, D·T′)."""
        assert isinstance(other, Tokens)
        equal = self.tokens_BT.reshape(-1, 1) == other.tokens_BT.reshape(1, -1)
        return equal.to(self.gradients_BCKTg.dtype)[None]

    def inputs_cost(self) -> tuple[float, float]:
        """Return one comparison, and the numbers of an example's tokens."""
        return 1.0, float(self.tokens_BT.shape[1])

    def pairs(self, other: Paired, pairing: Pairing) -> Tensor:
        """Contract with another block: (C, B, D) for "diagonal", (B, C, D, C) for "full".

        Where the blocks have few tokens in common, the rows of those are gathered and contracted
        as vectors; where they have many, pairs of positions are compared.
        """
        assert isinstance(other, Tokens)
        mine, its = self.tokens_BT.unique(), other.tokens_BT.unique()
        common_U = mine[torch.isin(mine, its)]
        if len(common_U) > self._worth(other):
            return super().pairs(other, pairing)
        (B, C), D = self.gradients_BCKTg.shape[:2], len(other.tokens_BT)
        shape = (B, C, D, C) if pairing == "full" else (C, B, D)
        total = self.gradients_BCKTg.new_zeros(shape, dtype=torch.float64)
        step = max(1, _NUMBERS // (max(B, D) * C * self.gradients_BCKTg.shape[4]))
        for start in range(0, len(common_U), step):
            some_U = common_U[start : start + step]
            left, right = self._gathered(some_U), other._gathered(some_U)
            if pairing == "full":
                total += (left.flatten(0, 1) @ right.flatten(0, 1).T).view(shape)
            else:
                total += torch.matmul(left.transpose(0, 1), right.permute(1, 2, 0))
        return total.to(self.gradients_BCKTg.dtype)

    def _worth(self, other: Paired) -> float:
        """Return how many tokens gathered cost as much as comparing pairs of positions."""
        passes = 1 + _PASSES / self.gradients_BCKTg.shape[4]
        return self.positions * other.positions * passes

    def _gathered(self, tokens_U: Tensor) -> Tensor:
        """Return the gradients by the rows of some tokens, in rising order, (B, C, U·g)."""
        B, C, _, _, g = self.gradients_BCKTg.shape
        U = len(tokens_U)
        number_BT = torch.searchsorted(tokens_U, self.tokens_BT).clamp_(max=U - 1)
        example, position = (tokens_U[number_BT] == self.tokens_BT).nonzero(as_tuple=True)
        rows = self.gradients_BCKTg.new_zeros(B * U, C, g)
        places = example * U + number_BT[example, position]
        rows.index_add_(0, places, self.gradients_BCKTg[example, :, 0, position])
        return rows.view(B, U, C, g).transpose(1, 2).flatten(2)

    def joined(self, parts: Sequence[Paired]) -> Tokens:
        """Return one factor of the examples of several."""
        tokens = [part for part in parts if isinstance(part, Tokens)]
        return Tokens(
            torch.cat([part.tokens_BT for part in tokens]),
            torch.cat([part.gradients_BCKTg for part in tokens]),
            self._rows,
        )

    def part(self, start: int, stop: int) -> Tokens:
        """Return the factor of some of the examples."""
        return Tokens(self.tokens_BT[start:stop], self.gradients_BCKTg[start:stop], self._rows)

    def pull(self, vectors_BCM: Tensor) -> Tensor:
        """Return Jᵀv, (M, V, g)."""
        found = []
        for m in range(vectors_BCM.shape[2]):
            weighed = torch.einsum(
                "bctg,bc->btg", self.gradients_BCKTg[:, :, 0], vectors_BCM[..., m]
            )
            table = weighed.new_zeros(self._rows, weighed.shape[2])
            found.append(table.index_add_(0, self.tokens_BT.flatten(), weighed.flatten(0, 1)))
        return torch.stack(found)

    def push(self, parameters_M: Tensor) -> Tensor:
        """Return Ju for u of the shape that `pull` gives, (B, C, M)."""
        found = [
            torch.einsum("bctg,btg->bc", self.gradients_BCKTg[:, :, 0], table_Vg[self.tokens_BT])
            for table_Vg in parameters_M
        ]
        return torch.stack(found, dim=2)
