"""The Gram, tile by tile: panels of rows are held while tiles of columns pass by.

With the inputs on both axes only the upper triangle is computed. Panels are shared out over the
processes; tiles that a store already has are not computed again. Shapes: N, M examples along the
rows and columns, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.blocks import Block, BlockMaker
from distillens.kernel.directions import Outputs
from distillens.kernel.plan import Plan
from distillens.kernel.ranks import Ranks
from distillens.kernel.rows import is_parallel
from distillens.kernel.store import GramStore
from distillens.progress import Advance, Progress


def gram_shape(outputs: Outputs, count: int, rows: int, columns: int) -> tuple[int, ...]:
    """Return the shape of a Gram's values for C outputs."""
    if outputs == "full":
        return rows * count, columns * count
    return (count, rows, columns) if outputs == "class-diagonal" else (rows, columns)


class GramValues:
    """A Gram that is filled tile by tile, the outputs all at once or some after others."""

    def __init__(self, values: Tensor, outputs: Outputs, count: int) -> None:
        self._outputs: Outputs = outputs
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
        """Put a tile in its place, and its mirror image in the other.

        Parameters
        ----------
        row, column
            Of its first pair of examples.
        tile
            (C, B, D), for "full" (B, C, D, C).
        first
            The number of its first output.
        mirrored
            The columns are the rows.

        Raises
        ------
        KernelError
            The tile is not finite; on an accelerator `finish` raises it.
        """
        finite = torch.isfinite(tile).all()
        # Asking an accelerator for each tile would make it wait; it is asked once, in `finish`.
        self._finite = finite if self._finite is None else self._finite & finite
        if not is_parallel(tile.device) or self._values.device != tile.device:
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
        """See that all tiles were finite.

        Raises
        ------
        KernelError
            One was not.
        """
        if self._finite is not None and not bool(self._finite):
            raise KernelError(
                "the Gram is not finite although weights and inputs are; "
                "look for an operation without a derivative, such as sqrt at 0"
            )

    def _write(self, row: int, column: int, tile: Tensor, first: int) -> None:
        if self._outputs == "full":
            self._values[row : row + len(tile), :, column : column + tile.shape[2]] = tile
            return
        outputs, height, width = tile.shape
        place = slice(row, row + height), slice(column, column + width)
        if self._outputs == "trace" and first > 0:
            self._values[(slice(None), *place)] += tile.to(self._values.device)
        elif self._outputs == "class-diagonal":
            self._values[(slice(first, first + outputs), *place)] = tile
        else:
            self._values[(slice(None), *place)] = tile


