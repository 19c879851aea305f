"""Products with a kernel without its Gram matrix: K v = J(Jᵀv).

The gradients are kept in the form that takes the least memory. If even that does not fit, they are made
again for each product. Several processes share the examples. For a single position, a linear layer
takes part through its inputs and gradients alone:
[(AAᵀ∘GGᵀ)v]ᵢ = aᵢᵀ(Aᵀdiag(v)G)gᵢ.

Shapes: N examples, C outputs, M columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.assembly.block import Block
from distillens.kernel.assembly.block_maker import BlockMaker
from distillens.kernel.assembly.ranks import Ranks
from distillens.kernel.tracing.grad_mode import differentiating
from distillens.progress import Progress, silent

_MOST_ROWS = 2048
"""Rows of a block at most; matrix products of this length run at full speed."""


class KernelProduct:
    """The kernel of N examples as a linear map on (N·C, M); row n·C + c is output c of example n.

    Parameters
    ----------
    maker
        Makes the gradients; each of its outputs is a row of the kernel.
    inputs
        The examples, (N, …).
    forward
        Examples in a forward and backward pass.
    budget
        Bytes for gradients; the same in all processes.
    ranks
        The processes that share the examples. All must make the same calls with the same vectors, and
        each gets the whole result.
    keep
        Whether gradients are kept between products if they fit.
    progress
        Receives the progress of the first pass.
    """

    def __init__(
        self,
        maker: BlockMaker,
        inputs: Tensor,
        forward: int,
        budget: int,
        ranks: Ranks | None = None,
        keep: bool = True,
        progress: Progress = silent,
    ) -> None:
        self._maker, self._inputs, self._forward = maker, inputs, forward
        self._ranks = ranks or Ranks()
        each = max(1, maker.held * maker.item_size)
        share = -(-len(inputs) // self._ranks.count)
        self._rows = max(1, min(_MOST_ROWS, share, budget // (2 * each)))
        starts = range(0, len(inputs), self._rows)
        self._starts = list(starts[self._ranks.rank :: self._ranks.count])
        self._kept: list[Block] | None = None
        own = len(self._starts) * self._rows
        if keep and each * (own + self._rows) <= budget:
            with self._ranks.together(), progress("gradients", own) as advance:
                self._kept = []
                for start in self._starts:
                    self._kept.append(self._made(start))
                    advance(len(self._kept[-1]))

    @property
    def kept(self) -> bool:
        """Whether the gradients are kept between products."""
        return self._kept is not None

    @property
    def side(self) -> int:
        """N·C."""
        return len(self._inputs) * self._maker.outputs

    @differentiating
    def __call__(self, vectors: Tensor) -> Tensor:
        """Return Kv for v of shape (N·C,) or (N·C, M).

        Raises
        ------
        KernelError
            The vectors have another length.
        """
        if vectors.ndim not in (1, 2) or len(vectors) != self.side:
            raise KernelError(
                f"vectors of shape {tuple(vectors.shape)} do not fit a kernel of {self.side} rows; "
                f"give ({self.side},) or ({self.side}, M)"
            )
        columns_NCM = vectors.to(self._inputs.device, self._maker.directions.dtype)
        columns_NCM = columns_NCM.reshape(len(self._inputs), self._maker.outputs, -1)
        with self._ranks.together():
            total = self._pulled(columns_NCM)
        for part in total:
            self._ranks.add_up(part)
        found = self._filled(columns_NCM.shape, lambda block: block.push(total))
        return found.reshape(vectors.shape)

    @differentiating
    def columns(self, numbers: Tensor) -> Tensor:
        """Return the kernel's columns of some examples, (N·C, len(numbers)·C)."""
        chosen = self._maker.make(self._inputs[numbers], self._forward)
        C = self._maker.outputs
        shape = torch.Size([len(self._inputs), C, len(chosen) * C])
        found = self._filled(shape, lambda block: block.contract(chosen, "full").flatten(2, 3))
        return found.flatten(0, 1)

    @differentiating
    def diagonal(self) -> Tensor:
        """Return the kernel's diagonal, (N·C,)."""
        shape = torch.Size([len(self._inputs), self._maker.outputs])
        return self._filled(shape, lambda block: block.squares()).flatten()

    def _pulled(self, columns_NCM: Tensor) -> list[Tensor]:
        """Return Jᵀv for the examples of this process."""
        total: list[Tensor] = []
        for start, block in self._blocks():
            pulled = block.pull(columns_NCM[start : start + len(block)])
            for sum_, part in zip(total, pulled, strict=bool(total)):
                sum_ += part
            total = total or [part.contiguous() for part in pulled]
        # Without examples of this process, zero times one example has the right shapes.
        return total or [part.contiguous() for part in self._made(0).pull(0 * columns_NCM[:1])]

    def _filled(self, shape: torch.Size, rows_of: Callable[[Block], Tensor]) -> Tensor:
        """Return rows of all examples, computed block by block and gathered from all processes."""
        found = torch.zeros(shape, dtype=self._maker.directions.dtype, device=self._inputs.device)
        with self._ranks.together():
            for start, block in self._blocks():
                found[start : start + len(block)] = rows_of(block)
        self._ranks.add_up(found)
        return found

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        for number, start in enumerate(self._starts):
            yield start, self._kept[number] if self._kept is not None else self._made(start)

    def _made(self, start: int) -> Block:
        return self._maker.make(self._inputs[start : start + self._rows], self._forward)
