"""Gradients by weights that are written late: some columns at a time, when they are contracted.

The factors stay where passes left them. That takes less room than the gradients where positions are
fewer than features, and no gradient is moved further than a cache. It pays where all examples are
contracted at once, so that each gradient is formed once.

Shapes: B examples, C outputs, T positions, a fan-in, g fan-out, w columns of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.kernel.factors import Outer, Paired, Pairing
from distillens.kernel.rows import add_rows

_NUMBERS = 2**24
"""Of gradients that exist at a time, or those of one column."""


@dataclass(frozen=True)
class LateShape:
    """Of one use's gradients: what they take when they are written."""

    outputs: int
    fan_out: int
    fan_in: int

    @classmethod
    def of(cls, factor: Outer) -> LateShape:
        """Return the shape of a factor's gradients."""
        C, _, _, g = factor.gradients_BCKTg.shape[1:]
        return cls(C, g, factor.inputs_BKTa.shape[3])

    def columns(self, examples: int) -> int:
        """Return how many columns of the weight are written at a time."""
        return max(1, min(self.fan_in, _NUMBERS // max(1, self._column(examples))))

    def scratch(self, examples: int) -> int:
        """Return how many numbers are written at a time, of so many examples."""
        return self._column(examples) * self.columns(examples)

    def _column(self, examples: int) -> int:
        return examples * self.outputs * self.fan_out


class Late:
    """Gradients by a weight as inputs and gradients by outputs, in parts as passes made them."""

    def __init__(self, parts: Sequence[Paired]) -> None:
        self._parts = [part for part in parts if isinstance(part, Outer)]
        self.shape = LateShape.of(self._parts[0])

    def __len__(self) -> int:
        return sum(len(part.gradients_BCKTg) for part in self._parts)

    def add(self, tile: Tensor, pairing: Pairing, scratch: Tensor) -> None:
        """Add the products of the examples with each other to a tile, above its diagonal only.

        ``scratch`` has room for the columns that are written at a time.
        """
        step = self.shape.columns(len(self))
        for start in range(0, self.shape.fan_in, step):
            written_BCP = self._written(slice(start, start + step), scratch)
            add_rows(tile, written_BCP, written_BCP, pairing, upper=True)

    def _written(self, columns: slice, scratch: Tensor) -> Tensor:
        """Write out the gradients by some columns of the weight, (B, C, g·w)."""
        B, C, g = len(self), self.shape.outputs, self.shape.fan_out
        w = min(columns.stop, self.shape.fan_in) - columns.start
        target_BCgw = scratch[: B * C * g * w].view(B, C, g, w)
        targets = target_BCgw.split([len(part.gradients_BCKTg) for part in self._parts])
        for part, into in zip(self._parts, targets, strict=True):
            inputs_BTw = part.inputs_BKTa[:, 0, :, columns]
            for c in range(C):
                torch.bmm(part.gradients_BCKTg[:, c, 0].mT, inputs_BTw, out=into[:, c])
        return target_BCgw.flatten(2)