@dataclass(frozen=True)
class _Work:
    makers: list[tuple[int, BlockMaker]]
    """The first output of each group of them, and what makes its gradients."""
    plan: Plan
    rows: Tensor
    columns: Tensor | None
    """None where they are the rows."""
    values: GramValues
    store: GramStore | None
    adding: bool
    """Groups of outputs are added up, so that a panel is done when all of them are."""
    advance: Advance = lambda tiles: None

    def starts(self, panel: int) -> range:
        """Return where the tiles begin that pass by a panel."""
        behind = min((panel + 1) * self.plan.sizes.panel, self.plan.rows)
        return range(0 if self.columns is not None else behind, self.plan.columns, self._step)

    def tiles(self, panel: int) -> int:
        """Return how many steps a panel takes: for each group its own tiles, then the others."""
        return len(self.makers) * self._each(panel)

    def _own_starts(self, panel: int) -> range:
        start = panel * self.plan.sizes.panel
        return range(start, min(start + self.plan.sizes.panel, self.plan.rows), self._step)

    def _each(self, panel: int) -> int:
        return len(self._own_starts(panel)) + len(self.starts(panel))

    def compute(self, panel: int) -> None:
        """Compute what a store does not have of a panel."""
        done = self.store.done.get(panel, 0) if self.store else 0
        each = self._each(panel)
        for number, (first, maker) in enumerate(self.makers):
            if done < (number + 1) * each:
                self._group(panel, first, maker, number * each, done)
        if self.store and self.adding:
            self.store.mark(panel, self.tiles(panel))

    def _group(self, panel: int, first: int, maker: BlockMaker, step: int, done: int) -> None:
        sizes = self.plan.sizes
        own = self._own_starts(panel)
        stop = min(own.start + sizes.panel, self.plan.rows)
        blocks: list[tuple[int, Block]] = []
        for column in own:
            # Made again for those that follow, even where its own tiles are done.
            inputs = self.rows[column : min(column + self._step, stop)]
            blocks.append((column, maker.make(inputs, sizes.forward, sizes.beside)))
            if self.columns is None and step >= done:
                self._contract(blocks, column, blocks[-1][1], first, maker)
            step += 1
            self._mark(panel, step, done)
        for column in self.starts(panel):
            if step >= done:
                self._pass(blocks, column, first, maker)
            step += 1
            self._mark(panel, step, done)

    def _pass(
        self, blocks: list[tuple[int, Block]], column: int, first: int, maker: BlockMaker
    ) -> None:
        # A call of its own, so that a tile's gradients are gone before the next are made.
        passing = self.rows if self.columns is None else self.columns
        sizes = self.plan.sizes
        block = maker.make(passing[column : column + self._step], sizes.forward, sizes.beside)
        self._contract(blocks, column, block, first, maker)

    def _contract(
        self,
        blocks: list[tuple[int, Block]],
        column: int,
        block: Block,
        first: int,
        maker: BlockMaker,
    ) -> None:
        for row, left in blocks:
            tile = left.contract(block, maker.pairing, self.plan.sizes.pair_numbers)
            self.values.put(row, column, tile, first, mirrored=self.columns is None)

    def _mark(self, panel: int, tiles: int, done: int) -> None:
        if tiles <= done:
            return
        if self.store and not self.adding:
            self.store.mark(panel, tiles)
        self.advance(1)

    @property
    def _step(self) -> int:
        return self.plan.sizes.tile


def compute_gram(
    maker: BlockMaker,
    plan: Plan,
    outputs: Outputs,
    rows: Tensor,
    columns: Tensor | None,
    progress: Progress,
    ranks: Ranks,
    store: GramStore | None = None,
    kept: dict[str, object] | None = None,
) -> Tensor:
    """Return the Gram of rows and columns, or of the rows with themselves.

    Parameters
    ----------
    maker
        Of the gradients by all outputs.
    plan
        The sizes of tiles.
    outputs
        What the kernel is taken of.
    rows, columns
        N and M examples; None where the columns are the rows.
    progress
        Where to show how far this process is.
    ranks
        The processes that share the panels.
    store
        Where the values are kept; None for memory.
    kept
        What the store keeps to go on with.

    Raises
    ------
    KernelError
        The Gram is not finite, or another process stopped.
    """
    shape = gram_shape(outputs, maker.outputs, plan.rows, plan.columns)
    if store is None:
        values = torch.zeros(shape, dtype=maker.dtype, device=rows.device)
    else:
        values = store.begin(kept or {})
    step = plan.sizes.outputs
    makers = [
        (first, maker.some(first, min(first + step, maker.outputs)))
        for first in range(0, maker.outputs, step)
    ]
    adding = outputs == "trace" and len(makers) > 1
    filled = GramValues(values, outputs, maker.outputs)
    work = _Work(makers, plan, rows, columns, filled, store, adding)
    done = store.done if store else {}
    panels = [
        panel
        for panel in range(-(-plan.rows // plan.sizes.panel))
        if done.get(panel, 0) < work.tiles(panel)
    ]
    mine = ranks.share([plan.panel_cost(panel) for panel in panels])
    total = sum(work.tiles(panels[number]) for number in mine)
    begun = sum(done.get(panels[number], 0) for number in mine)
    with ranks.together(), progress("kernel", total, begun) as advance:
        work = replace(work, advance=advance)
        for number in mine:
            work.compute(panels[number])
        filled.finish()
        if store is not None and mine:
            last = panels[mine[-1]]
            store.mark(last, work.tiles(last), now=True)
    if store is None:
        ranks.add_up(values)
        return values
    return store.finished()
