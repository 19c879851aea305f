"""Gradients by weights that are written late: some columns at a time, when they are contracted.

The factors stay where passes left them. That takes less room than the gradients where positions are
fewer than features, and no gradient is moved further than a cache. It pays where all examples are
contracted at once, so that each gradient is formed once.

Shapes: B examples, C outputs, T positions, a fan-in, g fan-out, w columns of the weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.kernel.factors import Outer, Paired, Pairing
from distillens.kernel.rows import add_rows

_NUMBERS = 2**24
"""Of gradients that exist at a time, or those of one unit of columns."""
_MADE = 2**20
"""Of a convolution's patches that exist at a time, or those of one example: a cache holds them."""


@dataclass(frozen=True)
class LateShape:
    """Of one use's gradients: what they take when they are written."""

    outputs: int
    fan_out: int
    fan_in: int
    unit: int
    """Columns that are written together."""
    made: int
    """Numbers that a column of an example's inputs takes beside; 0 where nothing has to be made."""

    @classmethod
    def of(cls, factor: Outer) -> LateShape:
        """Return the shape of a factor's gradients."""
        C, g = factor.outputs, factor.gradients_BCKTg.shape[4]
        return cls(C, g, factor.numbers("weight") // g, factor.unit, factor.made)

    def columns(self, examples: int) -> int:
        """Return how many columns of the weight are written at a time, a multiple of the unit."""
        units = _NUMBERS // max(1, self._column(examples) * self.unit)
        return min(self.fan_in, max(1, units) * self.unit)

    def step(self, examples: int) -> int:
        """Return of how many examples inputs are made at a time, of so many written at once."""
        if not self.made:
            return examples
        return max(1, min(examples, _MADE // (self.made * self.columns(examples))))

    def gradients(self, examples: int) -> int:
        """Return how many numbers are written at a time, of so many examples."""
        return self._column(examples) * self.columns(examples)

    def inputs(self, examples: int) -> int:
        """Return how many numbers of inputs are made at a time, of so many examples."""
        return self.step(examples) * self.made * self.columns(examples)

    def _column(self, examples: int) -> int:
        return examples * self.outputs * self.fan_out


def late_scratch(shapes: Iterable[LateShape], examples: int) -> int:
    """Return how many numbers exist at a time while the gradients of several uses are written.

    One use after another writes to one place, which is there while any of them makes its inputs.
    """
    known = tuple(shapes)
    gradients = max((shape.gradients(examples) for shape in known), default=0)
    return gradients + max((shape.inputs(examples) for shape in known), default=0)


class Late:
    """Gradients by a weight as inputs and gradients by outputs, in parts as passes made them."""

    def __init__(self, parts: Sequence[Paired]) -> None:
        self._parts = [part for part in parts if isinstance(part, Outer)]
        self.shape = LateShape.of(self._parts[0])

    def __len__(self) -> int:
        return sum(len(part.gradients_BCKTg) for part in self._parts)

    def add(self, tile: Tensor, pairing: Pairing, scratch: Tensor) -> None:
        """Add the products of the examples with each other to a tile, above its diagonal only.

        ``scratch`` has room for the gradients that are written at a time.
        """
        step = self.shape.columns(len(self))
        for start in range(0, self.shape.fan_in, step):
            stop = min(start + step, self.shape.fan_in)
            written_BCP = self._written(slice(start, stop), scratch)
            add_rows(tile, written_BCP, written_BCP, pairing, upper=True)

    def _written(self, columns: slice, scratch: Tensor) -> Tensor:
        """Write out the gradients by some columns of the weight, (B, C, g·w)."""
        B, C, g = len(self), self.shape.outputs, self.shape.fan_out
        w, step = columns.stop - columns.start, self.shape.step(B)
        target_BCgw = scratch[: B * C * g * w].view(B, C, g, w)
        targets = target_BCgw.split([len(part.gradients_BCKTg) for part in self._parts])
        for part, into in zip(self._parts, targets, strict=True):
            for start in range(0, len(into), step):
                some = slice(start, start + step)
                inputs_BTw = part.columns(some, columns)
                for c in range(C):
                    rows_BgT = part.gradients_BCKTg[some, c, 0].mT
                    torch.bmm(rows_BgT, inputs_BTw, out=into[some, c])
                del inputs_BTw  # gone before the next are made
        return target_BCgw.flatten(2)
