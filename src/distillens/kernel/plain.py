"""Products with a kernel by plain autograd, which know nothing of rules, blocks or tiles.

Shapes: R rows, S columns, C combinations of the network's O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillens.kernel.failures import ran_out_of_memory


class PlainProducts:
    """The kernel as a linear map by autograd: one gradient and one directional derivative.

    ``batch`` examples go through the network at a time.
    """

    def __init__(
        self, network: nn.Module, parameters: Mapping[str, Tensor], batch: int = 128
    ) -> None:
        self._network, self._parameters, self._batch = network, dict(parameters), batch

    def product(
        self, rows: Tensor, columns: Tensor, directions_CO: Tensor, vector_SC: Tensor
    ) -> Tensor:
        """Return Σ_jc k((i, c′), (j, c)) v_jc, (R, C)."""
        along = {name: torch.zeros_like(weight) for name, weight in self._parameters.items()}
        pairs = zip(columns.split(self._batch), vector_SC.split(self._batch), strict=True)
        for part, vector in pairs:
            with torch.enable_grad():
                total = ((self._network(part) @ directions_CO.T) * vector).sum()
            if not total.requires_grad:
                continue  # no parameter that counts has any effect
            gradients = torch.autograd.grad(
                total, list(self._parameters.values()), allow_unused=True, materialize_grads=True
            )
            for summed, gradient in zip(along.values(), gradients, strict=True):
                summed += gradient
        parts = rows.split(self._batch)
        try:
            return torch.cat([self._forward(part, directions_CO, along) for part in parts])
        except (RuntimeError, NotImplementedError) as error:
            if ran_out_of_memory(error):
                raise
            # Some operations have no forward derivative.
            return torch.cat([self._backward(part, directions_CO, along) for part in parts])

    def _forward(self, rows: Tensor, directions_CO: Tensor, along: dict[str, Tensor]) -> Tensor:
        # Fused attention has no forward derivative, the plain one has. torch's encoder layers run
        # fused too unless a gradient may be asked for.
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            weights = {
                name: forward_ad.make_dual(weight, along[name])
                for name, weight in self._parameters.items()
            }
            moved = functional_call(self._network, weights, (rows,)) @ directions_CO.T
            tangent = forward_ad.unpack_dual(moved).tangent
        return torch.zeros_like(moved).detach() if tangent is None else tangent.detach()

    def _backward(self, rows: Tensor, directions_CO: Tensor, along: dict[str, Tensor]) -> Tensor:
        weights = list(self._parameters.values())
        found = torch.zeros(len(rows), len(directions_CO)).to(directions_CO)
        for i, row in enumerate(rows):
            with torch.enable_grad():
                outputs_C = directions_CO @ self._network(row[None])[0]
            for c, output in enumerate(outputs_C):
                gradients = torch.autograd.grad(
                    output, weights, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for gradient, name in zip(gradients, self._parameters, strict=True):
                    found[i, c] += (gradient * along[name]).sum()
        return found
