"""Computing a Gram tile by tile, with the gradients of a panel of rows in memory.

Of a symmetric Gram only the upper triangle is computed. Several processes share the panels. Tiles that
a store already has are not computed again. Shapes: N, M examples along the rows and columns, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from distillens.kernel.assembly.block import Block
from distillens.kernel.assembly.block_maker import BlockMaker
from distillens.kernel.assembly.ranks import Ranks
from distillens.kernel.assembly.store import GramStore
from distillens.kernel.planning.plan import Plan
from distillens.kernel.tracing.directions import Outputs, gram_shape, require_finite
from distillens.progress import Advance, Progress


class GramValues:
    """The values of a Gram, which are filled tile by tile, for all outputs at once or in groups."""

    def __init__(self, values: Tensor, outputs: Outputs, count: int, accelerator: bool) -> None:
        self._outputs: Outputs = outputs
        self._accelerator = accelerator
        self._count = count
        self._finite: Tensor | None = None
        if outputs == "full":
            rows, columns = (side // count for side in values.shape)
            self._values = values.view(rows, count, columns, count)
        else:
            self._values = values.view(-1, *values.shape[-2:])

    def put(
        self, row: int, column: int, tile: Tensor, first: int = 0, mirrored: bool = False
    ) -> None:
        """Write a tile to its place, and its transpose to the place across the diagonal.

        Parameters
        ----------
        row, column
            Numbers of its first pair of examples.
        tile
            (C, B, D), for "full" (B, C, D, C).
        first
            The number of its first output.
        mirrored
            Whether the columns are the rows.

        Raises
        ------
        KernelError
            The tile is not finite. On an accelerator `finish` raises it.
        """
        finite = torch.isfinite(tile).all()
        # Reading a result from an accelerator makes it wait, so that it is read once, in `finish`.
        self._finite = finite if self._finite is None else self._finite & finite
        if not self._accelerator or self._values.device != tile.device:
            self.finish()
        turned = (2, 3, 0, 1) if self._outputs == "full" else (0, 2, 1)
        if self._outputs == "trace":
            tile = tile.sum(dim=0, keepdim=True) / self._count
        if mirrored and row == column:
            tile = 0.5 * (tile + tile.permute(turned))
        self._write(row, column, tile, first)
        if mirrored and row != column:
            self._write(column, row, tile.permute(turned), first)

    def finish(self) -> None:
        """Raise KernelError if a tile was not finite."""
        require_finite(True if self._finite is None else self._finite)

    def _write(self, row: int, column: int, tile: Tensor, first: int) -> None:
        if self._outputs == "full":
            self._values[row : row + len(tile), :, column : column + tile.shape[2]] = tile
            return
        outputs, height, width = tile.shape
        start = first if self._outputs == "class-diagonal" else 0
        target = self._values[start : start + outputs, row : row + height, column : column + width]
        if self._outputs == "trace" and first > 0:
            target += tile.to(target.device)
        else:
            target.copy_(tile)


_Group = tuple[int, BlockMaker]
"""The first of a group of outputs, and what makes the group's gradients."""


