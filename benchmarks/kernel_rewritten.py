"""The benchmark's transformer in layers that nngeometry knows: the same function and kernel.

nngeometry has no rule for attention, for a Linear over positions or for a LayerNorm over them. As
1×1 convolutions over positions, and as a scale and shift by channel (BatchNorm on what is already
normalised), it can be measured all the same.

Shapes: N examples, D channels, H heads; the positions are laid out as a square of side S, since
with a side of 1 torch 2.13 gives wrong gradients for BatchNorm of a transposed input.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from kernel_cases import HEADS, WIDTH, Encoder
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu, scaled_dot_product_attention


class _Contiguous(torch.autograd.Function):
    """The identity, whose gradient is contiguous: nngeometry's rule for convolutions views it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient.contiguous()


class Pointwise(nn.Module):
    """A linear layer over positions, (N, D, S, S) to (N, D′, S, S)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        self.conv.weight.data = weight.detach()[:, :, None, None]
        self.conv.bias = nn.Parameter(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return _identity(self.conv(x.contiguous()))


class Norm(nn.Module):
    """LayerNorm over channels, (N, D, S, S) to the same."""

    def __init__(self, like: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = like.eps
        self.scale = nn.BatchNorm2d(like.normalized_shape[0])
        self.scale.weight.data = like.weight.detach()
        self.scale.bias.data = like.bias.detach()
        # So that the division by sqrt(variance + eps), whose eps nngeometry sets itself, does nothing.
        assert self.scale.running_var is not None
        self.scale.running_var.fill_(1 - 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        normalised = layer_norm(x.movedim(1, -1), x.shape[1:2], eps=self.eps)
        return self.scale(normalised.movedim(-1, 1).contiguous())


class Layer(nn.Module):
    """One encoder layer, post-norm as PyTorch's default is."""

    def __init__(self, like: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        attention = like.self_attn
        assert attention.in_proj_weight is not None
        assert attention.in_proj_bias is not None
        self.into = Pointwise(attention.in_proj_weight, attention.in_proj_bias)
        self.out = Pointwise(attention.out_proj.weight, attention.out_proj.bias)
        self.up = Pointwise(like.linear1.weight, like.linear1.bias)
        self.down = Pointwise(like.linear2.weight, like.linear2.bias)
        self.norm1, self.norm2 = Norm(like.norm1), Norm(like.norm2)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.into(x).flatten(2).unflatten(1, (3, HEADS, WIDTH // HEADS)).unbind(1)
        query, key, value = (part.transpose(2, 3) for part in parts)  # (N, H, S·S, D/H)
        heads = scaled_dot_product_attention(query, key, value)
        x = self.norm1(x + self.out(heads.transpose(2, 3).reshape(x.shape)))
        return self.norm2(x + self.down(relu(self.up(x))))


class RewrittenEncoder(nn.Module):
    """The encoder, with the weights of the one given."""

    def __init__(self, like: Encoder) -> None:
        super().__init__()
        layers: list[Any] = list(like.encoder.layers)
        self.layers = nn.Sequential(*(Layer(layer) for layer in layers))
        self.head = nn.Linear(WIDTH, like.head.out_features)
        self.head.load_state_dict(like.head.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        return self.head(self.layers(x.mT.unflatten(2, (side, side))).mean((2, 3)))


def _identity(x: Tensor) -> Tensor:
    y = _Contiguous.apply(x)
    assert isinstance(y, Tensor)
    return y


def rewritten(model: nn.Module) -> nn.Module:
    """Return what nngeometry can take: the model itself unless it is the transformer."""
    return RewrittenEncoder(model).eval() if isinstance(model, Encoder) else model
