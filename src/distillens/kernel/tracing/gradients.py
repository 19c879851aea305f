"""Gradients by real parameters; a complex parameter counts as two real ones.

k(x, x′) is the product of the gradients by everything that training changes, so real and imaginary
parts are separate parameters. Autograd's gradient of a real output by z = a + ib is ∂f/∂a + i ∂f/∂b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def real(tensor: Tensor) -> Tensor:
    """Return a real tensor; a complex one has its real and imaginary parts along a last axis."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_numbers(parameter: Tensor) -> int:
    """Return how many real numbers a parameter has."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def as_parameters(
    reals: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return tensors as `real` returns them, converted back to the types of the named parameters."""
    return {
        name: torch.view_as_complex(each) if parameters[name].is_complex() else each
        for name, each in reals.items()
    }


def gradients_by(
    total: Tensor, parameters: Sequence[Tensor], *, retain: bool = False
) -> list[Tensor]:
    """Return the gradients of a number by parameters as real, dense tensors.

    They are zero for parameters that the number does not depend on.
    """
    if not total.requires_grad:
        return [torch.zeros_like(real(each)) for each in parameters]
    found = torch.autograd.grad(
        total, parameters, retain_graph=retain, allow_unused=True, materialize_grads=True
    )
    return [real(each.to_dense() if each.is_sparse else each) for each in found]
