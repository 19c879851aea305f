"""Sums of outer products of inputs and gradients: linear maps and convolutions.

Shapes: B, D examples of two blocks, C outputs, K groups, T positions, a fan-in, g fan-out (both of
a group), M columns, w columns of the weight.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from distillens.kernel.factors.cost import Cost
from distillens.kernel.factors.factor import Pairing, Role
from distillens.kernel.factors.factored import Factored, compact


class OuterProducts(Factored):
    """Inputs (B, K, T, a) and gradients by the layer's outputs (B, C, K, T, g).

    The weight has the order (K·g, a). The gradients can be streamed: a subclass may hold something
    smaller than the inputs, and make `input_columns` of it.
    """

    def __init__(
        self, inputs_BKTa: Tensor, gradients_BCKTg: Tensor, roles: tuple[Role, ...]
    ) -> None:
        self.inputs_BKTa, self.gradients_BCKTg, self.roles = inputs_BKTa, gradients_BCKTg, roles

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs and the gradients."""
        return self.inputs_BKTa, self.gradients_BCKTg

    def with_tensors(self, *tensors: Tensor) -> OuterProducts:
        """Return the factor of other inputs and gradients."""
        inputs_BKTa, gradients_BCKTg = tensors
        return OuterProducts(inputs_BKTa, gradients_BCKTg, self.roles)

    def numbers(self, role: Role) -> int:
        """Return how many numbers a parameter has."""
        groups, _, fan_in = self.inputs_BKTa.shape[1:]
        fan_out = self.gradients_BCKTg.shape[4]
        return groups * fan_out * (fan_in if role == "weight" else 1)

    def gradient(self, role: Role) -> Tensor:
        """Return the gradients by a parameter, (B, C, p)."""
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
        """Write the gradients to a tensor, without a copy if they are a single product."""
        _, C, K, T, g = self.gradients_BCKTg.shape
        if role == "bias" or C * K > 1 or T == 1:
            super().write(role, target_BCp)
            return
        rows = self.gradients_BCKTg[:, 0, 0].mT
        torch.bmm(rows, self.inputs_BKTa[:, 0], out=target_BCp[:, 0].unflatten(1, (g, -1)))

    def streamed_cost(self, pairing: Pairing) -> Cost | None:
        """Return the cost of keeping factors; None for several groups, and for one position."""
        if "weight" not in self.roles or self.positions == 1 or self.inputs_BKTa.shape[1] > 1:
            return None
        return replace(self.materialised_cost(pairing), held=self.factored_cost(pairing).held)

    @property
    def column_unit(self) -> int:
        """How many neighbouring columns of the weight are made together."""
        return 1

    @property
    def column_scratch(self) -> int:
        """Numbers that making a column of an example's inputs takes; 0 if columns are views."""
        return 0

    def for_streaming(self, copy_inputs: bool) -> OuterProducts:
        """Return what has to be kept to stream the gradients; see `compacted`."""
        return self.compacted(copy_inputs)

    def input_columns(self, examples: slice, columns: slice) -> Tensor:
        """Return some columns of the inputs of some examples, (B, T, w), for a single group."""
        return self.inputs_BKTa[examples, 0, :, columns]

    def inputs_product(self, other: Factored) -> Tensor:
        """Return a·a′, plus 1 with a bias, (K, B·T, D·U)."""
        assert isinstance(other, OuterProducts)
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

    def compacted(self, copy_inputs: bool) -> OuterProducts:
        """Return the factor without the larger tensors that its tensors are views of."""
        inputs = self.inputs_BKTa.clone() if copy_inputs else compact(self.inputs_BKTa)
        return OuterProducts(inputs, compact(self.gradients_BCKTg), self.roles)

    def squares(self) -> Tensor:
        """Return the product of each example's gradients with themselves, (B, C)."""
        if self.positions == 1 and self.inputs_BKTa.shape[1] == 1:
            size = torch.zeros_like(self.inputs_BKTa[:, 0, 0, :1])
            if "weight" in self.roles:
                size = self.inputs_BKTa.square().sum(dim=(1, 2, 3))[:, None]
            return (size + self.bias) * self.gradients_BCKTg.square().sum(dim=(2, 3, 4))
        # Materialised gradients take no more room than the factors, or than one example's gradients.
        largest = max(self.numbers(role) for role in self.roles)
        step = max(1, sum(each.numel() for each in self.tensors) // (2 * largest))
        found = self.gradients_BCKTg.new_zeros(self.gradients_BCKTg.shape[:2])
        for start in range(0, len(found), step):
            inputs, gradients = (each[start : start + step] for each in self.tensors)
            for c in range(self.outputs):
                one = OuterProducts(inputs, gradients[:, c : c + 1], self.roles)
                for role in self.roles:
                    found[start : start + step, c] += one.gradient(role).square().sum(dim=2)[:, 0]
        return found

    def pull(self, vectors_BCM: Tensor) -> Tensor:
        """Return Jᵀv, (M, K, g, a + 1); the last column belongs to the bias."""
        inputs_KBTa = self._inputs_with_ones()
        found = []
        for vectors_BC in vectors_BCM.unbind(2):
            weighted = torch.einsum("bcktg,bc->kbtg", self.gradients_BCKTg, vectors_BC)
            found.append(torch.matmul(weighted.flatten(1, 2).mT, inputs_KBTa))
        return torch.stack(found)

    def push(self, parameters_M: Tensor) -> Tensor:
        """Return Ju for u in the shape of `pull`, (B, C, M)."""
        B, _, K, T, g = self.gradients_BCKTg.shape
        inputs_KBTa = self._inputs_with_ones()
        found = []
        for parameters_Kga in parameters_M:
            moved = torch.matmul(inputs_KBTa, parameters_Kga.mT).view(K, B, T, g)
            found.append(torch.einsum("bcktg,kbtg->bc", self.gradients_BCKTg, moved))
        return torch.stack(found, dim=2)

    def _inputs_with_ones(self) -> Tensor:
        """Return the inputs with a column of ones for the bias, (K, B·T, a + 1)."""
        inputs = self.inputs_BKTa if "weight" in self.roles else self.inputs_BKTa[..., :0]
        if self.bias:
            inputs = functional.pad(inputs, (0, 1), value=1.0)
        return inputs.transpose(0, 1).flatten(1, 2)
