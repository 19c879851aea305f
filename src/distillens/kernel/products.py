"""Products with a kernel whose Gram need not exist: K v = J(Jᵀv).

The gradients are kept in the form that takes the least room; where even that does not fit, they are
made again for each product. For one position, a linear layer takes part through its inputs and
gradients alone: [(AAᵀ∘GGᵀ)v]ᵢ = aᵢᵀ(Aᵀdiag(v)G)gᵢ.

Shapes: N examples, C outputs, M columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.blocks import Block, BlockMaker
from distillens.progress import Progress, silent

_MOST_ROWS = 2048
"""Of a block: matrix products this long run at full speed."""


class KernelProduct:
    """The kernel of N examples as a linear map on (N·C, M); row n·C + c is output c of example n.

    Parameters
    ----------
    maker
        Of the gradients; its outputs count as rows.
    inputs
        The examples, (N, …).
    forward
        Examples of a forward and backward pass.
    budget
        Bytes for gradients that are kept.
    progress
        Where to show how far the first pass is.
    """

    def __init__(
        self,
        maker: BlockMaker,
        inputs: Tensor,
        forward: int,
        budget: int,
        progress: Progress = silent,
    ) -> None:
        self._maker, self._inputs, self._forward = maker, inputs, forward
        each = max(1, maker.held * maker.item_size)
        self._rows = max(1, min(_MOST_ROWS, len(inputs), budget // (2 * each)))
        self._kept: list[Block] | None = None
        if each * (len(inputs) + self._rows) <= budget:
            with progress("gradients", len(inputs)) as advance:
                self._kept = []
                for start in self._starts():
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
        C = self._maker.outputs
        columns_NCM = vectors.to(self._inputs.device, self._maker.dtype).reshape(
            len(self._inputs), C, -1
        )
        total: list[Tensor] | None = None
        for start, block in self._blocks():
            pulled = block.pull(columns_NCM[start : start + len(block)])
            if total is None:
                total = pulled
            else:
                for sum_, part in zip(total, pulled, strict=True):
                    sum_ += part
        assert total is not None  # there is at least one example
        found = torch.cat([block.push(total) for _, block in self._blocks()])
        return found.reshape(vectors.shape)

    def columns(self, numbers: Tensor) -> Tensor:
        """Return K's columns of some examples, (N·C, len(numbers)·C)."""
        chosen = self._maker.make(self._inputs[numbers], self._forward)
        tiles = [
            block.contract(chosen, "full").flatten(2, 3).flatten(0, 1)
            for _, block in self._blocks()
        ]
        return torch.cat(tiles)

    def diagonal(self) -> Tensor:
        """Return K's diagonal, (N·C,)."""
        return torch.cat([block.squares().flatten() for _, block in self._blocks()])

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        for number, start in enumerate(self._starts()):
            yield start, self._kept[number] if self._kept is not None else self._made(start)

    def _starts(self) -> range:
        return range(0, len(self._inputs), self._rows)

    def _made(self, start: int) -> Block:
        return self._maker.make(self._inputs[start : start + self._rows], self._forward)
