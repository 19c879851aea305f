"""Convolutions in one and two dimensions: strides, dilation, padding, groups.

torch applies padding modes other than zeros in an operation of their own before the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from distillens.kernel.factors.cost import Cost, Operation, Work
from distillens.kernel.factors.factor import Factor, Pairing, Role
from distillens.kernel.factors.factored import compact
from distillens.kernel.factors.outer_products import OuterProducts
from distillens.kernel.rules.rule import Call, Rule, weight_and_bias

_NARROW, _WIDE = 16, 128
"""Output channels of a group at which the speeds of forming gradients are measured; for other numbers
of channels they are interpolated."""


@dataclass(frozen=True)
class Window:
    """How a kernel moves over its inputs: one number per axis, of which 1-d convolutions have two, the
    first of size 1."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    """Left, right, top, bottom, as `torch.nn.functional.pad` takes it."""
    dilation: tuple[int, int]
    groups: int


def _work(multiply_adds: float, operation: str, channels: float) -> Work:
    """Return work at a speed between those for few and for many output channels."""
    wide = min(max((channels - _NARROW) / (_WIDE - _NARROW), 0.0), 1.0)
    return Work(multiply_adds, ((f"thinly_{operation}", 1.0 - wide), (operation, wide)))


def _benchmark(
    channels: int, direct: bool, dtype: torch.dtype, device: str
) -> tuple[float, Callable[[], object]]:
    """Return the multiply-adds of forming the gradients by a convolution, and what does it."""
    into, side, size = (48, 14, 5) if channels == _WIDE else (16, 34, 3)
    window = Window((size, size), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    # With few examples all would stay in the caches.
    images = torch.ones(32, into, side, side, dtype=dtype, device=device)
    positions = (side - size + 1) ** 2
    gradients = torch.ones(32, 1, 1, channels, positions, dtype=dtype, device=device).mT
    target = torch.empty(32, 1, channels * into * size**2, dtype=dtype, device=device)

    def work() -> None:
        # A new factor each time, since it keeps its patches.
        factor = ConvolutionGradients(images, window, gradients, ("weight",))
        (factor.write_directly if direct else factor.write)("weight", target)

    return float(target.numel() * positions), work


OPERATIONS = tuple(
    Operation(
        name,
        typical,
        partial(_benchmark, _NARROW if "thinly" in name else _WIDE, "convolved" in name),
    )
    for name, typical in {
        "patched": {"cpu": 1e10, "cuda": 4e12},
        "thinly_patched": {"cpu": 6e9, "cuda": 2e12},
        "convolved": {"cpu": 8e9, "cuda": 5e11},
        "thinly_convolved": {"cpu": 1e10, "cuda": 5e11},
    }.items()
)
"""Typical speeds were measured on a CPU; the numbers for GPUs are estimates from data sheets."""


class Convolution(Rule):
    """conv1d and conv2d; the pixels of the output are the positions."""

    functions = (functional.conv1d, functional.conv2d)
    positional = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    operations = OPERATIONS

    def read(self, arguments: dict[str, Any]) -> Call | None:
        """Return the call; None for a single image without a batch axis."""
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
            # Like torch, put the odd pixel at the end.
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
        return Call(weight_and_bias(arguments), arguments["input"], window)

    def factor(
        self, call: Call, inputs_B: Tensor, gradients_BC: Tensor, roles: tuple[Role, ...]
    ) -> Factor:
        """Return the outer products of patches and gradients."""
        window: Window = call.settings
        groups = window.groups
        several = inputs_B.ndim > call.inputs.ndim
        images = inputs_B.shape[1] if several else 1
        if several:
            # An example has several images: the pixels of all of them are positions.
            inputs_B, gradients_BC = inputs_B.flatten(0, 1), gradients_BC.transpose(2, 3)
        if inputs_B.ndim == 3:
            inputs_B = inputs_B[:, :, None]
        B, C, channels = gradients_BC.shape[:3]
        gradients_BCKgT = gradients_BC.reshape(B, C, groups, channels // groups, -1)
        if several:
            patches_BKTa = _patches(inputs_B, window)
            patches_BKTa = patches_BKTa.unflatten(0, (-1, images)).transpose(1, 2).flatten(2, 3)
            return OuterProducts(patches_BKTa, gradients_BCKgT.mT, roles)
        return ConvolutionGradients(inputs_B, window, gradients_BCKgT.mT, roles)


class ConvolutionGradients(OuterProducts):
    """A convolution of one image per example, whose patches are made when they are needed.

    The gradients by the weight are formed by products of patches, or directly by one convolution that
    has a group for each example, makes no patches and is faster for few channels.
    """

    def __init__(
        self,
        images_BcHW: Tensor,
        window: Window,
        gradients_BCKTg: Tensor,
        roles: tuple[Role, ...],
    ) -> None:
        self._images, self._window = images_BcHW, window
        self.gradients_BCKTg, self.roles = gradients_BCKTg, roles

    @cached_property
    def inputs_BKTa(self) -> Tensor:  # type: ignore[override]  # noqa: N802
        """The patch at each position."""
        return _patches(self._images, self._window)

    def numbers(self, role: Role) -> int:
        """Return how many numbers the parameter has."""
        groups, fan_out = self._window.groups, self.gradients_BCKTg.shape[4]
        return groups * fan_out * (self._fan_in if role == "weight" else 1)

    def inputs_cost(self) -> tuple[float, float]:
        """Return the fan-in, and the numbers of an example's patches."""
        return float(self._fan_in), float(self._window.groups * self.positions * self._fan_in)

    def materialised_cost(self, pairing: Pairing) -> Cost:
        """Return the cost of materialising the gradients by products of patches."""
        cost = super().materialised_cost(pairing)
        # All outputs share the patches, which serve one product of many rows.
        rows = self.outputs * self.gradients_BCKTg.shape[4]
        return replace(cost, forming=_work(cost.forming.multiply_adds, "patched", rows))

    def direct_cost(self, pairing: Pairing) -> Cost | None:
        """Return the cost of materialising the gradients by a convolution; None for several outputs."""
        if self.outputs > 1 or "weight" not in self.roles:
            return None
        cost = super().materialised_cost(pairing)
        rows = self.gradients_BCKTg.shape[4]
        return replace(cost, forming=_work(cost.forming.multiply_adds, "convolved", rows))

    def streamed_cost(self, pairing: Pairing) -> Cost | None:
        """Return the cost of keeping images and gradients; None for several groups."""
        if "weight" not in self.roles or self._window.groups > 1:
            return None
        cost = super().materialised_cost(pairing)
        held = self._images[0].numel() + self.outputs * self.gradients_BCKTg[0, 0].numel()
        # There is one product for each output; their rows are not joined.
        work = _work(cost.forming.multiply_adds, "patched", self.gradients_BCKTg.shape[4])
        return replace(cost, forming=work, held=float(held))

    @property
    def column_unit(self) -> int:
        """The columns of one channel."""
        return math.prod(self._window.kernel)

    @property
    def column_scratch(self) -> int:
        """Numbers of a channel's patches and of the padded channel, divided by its columns."""
        left, right, top, bottom = self._window.padding
        high, wide = self._images.shape[2:]
        padded = (high + top + bottom) * (wide + left + right)
        # Images in the channels-last format are copied.
        copies = 1 if self._images.is_contiguous() else 2
        return self.positions + -(-copies * padded // self.column_unit)

    def for_streaming(self, copy_inputs: bool) -> ConvolutionGradients:
        """Return the factor with its images in place of patches."""
        images = self._images.clone() if copy_inputs else compact(self._images)
        gradients = compact(self.gradients_BCKTg)
        return ConvolutionGradients(images, self._window, gradients, self.roles)

    def input_columns(self, examples: slice, columns: slice) -> Tensor:
        """Return the patches of some channels of some images, (B, T, w)."""
        channels = slice(columns.start // self.column_unit, columns.stop // self.column_unit)
        return _patches(self._images[examples, channels], self._window)[:, 0]

    def write_directly(self, role: Role, target_BCp: Tensor) -> None:
        """Write the gradients by a convolution with a group for each example and group."""
        if role == "bias":
            self.write(role, target_BCp)
            return
        window = self._window
        left, right, top, bottom = window.padding
        images, padding = self._images, (top, left)
        if (left, top) != (right, bottom):
            images, padding = functional.pad(images, window.padding), (0, 0)
        B, channels = images.shape[:2]
        K, g = self.gradients_BCKTg.shape[2], self.gradients_BCKTg.shape[4]
        places = _places(window, self._images.shape[2:])
        # The type stubs of conv2d_weight accept one number for both axes only.
        each_axis: Any = (window.stride, padding, window.dilation)
        weights = conv2d_weight(
            images.reshape(1, B * channels, *images.shape[2:]),
            (B * K * g, channels // K, *window.kernel),
            self.gradients_BCKTg.mT.reshape(1, B * K * g, *places),
            *each_axis,
            groups=B * K,
        )
        target_BCp.copy_(weights.view(B, 1, -1))

    @property
    def _fan_in(self) -> int:
        return self._images.shape[1] // self._window.groups * math.prod(self._window.kernel)


def _patches(images_BcHW: Tensor, window: Window) -> Tensor:
    """Return the patch at each position, (B, K, T, a), as a transposed view.

    A strided view holds all patches, so that they are copied once, row by row of the image.
    """
    places = _places(window, images_BcHW.shape[2:])
    images_BcHW = functional.pad(images_BcHW, window.padding).contiguous()
    B, channels = images_BcHW.shape[:2]
    example, channel, *steps = images_BcHW.stride()
    inside, between = (
        [step * size for step, size in zip(steps, sizes, strict=True)]
        for sizes in (window.dilation, window.stride)
    )
    view = images_BcHW.as_strided(
        (B, channels, *window.kernel, *places), (example, channel, *inside, *between)
    )
    return view.reshape(B, window.groups, -1, places[0] * places[1]).mT


def _places(window: Window, sides: Sequence[int]) -> list[int]:
    """Return how many positions the kernel has along each axis of an image."""
    left, right, top, bottom = window.padding
    padded = sides[0] + top + bottom, sides[1] + left + right
    return [
        (padded[axis] - window.dilation[axis] * (window.kernel[axis] - 1) - 1)
        // window.stride[axis]
        + 1
        for axis in (0, 1)
    ]


def _axes(value: int | tuple[int, ...], axes: int, front: int) -> tuple[int, int]:
    """Return one number for each of two axes; a single axis is preceded by a neutral number."""
    each = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(each) == 1:
        each = each * axes
    first, second = each if axes == 2 else (front, each[0])
    return first, second