@dataclass(frozen=True)
class _Work:
    """The computation of a Gram's panels."""

    makers: list[_Group]
    plan: Plan
    rows: Tensor
    columns: Tensor
    values: GramValues
    store: GramStore | None
    summing: bool
    """Whether groups of outputs are summed, so that a panel is done only when all groups are."""
    advance: Advance = lambda tiles: None

    def _starts(self, panel: int) -> tuple[range, range]:
        """Return where the tiles of a panel's own rows begin, and the other tiles of its columns."""
        plan, step = self.plan, self.plan.sizes.tile
        start = panel * plan.sizes.panel
        stop = min(start + plan.sizes.panel, plan.rows)
        others = range(stop if plan.symmetric else 0, plan.columns, step)
        return range(start, stop, step), others

    def steps(self, panel: int) -> int:
        """Return how many steps a panel takes: for each group its own tiles, then the others."""
        return len(self.makers) * sum(map(len, self._starts(panel)))

    def compute(self, panel: int, done: int) -> None:
        """Compute a panel, of which some steps are done."""
        own, others = self._starts(panel)
        each = len(own) + len(others)
        for number, group in enumerate(self.makers):
            step = number * each
            if done >= step + each:
                continue
            blocks: list[tuple[int, Block]] = []
            for column in own:
                # The gradients are needed for the tiles that follow, even if these tiles are done.
                stop = min(column + own.step, own.stop)
                blocks.append((column, self._make(group[1], self.rows[column:stop])))
                if self.plan.symmetric and step >= done:
                    self._contract(blocks, column, blocks[-1][1], group)
                step += 1
                self._mark(panel, step, done)
            for column in others:
                if step >= done:
                    inputs = self.columns[column : column + self.plan.sizes.tile]
                    # Not kept in a variable, so that it is freed before the next one is made.
                    self._contract(blocks, column, self._make(group[1], inputs), group)
                step += 1
                self._mark(panel, step, done)
        if self.store and self.summing:
            self.store.mark(panel, self.steps(panel))

    def _make(self, maker: BlockMaker, inputs: Tensor) -> Block:
        return maker.make(inputs, self.plan.sizes.forward, self.plan.sizes.parallel_passes)

    def _contract(
        self, blocks: list[tuple[int, Block]], column: int, block: Block, group: _Group
    ) -> None:
        first, maker = group
        for row, left in blocks:
            tile = left.contract(block, maker.purpose.pairing, self.plan.sizes.pair_numbers)
            self.values.put(row, column, tile, first, mirrored=self.plan.symmetric)

    def _mark(self, panel: int, steps: int, done: int) -> None:
        if steps <= done:
            return
        if self.store and not self.summing:
            self.store.mark(panel, steps)
        self.advance(1)


def compute_gram(
    maker: BlockMaker,
    plan: Plan,
    outputs: Outputs,
    rows: Tensor,
    columns: Tensor,
    progress: Progress,
    ranks: Ranks,
    store: GramStore | None = None,
    kept: dict[str, Any] | None = None,
) -> Tensor:
    """Return the Gram of rows and columns, or of the rows with themselves.

    Parameters
    ----------
    maker
        Makes the gradients of all outputs.
    plan
        The sizes of tiles.
    outputs
        What the kernel is taken of.
    rows, columns
        N and M examples.
    progress
        Receives the progress of this process.
    ranks
        The processes that share the panels.
    store
        Receives the values; by default they are in memory.
    kept
        What the store keeps to resume the computation.

    Raises
    ------
    KernelError
        The Gram is not finite, or another process failed.
    """
    shape = gram_shape(outputs, maker.outputs, plan.rows, plan.columns)
    if store is None:
        values = torch.zeros(shape, dtype=maker.directions.dtype, device=rows.device)
    else:
        values = store.begin(kept or {})
    step = plan.sizes.outputs
    makers = [
        (first, maker.some(first, min(first + step, maker.outputs)))
        for first in range(0, maker.outputs, step)
    ]
    summing = outputs == "trace" and len(makers) > 1
    filled = GramValues(values, outputs, maker.outputs, maker.on_accelerator)
    work = _Work(makers, plan, rows, columns, filled, store, summing)
    done = store.done if store else {}
    panels = range(-(-plan.rows // plan.sizes.panel))
    panels = [panel for panel in panels if done.get(panel, 0) < work.steps(panel)]
    mine = [panels[k] for k in ranks.share([plan.panel_cost(panel) for panel in panels])]
    total = sum(work.steps(panel) for panel in mine)
    begun = sum(done.get(panel, 0) for panel in mine)
    with ranks.together(), progress("kernel", total, begun) as advance:
        work = replace(work, advance=advance)
        for panel in mine:
            work.compute(panel, done.get(panel, 0))
        filled.finish()
        if store is not None and mine:
            store.mark(mine[-1], work.steps(mine[-1]), now=True)
    if store is None:
        ranks.add_up(values)
        return values
    return store.finished()
