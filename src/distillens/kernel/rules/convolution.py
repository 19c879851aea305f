"""Convolutions in one and two dimensions: strides, dilation, padding, groups.

Padding modes other than zeros come as a padding of their own before the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from distillens.kernel.factors import Factor, Outer, Role
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
        patches_BKTa = _patches(inputs_B, window)
        if several:
            patches_BKTa = patches_BKTa.unflatten(0, (-1, pictures)).transpose(1, 2).flatten(2, 3)
        B, C, channels = gradients_BC.shape[:3]
        gradients_BCKgT = gradients_BC.reshape(B, C, groups, channels // groups, -1)
        return Outer(patches_BKTa, gradients_BCKgT.mT, roles)


def _patches(pictures_BcHW: Tensor, window: Window) -> Tensor:
    """Return what the kernel sees at each position, (B, K, T, a), as a transposed view.

    One strided view holds all patches, so that they are copied once, row by row of the picture.
    """
    pictures_BcHW = functional.pad(pictures_BcHW, window.padding).contiguous()
    B, channels, *sides = pictures_BcHW.shape
    reach = [step * (size - 1) for step, size in zip(window.dilation, window.kernel, strict=True)]
    places = [
        (side - far - 1) // step + 1
        for side, far, step in zip(sides, reach, window.stride, strict=True)
    ]
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


def _axes(value: int | tuple[int, ...], axes: int, front: int) -> tuple[int, int]:
    """Return one number for each of two axes; for one axis a neutral one stands in front."""
    each = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(each) == 1:
        each = each * axes
    first, second = each if axes == 2 else (front, each[0])
    return first, second
