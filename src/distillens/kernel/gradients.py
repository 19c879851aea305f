"""Gradients by parameters as real numbers: a complex parameter is two real ones.

k(x, x′) is the product of gradients by everything that training moves, so real and imaginary parts
are parameters of their own. Of a real output, autograd's gradient by z = a + ib is ∂f/∂a + i ∂f/∂b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def real(tensor: Tensor) -> Tensor:
    """Return a tensor, or real and imaginary parts along a last axis of two."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_numbers(parameter: Tensor) -> int:
    """Return how many real numbers a parameter has."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def as_parameters(
    reals: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return real tensors, as `real` gives them, in the kinds of the parameters of these names."""
    return {
        name: torch.view_as_complex(each) if parameters[name].is_complex() else each
        for name, each in reals.items()
    }


def gradients_by(
    total: Tensor, parameters: Sequence[Tensor], *, retain: bool = False
) -> list[Tensor]:
    """Return the gradients of a number by parameters, real, dense, zero where it is independent."""
    if not total.requires_grad:
        return [torch.zeros_like(real(each)) for each in parameters]
    found = torch.autograd.grad(
        total, parameters, retain_graph=retain, allow_unused=True, materialize_grads=True
    )
    return [real(each.to_dense() if each.is_sparse else each) for each in found]
