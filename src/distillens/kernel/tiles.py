"""The Gram, tile by tile: panels of rows are held while tiles of columns pass by.

With the inputs on both axes only the upper triangle is computed. Shapes: N, M examples along the
rows and columns, C outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillens.kernel.blocks import Block, BlockMaker
from distillens.kernel.factors import Pairing
from distillens.kernel.network import Outputs, pairing_of
from distillens.kernel.plan import Plan
from distillens.progress import Progress


class GramValues:
    """A Gram that is filled tile by tile."""

    def __init__(self, outputs: Outputs, count: int, rows: int, columns: int, like: Tensor) -> None:
        self._outputs: Outputs = outputs
        self._pairing: Pairing = pairing_of(outputs)
        if self._pairing == "full":
            self._values = like.new_zeros(rows, count, columns, count)
        else:
            grams = count if outputs == "class-diagonal" else 1
            self._values = like.new_zeros(grams, rows, columns)

    def put(self, row: int, left: Block, column: int, right: Block, mirrored: bool) -> None:
        """Compute a tile and put it in its place, and its mirror image in the other."""
        tile = left.contract(right, self._pairing)
        down = slice(row, row + len(left))
        across = slice(column, column + len(right))
        if self._pairing == "full":
            if mirrored and row == column:
                tile = 0.5 * (tile + tile.permute(2, 3, 0, 1))
            self._values[down, :, across] = tile
            if mirrored and row != column:
                self._values[across, :, down] = tile.permute(2, 3, 0, 1)
            return
        if self._outputs == "trace":
            tile = tile.mean(dim=0, keepdim=True)
        if mirrored and row == column:
            tile = 0.5 * (tile + tile.mT)
        self._values[:, down, across] = tile
        if mirrored and row != column:
            self._values[:, across, down] = tile.mT

    def finished(self) -> Tensor:
        """Return the Gram in the shape that its form has."""
        if self._pairing == "full":
            return self._values.flatten(2, 3).flatten(0, 1)
        return self._values if self._outputs == "class-diagonal" else self._values[0]


def compute_gram(
    maker: BlockMaker,
    plan: Plan,
    outputs: Outputs,
    rows: Tensor,
    columns: Tensor | None,
    progress: Progress,
) -> Tensor:
    """Return the Gram of rows and columns, or of the rows with themselves."""
    like = torch.empty(0, dtype=maker.dtype, device=rows.device)
    gram = GramValues(outputs, maker.outputs, plan.rows, plan.columns, like)
    passing = rows if columns is None else columns
    with progress("kernel", plan.rows) as advance:
        for start in range(0, plan.rows, plan.panel):
            stop = min(start + plan.panel, plan.rows)
            panel: list[tuple[int, Block]] = []
            for first in range(start, stop, plan.tile):
                block = maker.make(rows[first : min(first + plan.tile, stop)], plan.forward)
                panel.append((first, block))
                if columns is None:
                    for row, left in panel:
                        gram.put(row, left, first, block, mirrored=True)
            for first in range(stop if columns is None else 0, plan.columns, plan.tile):
                block = maker.make(passing[first : first + plan.tile], plan.forward)
                for row, left in panel:
                    gram.put(row, left, first, block, mirrored=columns is None)
            advance(stop - start)
    return gram.finished()
