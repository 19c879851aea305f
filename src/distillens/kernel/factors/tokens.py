"""Gradients by an embedding's table: tokens take the place of inputs, without one-hot vectors.

The gradient is zero except for the rows that an example looks up, so
k(x, x′) = Σ_tt′ [token_t = token′_t′] (g_t·g′_t′).

Shapes: B, D examples of two blocks, C outputs, T positions, V tokens of the table, g numbers of a
row, U distinct tokens, M columns.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from distillens.kernel.factors.cost import Cost, Work
from distillens.kernel.factors.factor import Pairing, Role, output_pairs
from distillens.kernel.factors.factored import Factored

_PASSES = 64.0
"""Multiply-adds that take about as long as the elementwise passes over one product of positions."""
_NUMBERS = 2**23
"""Numbers of gathered rows that exist at a time for one block."""


class TokenGradients(Factored):
    """Tokens (B, T) and gradients by the rows that they look up, (B, C, 1, T, g)."""

    roles: tuple[Role, ...] = ("weight",)

    def __init__(self, tokens_BT: Tensor, gradients_BCKTg: Tensor, rows: int) -> None:
        self.tokens_BT, self.gradients_BCKTg, self._rows = tokens_BT, gradients_BCKTg, rows

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tokens and the gradients."""
        return self.tokens_BT, self.gradients_BCKTg

    def with_tensors(self, *tensors: Tensor) -> TokenGradients:
        """Return the factor of other tokens and gradients."""
        tokens_BT, gradients_BCKTg = tensors
        return TokenGradients(tokens_BT, gradients_BCKTg, self._rows)

    def numbers(self, role: Role) -> int:
        """Return how many numbers the table has."""
        return self._rows * self.gradients_BCKTg.shape[4]

    def gradient(self, role: Role) -> Tensor:
        """Return the gradients by the table, (B, C, V·g)."""
        target = self.gradients_BCKTg.new_empty(*self.gradients_BCKTg.shape[:2], self.numbers(role))
        self.write(role, target)
        return target

    def write(self, role: Role, target_BCp: Tensor) -> None:
        """Write the gradients by the table to a tensor."""
        self.add(role, target_BCp.zero_())

    def add(self, role: Role, target_BCp: Tensor) -> None:
        """Add the gradients by the table to a tensor."""
        C, g = self.outputs, self.gradients_BCKTg.shape[4]
        columns = torch.arange(g, device=self.tokens_BT.device)
        places_BTg = self.tokens_BT[:, :, None] * g + columns
        for c in range(C):
            gradients_BTg = self.gradients_BCKTg[:, c, 0]
            target_BCp[:, c].scatter_add_(1, places_BTg.flatten(1), gradients_BTg.flatten(1))

    def materialised_cost(self, pairing: Pairing) -> Cost:
        """Return the cost of materialising the table's gradients, with all their zeros."""
        cost = super().materialised_cost(pairing)
        # A row is added at each position; the zeros are written once.
        return replace(cost, forming=Work(self.outputs * float(self.numbers("weight"))))

    def factored_cost(self, pairing: Pairing) -> Cost:
        """Return the cost of the cheaper of the two methods of `pairs`."""
        cost = super().factored_cost(pairing)
        if self._rows <= self.positions:
            return cost  # Gradients by so small a table take less room and time if materialised.
        # Gathering is never slower than materialising, and holds T rows in place of V.
        gathered = min(float(self._rows), self._break_even(self)) * self.gradients_BCKTg.shape[4]
        return Cost(output_pairs(self.outputs, pairing) * gathered, 0.0, Work(0.0), cost.held)

    def inputs_product(self, other: Factored) -> Tensor:
        """Return 1 where the tokens are equal, else 0, (1, B·T, D·T′)."""
        assert isinstance(other, TokenGradients)
        equal = self.tokens_BT.reshape(-1, 1) == other.tokens_BT.reshape(1, -1)
        return equal.to(self.gradients_BCKTg.dtype)[None]

    def inputs_cost(self) -> tuple[float, float]:
        """Return the cost of one comparison, and the numbers of an example's tokens."""
        return 1.0, float(self.tokens_BT.shape[1])

    def pairs(self, other: Factored, pairing: Pairing) -> Tensor:
        """Contract with another block: (C, B, D) for "diagonal", (B, C, D, C) for "full".

        If the blocks have few tokens in common, the rows of these tokens are gathered and contracted
        as vectors. If they have many, pairs of positions are compared.
        """
        assert isinstance(other, TokenGradients)
        mine, its = self.tokens_BT.unique(), other.tokens_BT.unique()
        common_U = mine[torch.isin(mine, its)]
        if len(common_U) > self._break_even(other):
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

    def _break_even(self, other: Factored) -> float:
        """Return for how many common tokens gathering costs as much as comparing positions."""
        passes = 1 + _PASSES / self.gradients_BCKTg.shape[4]
        return self.positions * other.positions * passes

    def _gathered(self, tokens_U: Tensor) -> Tensor:
        """Return the gradients by the rows of some tokens, in ascending order, (B, C, U·g)."""
        B, C, _, _, g = self.gradients_BCKTg.shape
        U = len(tokens_U)
        number_BT = torch.searchsorted(tokens_U, self.tokens_BT).clamp_(max=U - 1)
        example, position = (tokens_U[number_BT] == self.tokens_BT).nonzero(as_tuple=True)
        rows = self.gradients_BCKTg.new_zeros(B * U, C, g)
        places = example * U + number_BT[example, position]
        rows.index_add_(0, places, self.gradients_BCKTg[example, :, 0, position])
        return rows.view(B, U, C, g).transpose(1, 2).flatten(2)

    def pull(self, vectors_BCM: Tensor) -> Tensor:
        """Return Jᵀv, (M, V, g)."""
        found = []
        for vectors_BC in vectors_BCM.unbind(2):
            weighed = torch.einsum("bctg,bc->btg", self.gradients_BCKTg[:, :, 0], vectors_BC)
            table = weighed.new_zeros(self._rows, weighed.shape[2])
            found.append(table.index_add_(0, self.tokens_BT.flatten(), weighed.flatten(0, 1)))
        return torch.stack(found)

    def push(self, parameters_M: Tensor) -> Tensor:
        """Return Ju for u in the shape of `pull`, (B, C, M)."""
        found = [
            torch.einsum("bctg,btg->bc", self.gradients_BCKTg[:, :, 0], table_Vg[self.tokens_BT])
            for table_Vg in parameters_M
        ]
        return torch.stack(found, dim=2)
