"""Products with a kernel by plain autograd, which know nothing of rules, blocks or tiles.

Shapes: R rows, S columns, C combinations of the network's O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillens.kernel.called import call_with_weights
from distillens.kernel.directions import Directions
from distillens.kernel.failures import ran_out_of_memory
from distillens.kernel.gradients import as_parameters, gradients_by, real


@dataclass(frozen=True, eq=False)
class Form:
    """A number uᵀKv."""

    value: Tensor
    """In float64, on the device."""
    size: Tensor
    """‖Jᵀu‖‖Jᵀv‖, which it is at most; the same kind."""
    outputs_RO: Tensor
    """The network's outputs for the rows."""


class PlainProducts:
    """The kernel as a linear map by autograd: one gradient and one directional derivative.

    ``batch`` examples go through the network at a time.
    """

    def __init__(
        self, network: nn.Module, parameters: Mapping[str, Tensor], batch: int = 128
    ) -> None:
        self._network, self._parameters, self._batch = network, dict(parameters), batch

    def product(
        self, rows: Tensor, columns: Tensor, directions: Directions, vector_SC: Tensor
    ) -> Tensor:
        """Return Σ_jc k((i, c′), (j, c)) v_jc, (R, C)."""
        along = {name: torch.zeros_like(real(each)) for name, each in self._parameters.items()}
        pairs = zip(columns.split(self._batch), vector_SC.split(self._batch), strict=True)
        for part, vector in pairs:
            with torch.enable_grad():
                total = (directions.of(self._network(part)) * vector).sum()
            # Zero where no parameter that counts has any effect.
            gradients = gradients_by(total, list(self._parameters.values()))
            for summed, gradient in zip(along.values(), gradients, strict=True):
                summed += gradient
        parts = rows.split(self._batch)
        try:
            return torch.cat([self._forward(part, directions, along) for part in parts])
        except (RuntimeError, NotImplementedError) as error:
            if ran_out_of_memory(error):
                raise
            # Some operations have no forward derivative.
            return torch.cat([self._backward(part, directions, along) for part in parts])

    def form(
        self,
        rows: Tensor,
        columns: Tensor,
        directions: Directions,
        left_RC: Tensor,
        right_SC: Tensor | None,
        outputs_RO: Tensor | None = None,
    ) -> Form:
        """Return uᵀKv of the kernel of all pairs of C outputs.

        One backward pass for u and one for v; v is u, of the same examples, if it is None. The outputs
        for the rows, with their graph, are made unless they are given.
        """
        if outputs_RO is None:
            outputs_RO = self._with_graph(rows)
        left = self._along(outputs_RO, directions, left_RC)
        square = torch.stack([each.norm() for each in left]).double().square().sum()
        if right_SC is None:
            return Form(square, square, outputs_RO.detach())
        right = self._along(self._with_graph(columns), directions, right_SC)
        value = torch.stack(
            [(a * b).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True)]
        )
        other = torch.stack([each.norm() for each in right]).double().square().sum()
        return Form(value.sum(), (square * other).sqrt(), outputs_RO.detach())

    def _with_graph(self, examples: Tensor) -> Tensor:
        with torch.enable_grad():
            return self._network(examples)

    def _along(self, outputs_BO: Tensor, directions: Directions, vector_BC: Tensor) -> list[Tensor]:
        """Return Jᵀv; the graph is kept, for another vector."""
        with torch.enable_grad():
            total = (directions.of(outputs_BO) * vector_BC).sum()
        return gradients_by(total, list(self._parameters.values()), retain=True)

    def mean_form(
        self, rows: Tensor, columns: Tensor, directions: Directions, signs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return uᵀKv for the mean K of C kernels, and the size that it has without cancelling.

        One backward pass for each output, or two where the columns are not the rows. ``signs`` are
        u and v, one behind the other. The size is the mean of ‖Jᵀu‖‖Jᵀv‖.
        """
        weights = list(self._parameters.values())
        u_R, v_S = signs.split([len(rows), len(columns)])
        with torch.enable_grad():
            rows_C = u_R @ directions.of(self._network(rows))
            columns_C = v_S @ directions.of(self._network(columns))
        same = torch.equal(rows, columns) and torch.equal(u_R, v_S)
        value, size = torch.zeros(2, dtype=torch.float64, device=rows.device)
        C = len(directions)
        for c in range(C):
            along = gradients_by(rows_C[c], weights, retain=c + 1 < C)
            other = along if same else gradients_by(columns_C[c], weights, retain=c + 1 < C)
            value += sum((a * b).sum() for a, b in zip(along, other, strict=True))
            norms = [torch.stack([a.norm() for a in each]).norm() for each in (along, other)]
            size += norms[0] * norms[1]
        return value / C, size / C

    def _forward(self, rows: Tensor, directions: Directions, along: dict[str, Tensor]) -> Tensor:
        # Fused attention has no forward derivative, the plain one has. torch's encoder layers run
        # fused too unless a gradient may be asked for.
        tangents = as_parameters(along, self._parameters)
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            weights = {
                name: forward_ad.make_dual(weight, tangents[name])
                for name, weight in self._parameters.items()
            }
            moved = directions.of(call_with_weights(self._network, weights, rows))
            tangent = forward_ad.unpack_dual(moved).tangent
        return torch.zeros_like(moved).detach() if tangent is None else tangent.detach()

    def _backward(self, rows: Tensor, directions: Directions, along: dict[str, Tensor]) -> Tensor:
        weights = list(self._parameters.values())
        found = torch.zeros(
            len(rows), len(directions), dtype=directions.dtype, device=directions.device
        )
        for i, row in enumerate(rows):
            with torch.enable_grad():
                outputs_C = directions.of(self._network(row[None]))[0]
            for c, output in enumerate(outputs_C):
                gradients = gradients_by(output, weights, retain=True)
                for gradient, name in zip(gradients, self._parameters, strict=True):
                    found[i, c] += (gradient * along[name]).sum()
        return found
