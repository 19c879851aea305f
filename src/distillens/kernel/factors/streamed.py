"""Streamed gradients: some columns of a weight's gradients are materialised at a time.

The factors stay as the passes made them. They take less room than the gradients if positions are
fewer than features, and a gradient is not moved further than the cache. Streaming pays if all
examples are contracted at once, so that each gradient is formed once.

Shapes: B examples, C outputs, T positions, a fan-in, g fan-out, w columns of the weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.kernel.factors.contraction import add_products
from distillens.kernel.factors.factor import Pairing
from distillens.kernel.factors.factored import Factored
from distillens.kernel.factors.limits import Limits
from distillens.kernel.factors.outer_products import OuterProducts


@dataclass(frozen=True)
class StreamedShape:
    """The sizes of one use's gradients, from which the room follows that streaming takes."""

    outputs: int
    fan_out: int
    fan_in: int
    column_unit: int
    """Columns that are made together."""
    column_scratch: int
    """Numbers that making a column of an example's inputs takes; 0 if columns are views."""
    limits: Limits

    @classmethod
    def of(cls, factor: OuterProducts, limits: Limits) -> StreamedShape:
        """Return the shape of a factor's gradients."""
        g = factor.gradients_BCKTg.shape[4]
        fan_in = factor.numbers("weight") // g
        return cls(factor.outputs, g, fan_in, factor.column_unit, factor.column_scratch, limits)

    def columns(self, examples: int) -> int:
        """Return how many columns of the weight are made at a time, a multiple of the unit."""
        column = examples * self.outputs * self.fan_out
        units = self.limits.streamed_numbers // max(1, column * self.column_unit)
        return min(self.fan_in, max(1, units) * self.column_unit)

    def step(self, examples: int) -> int:
        """Return of how many examples inputs are made at a time, so that they fit into a cache."""
        if not self.column_scratch:
            return examples
        each = self.column_scratch * self.columns(examples)
        return max(1, min(examples, self.limits.streamed_inputs // each))

    def gradients(self, examples: int) -> int:
        """Return how many numbers of gradients exist at a time."""
        return examples * self.outputs * self.fan_out * self.columns(examples)

    def inputs(self, examples: int) -> int:
        """Return how many numbers of inputs exist at a time."""
        return self.step(examples) * self.column_scratch * self.columns(examples)


def streamed_scratch(shapes: Iterable[StreamedShape], examples: int) -> int:
    """Return how many numbers exist at a time while the gradients of several uses are streamed.

    The uses write to the same scratch tensor, one after another; it exists while any of them makes
    its inputs.
    """
    known = tuple(shapes)
    gradients = max((shape.gradients(examples) for shape in known), default=0)
    return gradients + max((shape.inputs(examples) for shape in known), default=0)


class Streamed:
    """The factors of one use, in parts as the passes made them."""

    def __init__(self, parts: Sequence[Factored], limits: Limits) -> None:
        self._parts = [part for part in parts if isinstance(part, OuterProducts)]
        self.shape = StreamedShape.of(self._parts[0], limits)

    def __len__(self) -> int:
        return sum(len(part.gradients_BCKTg) for part in self._parts)

    def add(self, tile: Tensor, pairing: Pairing, scratch: Tensor) -> None:
        """Add the products of all examples with each other to the upper triangle of a tile.

        ``scratch`` has room for the gradients that exist at a time.
        """
        step = self.shape.columns(len(self))
        for start in range(0, self.shape.fan_in, step):
            columns = slice(start, min(start + step, self.shape.fan_in))
            made_BCP = self._materialise(columns, scratch)
            add_products(tile, made_BCP, made_BCP, pairing, self.shape.limits, upper=True)

    def _materialise(self, columns: slice, scratch: Tensor) -> Tensor:
        """Materialise the gradients by some columns of the weight, (B, C, g·w)."""
        B, C, g = len(self), self.shape.outputs, self.shape.fan_out
        w, step = columns.stop - columns.start, self.shape.step(B)
        target_BCgw = scratch[: B * C * g * w].view(B, C, g, w)
        targets = target_BCgw.split([len(part.gradients_BCKTg) for part in self._parts])
        for part, into in zip(self._parts, targets, strict=True):
            for start in range(0, len(into), step):
                some = slice(start, start + step)
                inputs_BTw = part.input_columns(some, columns)
                for c in range(C):
                    torch.bmm(part.gradients_BCKTg[some, c, 0].mT, inputs_BTw, out=into[some, c])
                del inputs_BTw  # freed before the next ones are made
        return target_BCgw.flatten(2)
