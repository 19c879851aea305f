"""Limits on how much of a computation exists at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distillens.kernel.factors.cost import Speed


@dataclass(frozen=True)
class Limits:
    """Limits that cut a computation into tiles, passes and pieces.

    No limit changes a kernel by more than rounding. The defaults suit CPUs and current GPUs.
    """

    tile_rows: int = 256
    """Examples along a tile's side; larger tiles do not make matrix products faster."""
    accelerator_tile_rows: int = 4096
    """The same on an accelerator, where a small tile takes as many operations as a large one."""
    single_tile_examples: int = 512
    """Examples of the largest Gram that is computed as a single tile; for larger Grams progress is
    reported tile by tile."""
    pass_numbers: int = 2**25
    """Numbers that a forward and backward pass holds; larger passes do not stay in the caches."""
    piece: int = 2**13
    """Parameters whose gradients are contracted together; the sum over pieces is in float64."""
    pieces: int = 16
    """Pieces that are contracted in one batch of matrix products."""
    piece_numbers: int = 2**20
    """Numbers of the products of the pieces in one batch."""
    accelerator_piece_numbers: int = 2**26
    """The same on an accelerator, where the number of pieces in a batch is not limited."""
    strip: int = 64
    """Rows of a tile's upper triangle that are computed together, up to the diagonal."""
    accelerator_strip: int = 2048
    """The same on an accelerator."""
    streamed_numbers: int = 2**24
    """Numbers of streamed gradients that exist at a time."""
    streamed_inputs: int = 2**20
    """Numbers of inputs that exist at a time while gradients are streamed, if a layer makes them."""
    seconds_between_marks: float = 5.0
    """Time between two records of a store's progress."""
    reserve_setup: bool = True
    """Whether plans reserve the memory that tracing the network and checking the Gram take."""
    jacobians: bool | None = None
    """Whether Grams are computed from plain Jacobians; by default a cost model decides."""
    accelerator: bool | None = None
    """Whether the device is treated as an accelerator; by default every device but the CPU is."""
    speed: Speed | None = None
    """Speed of the machine; by default it is measured."""

    def on_accelerator(self, device: torch.device) -> bool:
        """Return whether a device is an accelerator, on which each operation has a fixed cost."""
        return device.type != "cpu" if self.accelerator is None else self.accelerator

    def strip_on(self, device: torch.device) -> int:
        """Return how many rows of an upper triangle are computed together on a device."""
        return self.accelerator_strip if self.on_accelerator(device) else self.strip

    def pieces_at_once(self, numbers: int, accelerator: bool) -> int:
        """Return how many pieces are contracted together if each gives ``numbers`` numbers.

        One batch of products, in which each thread has pieces of its own, is faster than one small
        product after another.
        """
        if accelerator:
            return max(1, self.accelerator_piece_numbers // max(1, numbers))
        return max(1, min(self.pieces, self.piece_numbers // max(1, numbers)))


DEFAULT_LIMITS = Limits()
