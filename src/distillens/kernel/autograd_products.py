"""Products with a kernel by plain autograd, independent of rules, blocks and tiles.

Shapes: R rows, S columns, C combinations of the network's O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillens.forward.device_errors import ran_out_of_memory
from distillens.kernel.tracing.directions import Directions
from distillens.kernel.tracing.gradients import as_parameters, gradients_by, real
from distillens.kernel.tracing.network import Prepared


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

    def forms(
        self,
        rows: Tensor,
        columns: Tensor,
        each: Iterable[Directions],
        left_RC: Tensor,
        right_SC: Tensor | None,
        outputs_RO: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return uᵀKv for the kernels of all pairs of some outputs, by a backward pass for u and for v.

        Parameters
        ----------
        rows, columns
            The examples.
        each
            The outputs of each kernel.
        left_RC, right_SC
            u and v, of which each kernel takes as many columns as it has outputs. If v is None it is u,
            for the same examples.
        outputs_RO
            The network's outputs for the rows, with their graph; by default they are computed.

        Returns
        -------
        tuple
            uᵀKv of each kernel; ‖Jᵀu‖‖Jᵀv‖ of each, an upper bound of the absolute value; and the
            network's outputs for the rows. The first two are in float64, on the device.
        """
        with torch.enable_grad():
            made_RO: Tensor = self._network(rows) if outputs_RO is None else outputs_RO
            outputs_SO = None if right_SC is None else self._network(columns)
        values, sizes = [], []
        for some in each:
            left = self._along(made_RO, some, left_RC)
            value = size = torch.stack([part.norm() for part in left]).double().square().sum()
            if right_SC is not None and outputs_SO is not None:
                right = self._along(outputs_SO, some, right_SC)
                products = [
                    (a * b).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True)
                ]
                value = torch.stack(products).sum()
                other = torch.stack([part.norm() for part in right]).double().square().sum()
                size = (size * other).sqrt()
            values.append(value)
            sizes.append(size)
        return torch.stack(values), torch.stack(sizes), made_RO.detach()

    def _along(self, outputs_BO: Tensor, directions: Directions, vector_BC: Tensor) -> list[Tensor]:
        """Return Jᵀv; the graph is kept for other vectors."""
        with torch.enable_grad():
            total = (directions.of(outputs_BO) * vector_BC[:, : len(directions)]).sum()
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
            moved = directions.of(self._network.with_weights(weights, rows))
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
