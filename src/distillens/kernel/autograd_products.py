"""Products with a kernel by plain autograd, independent of rules, blocks and tiles.

Shapes: R rows, S columns, C combinations of the network's O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillens.forward.device_errors import ran_out_of_memory
from distillens.kernel.tracing.directions import Directions
from distillens.kernel.tracing.gradients import as_parameters, gradients_by, real
from distillens.kernel.tracing.isolated import call_with_weights
from distillens.kernel.tracing.network import Prepared


@dataclass(frozen=True, eq=False)
class Form:
    """The number uᵀKv for a kernel K, or its mean over kernels."""

    value: Tensor
    """A float64 scalar on the device."""
    size: Tensor
    """‖Jᵀu‖‖Jᵀv‖, an upper bound of the absolute value; of the same kind."""
    outputs_RO: Tensor
    """The network's outputs for the rows."""


class AutogradProducts:
    """The kernel as a linear map by autograd: one gradient and one directional derivative.

    A pass through the network takes ``batch`` examples.
    """

    def __init__(self, prepared: Prepared, batch: int = 128) -> None:
        self._network, self._batch = prepared.network, batch
        self._parameters = dict(prepared.parameters)

    def product(
        self, rows: Tensor, columns: Tensor, directions: Directions, vector_SC: Tensor
    ) -> Tensor:
        """Return Σ_jc k((i, c′), (j, c)) v_jc, (R, C)."""
        along = {name: torch.zeros_like(real(each)) for name, each in self._parameters.items()}
        pairs = zip(columns.split(self._batch), vector_SC.split(self._batch), strict=True)
        for part, vector in pairs:
            with torch.enable_grad():
                total = (directions.of(self._network(part)) * vector).sum()
            # The gradients are zero for parameters without any effect.
            gradients = gradients_by(total, list(self._parameters.values()))
            for summed, gradient in zip(along.values(), gradients, strict=True):
                summed += gradient
        parts = rows.split(self._batch)
        try:
            return torch.cat([self._forward(part, directions, along) for part in parts])
        except (RuntimeError, NotImplementedError) as error:
            if ran_out_of_memory(error):
                raise
            # Some operations do not support forward-mode differentiation.
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
        """Return uᵀKv for the kernel of all pairs of C outputs, by a backward pass for u and one for v.

        If v is None it is u, for the same examples. The network's outputs for the rows, with their
        graph, are computed unless they are given.
        """
        if outputs_RO is None:
            outputs_RO = self._with_graph(rows)
        outputs_SO = None if right_SC is None else self._with_graph(columns)
        return self._form(outputs_RO, outputs_SO, directions, left_RC, right_SC)

    def mean_form(
        self, rows: Tensor, columns: Tensor, directions: Directions, u_R: Tensor, v_S: Tensor
    ) -> Form:
        """Return the mean of uᵀKv over the kernels K of C outputs; its size is the mean size."""
        same = torch.equal(rows, columns) and torch.equal(u_R, v_S)
        outputs_RO = self._with_graph(rows)
        outputs_SO = None if same else self._with_graph(columns)
        v_S1 = None if same else v_S[:, None]
        value, size = torch.zeros(2, dtype=torch.float64, device=rows.device)
        for each in directions.each():
            form = self._form(outputs_RO, outputs_SO, each, u_R[:, None], v_S1)
            value += form.value
            size += form.size
        C = len(directions)
        return Form(value / C, size / C, outputs_RO.detach())

    def _form(
        self,
        outputs_RO: Tensor,
        outputs_SO: Tensor | None,
        directions: Directions,
        left_RC: Tensor,
        right_SC: Tensor | None,
    ) -> Form:
        left = self._along(outputs_RO, directions, left_RC)
        square = torch.stack([each.norm() for each in left]).double().square().sum()
        if right_SC is None or outputs_SO is None:
            return Form(square, square, outputs_RO.detach())
        right = self._along(outputs_SO, directions, right_SC)
        value = torch.stack(
            [(a * b).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True)]
        )
        other = torch.stack([each.norm() for each in right]).double().square().sum()
        return Form(value.sum(), (square * other).sqrt(), outputs_RO.detach())

    def _with_graph(self, examples: Tensor) -> Tensor:
        with torch.enable_grad():
            return self._network(examples)

    def _along(self, outputs_BO: Tensor, directions: Directions, vector_BC: Tensor) -> list[Tensor]:
        """Return Jᵀv; the graph is kept for other vectors."""
        with torch.enable_grad():
            total = (directions.of(outputs_BO) * vector_BC).sum()
        return gradients_by(total, list(self._parameters.values()), retain=True)

    def _forward(self, rows: Tensor, directions: Directions, along: dict[str, Tensor]) -> Tensor:
        # Fused attention does not support forward-mode differentiation, plain attention does. torch's
        # encoder layers are fused, too, unless gradients are enabled.
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
