"""A Gram is checked against products that know nothing of rules, blocks or tiles.

For some rows and columns of the Gram, Kv is computed by plain autograd: the gradient of a random
combination of the columns' outputs, and how the rows' outputs move along it.

Shapes: R rows, S columns, C combinations of the network's O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from distillens.errors import KernelError
from distillens.kernel.network import Outputs

_EXAMPLES = 8
_CLASSES = 2
"""Blocks of a class-diagonal Gram that are looked at."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class GramCheck:
    """How far a Gram's products were from those of plain autograd."""

    rows: int
    """Examples along each side of the part that was looked at."""
    residual: float
    """‖Kv − K̂v‖/‖Kv‖, of the worst product."""


class PlainProducts:
    """Products with the kernel by autograd: one gradient and one directional derivative."""

    def __init__(self, network: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self._network, self._parameters = network, dict(parameters)

    def product(
        self, rows: Tensor, columns: Tensor, directions_CO: Tensor, vector_SC: Tensor
    ) -> Tensor:
        """Return Σ_jc k((i, c′), (j, c)) v_jc, (R, C)."""
        with torch.enable_grad():
            total = ((self._network(columns) @ directions_CO.T) * vector_SC).sum()
        gradients = torch.autograd.grad(
            total, list(self._parameters.values()), allow_unused=True, materialize_grads=True
        )
        along = dict(zip(self._parameters, gradients, strict=True))
        try:
            return self._forward(rows, directions_CO, along)
        except (RuntimeError, NotImplementedError):
            # Some operations, such as fused attention, have no forward derivative.
            return self._backward(rows, directions_CO, along)

    def _forward(self, rows: Tensor, directions_CO: Tensor, along: dict[str, Tensor]) -> Tensor:
        def outputs(weights: dict[str, Tensor]) -> Tensor:
            return functional_call(self._network, weights, (rows,)) @ directions_CO.T

        weights = {name: weight.detach() for name, weight in self._parameters.items()}
        moved = jvp(outputs, (weights,), (along,))[1]
        assert isinstance(moved, Tensor)
        return moved.detach()

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


def check_gram(
    products: PlainProducts,
    directions_CO: Tensor,
    outputs: Outputs,
    values: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> GramCheck:
    """Compare a Gram with products by autograd on some of its rows and columns.

    Raises
    ------
    KernelError
        They differ by more than rounding, or the Gram is not finite.
    """
    if not all(bool(torch.isfinite(part).all()) for part in values.split(1024, dim=-2)):
        raise KernelError(
            "the Gram is not finite although weights and inputs are; "
            "look for an operation without a derivative, such as sqrt at 0"
        )
    generator = torch.Generator().manual_seed(0)
    R, S = (torch.randperm(len(e), generator=generator)[:_EXAMPLES] for e in (rows, columns))
    C = len(directions_CO)
    signs_SC = 2.0 * torch.randint(2, (len(S), C), generator=generator) - 1
    signs_SC = signs_SC.to(values)
    R, S = R.to(values.device), S.to(values.device)
    worst = 0.0

    def compare(found: Tensor, wanted: Tensor) -> None:
        nonlocal worst
        size = float(wanted.norm())
        off = float((found - wanted).norm())
        worst = max(worst, off / size if size else off)

    if outputs == "full":
        blocks = values.view(len(rows), C, len(columns), C)[R][:, :, S]
        wanted = products.product(rows[R], columns[S], directions_CO, signs_SC)
        compare(torch.einsum("rcsd,sd->rc", blocks, signs_SC), wanted)
    elif outputs == "trace":
        # Each logit's kernel on its own, since their mean is no single product.
        each = [
            products.product(rows[R], columns[S], direction[None], signs_SC[:, :1])
            for direction in directions_CO
        ]
        compare(values[R][:, S] @ signs_SC[:, :1], torch.stack(each).mean(dim=0))
    else:
        grams = values if outputs == "class-diagonal" else values[None]
        for c in torch.randperm(C, generator=generator)[:_CLASSES].tolist():
            direction = directions_CO[c][None]
            wanted = products.product(rows[R], columns[S], direction, signs_SC[:, :1])
            compare(grams[c][R][:, S] @ signs_SC[:, :1], wanted)
    tolerance = _TOLERANCE[values.dtype]
    if not worst <= tolerance:
        raise KernelError(
            f"the Gram failed its check: a product differs from plain autograd's by {worst:.2g} "
            f"of its size where {tolerance:g} is allowed; an output may depend on chance or on "
            "other examples; compare with distillens.kernel.oracle_gram"
        )
    return GramCheck(rows=len(R), residual=worst)
