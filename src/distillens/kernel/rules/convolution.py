"""Convolutions in one and two dimensions: strides, dilation, padding, groups.

Padding modes other than zeros come as a padding of their own before the call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from distillens.kernel.factors import Cost, Factor, Outer, Pairing, Role, own
from distillens.kernel.rules.rule import Call, Rule


@dataclass(frozen=True)
class Window:
    """How a kernel moves over its inputs; one number an axis (two axes; the first of 1-d is 1)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    """Left, right, top, bottom, as `torch.nn.functional.pad` takes it."""
    dilation: tuple[int, int]
    groups: int


class Convolution(Rule):
    """conv1d and conv2d; the positions are the pixels of the output."""

    functions = (functional.conv1d, functional.conv2d)
    positional = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

    def read(self, arguments: dict[str, Any]) -> Call | None:
        """Return the call; None for one picture without an axis of examples."""
        weight: Tensor = arguments["weight"]
        if arguments["input"].ndim != weight.ndim:
            return None
        axes = weight.ndim - 2
        kernel = _axes(tuple(weight.shape[2:]), axes, 1)
        dilation = _axes(arguments.get("dilation", 1), axes, 1)
        padding = arguments.get("padding", 0)
        if isinstance(padding, str):
            reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
            total = reach if padding == "same" else [0, 0]
            # As torch does: the odd pixel goes to the end.
            (top, bottom), (left, right) = ((size // 2, size - size // 2) for size in total)
        else:
            top, left = _axes(padding, axes, 0)
            bottom, right = top, left
        window = Window(
            kernel=kernel,
            stride=_axes(arguments.get("stride", 1), axes, 1),
            padding=(left, right, top, bottom),
            dilation=dilation,
            groups=arguments.get("groups", 1),
        )
        parameters: dict[Role, Tensor] = {"weight": weight}
        if arguments.get("bias") is not None:
            parameters["bias"] = arguments["bias"]
        return Call(parameters, arguments["input"], window)

    def factor(
        self, call: Call, inputs_B: Tensor, gradients_BC: Tensor, roles: tuple[Role, ...]
    ) -> Factor:
        """Return the outer products of patches and gradients."""
        window: Window = call.settings
        groups = window.groups
        several = inputs_B.ndim > call.inputs.ndim
        pictures = inputs_B.shape[1] if several else 1
        if several:
            # An example has several pictures: their pixels are positions alike.
            inputs_B, gradients_BC = inputs_B.flatten(0, 1), gradients_BC.transpose(2, 3)
        if inputs_B.ndim == 3:
            inputs_B = inputs_B[:, :, None]
        B, C, channels = gradients_BC.shape[:3]
        gradients_BCKgT = gradients_BC.reshape(B, C, groups, channels // groups, -1)
        if several:
            patches_BKTa = _patches(inputs_B, window)
            patches_BKTa = patches_BKTa.unflatten(0, (-1, pictures)).transpose(1, 2).flatten(2, 3)
            return Outer(patches_BKTa, gradients_BCKgT.mT, roles)
        return Patched(inputs_B, window, gradients_BCKgT.mT, roles)


class Patched(Outer):
    """A convolution of one picture an example; its patches are made when they are asked for."""

    def __init__(
        self,
        pictures_BcHW: Tensor,
        window: Window,
        gradients_BCKTg: Tensor,
        roles: tuple[Role, ...],
    ) -> None:
        self._pictures, self._window = pictures_BcHW, window
        self.gradients_BCKTg, self.roles = gradients_BCKTg, roles

    @cached_property
    def inputs_BKTa(self) -> Tensor:  # type: ignore[override]  # noqa: N802
        """What the kernel sees at each position."""
        return _patches(self._pictures, self._window)

    def numbers(self, role: Role) -> int:
        """Return how many numbers the parameter has."""
        groups, fan_out = self._window.groups, self.gradients_BCKTg.shape[4]
        return groups * fan_out * (self._fan_in if role == "weight" else 1)

    def inputs_cost(self) -> tuple[float, float]:
        """Return the fan-in, and the numbers of an example's patches."""
        return float(self._fan_in), float(self._window.groups * self.positions * self._fan_in)

    def written_cost(self, pairing: Pairing) -> Cost:
        """Return the cost of writing the gradients out, from patches."""
        cost = super().written_cost(pairing)
        patched, rows = cost.example_products, self.outputs * self.gradients_BCKTg.shape[4]
        return replace(cost, example_products=0.0, example_patched=patched, channels=float(rows))

    def convolved_cost(self, pairing: Pairing) -> Cost | None:
        """Return the cost of writing the gradients out by a convolution; no patches are made."""
        # Several outputs share the patches, which then serve one product of many rows.
        if self.outputs > 1 or "weight" not in self.roles:
            return None
        cost = self.written_cost(pairing)
        return replace(cost, example_patched=0.0, example_convolved=cost.example_patched)

    def late_cost(self, pairing: Pairing) -> Cost | None:
        """Return the cost of keeping pictures and gradients; None for groups."""
        if "weight" not in self.roles or self._window.groups > 1:
            return None
        held = self._pictures[0].numel() + self.outputs * self.gradients_BCKTg[0, 0].numel()
        # A product for each output: their rows are not joined, as they are where all is written.
        channels = float(self.gradients_BCKTg.shape[4])
        return replace(self.written_cost(pairing), held=float(held), channels=channels)

    @property
    def unit(self) -> int:
        """The columns of one channel, which are patches of one picture."""
        return math.prod(self._window.kernel)

    @property
    def made(self) -> int:
        """The patches of a channel and the channel with its padding, in columns' worth."""
        left, right, top, bottom = self._window.padding
        high, wide = self._pictures.shape[2:]
        padded = (high + top + bottom) * (wide + left + right)
        # Channels that lie last are put first in a copy of their own.
        copies = 1 if self._pictures.is_contiguous() else 2
        return self.positions + -(-copies * padded // self.unit)

    def unwritten(self, copying: bool) -> Patched:
        """Return the factor with its pictures in place of patches; copied if asked for."""
        pictures = self._pictures.clone() if copying else own(self._pictures)
        return Patched(pictures, self._window, own(self.gradients_BCKTg), self.roles)

    def columns(self, examples: slice, columns: slice) -> Tensor:
        """Return the patches of some channels of some pictures, (B, T, w)."""
        channels = slice(columns.start // self.unit, columns.stop // self.unit)
        return _patches(self._pictures[examples, channels], self._window)[:, 0]

    def convolve(self, role: Role, target_BCp: Tensor) -> None:
        """Write the gradients to a place: a convolution with a group for each example and group."""
        if role == "bias":
            self.write(role, target_BCp)
            return
        window = self._window
        left, right, top, bottom = window.padding
        pictures, padding = self._pictures, (top, left)
        if (left, top) != (right, bottom):
            pictures, padding = functional.pad(pictures, window.padding), (0, 0)
        B, channels = pictures.shape[:2]
        K, g = self.gradients_BCKTg.shape[2], self.gradients_BCKTg.shape[4]
        places = _places(window, self._pictures.shape[2:])
        # Its stubs know of one number for both axes only.
        each_axis: Any = {
            "stride": window.stride,
            "padding": padding,
            "dilation": window.dilation,
        }
        weights = conv2d_weight(
            pictures.reshape(1, B * channels, *pictures.shape[2:]),
            (B * K * g, channels // K, *window.kernel),
            self.gradients_BCKTg.mT.reshape(1, B * K * g, *places),
            groups=B * K,
            **each_axis,
        )
        target_BCp.copy_(weights.view(B, 1, -1))

    @property
    def _fan_in(self) -> int:
        return self._pictures.shape[1] // self._window.groups * math.prod(self._window.kernel)


def _patches(pictures_BcHW: Tensor, window: Window) -> Tensor:
    """Return what the kernel sees at each position, (B, K, T, a), as a transposed view.

    One strided view holds all patches, so that they are copied once, row by row of the picture.
    """
    places = _places(window, pictures_BcHW.shape[2:])
    pictures_BcHW = functional.pad(pictures_BcHW, window.padding).contiguous()
    B, channels = pictures_BcHW.shape[:2]
    example, channel, down, across = pictures_BcHW.stride()
    view = pictures_BcHW.as_strided(
        (B, channels, *window.kernel, *places),
        (
            example,
            channel,
            down * window.dilation[0],
            across * window.dilation[1],
            down * window.stride[0],
            across * window.stride[1],
        ),
    )
    return view.reshape(B, window.groups, -1, places[0] * places[1]).mT


def _places(window: Window, sides: Sequence[int]) -> list[int]:
    """Return how many positions the kernel takes along each axis of a picture."""
    left, right, top, bottom = window.padding
    return [
        (side + around - step * (size - 1) - 1) // stride + 1
        for side, around, step, size, stride in zip(
            sides,
            (top + bottom, left + right),
            window.dilation,
            window.kernel,
            window.stride,
            strict=True,
        )
    ]


def _axes(value: int | tuple[int, ...], axes: int, front: int) -> tuple[int, int]:
    """Return one number for each of two axes; for one axis a neutral one stands in front."""
    each = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(each) == 1:
        each = each * axes
    first, second = each if axes == 2 else (front, each[0])
    return first, second
