"""Blocks of teacher logits on a device, shared by all students, seeds and temperatures of a process."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

SHARE = 0.25
"""Share of a device's memory that blocks may take."""

UNKNOWN_MEMORY_BYTES = 2 * 10**9
"""Bytes that blocks may take if the memory of a device is unknown."""


class BlockMemory:
    """Blocks by name and device; the least recently used are evicted for a new one.

    An evicted block is freed when the last student that reads it has opened its next block.
    """

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[str, torch.device], Tensor] = OrderedDict()

    def get(self, name: str, device: torch.device) -> Tensor | None:
        """Return a block, or None if it is not in memory."""
        block = self._blocks.get((name, device))
        if block is not None:
            self._blocks.move_to_end((name, device))
        return block

    def make_room(self, size: int, device: torch.device) -> bool:
        """Return whether a block of a number of bytes fits on a device, after others were evicted."""
        room = _room(device)
        mine = [key for key in self._blocks if key[1] == device]
        used = sum(self._blocks[key].nbytes for key in mine)
        for key in mine:
            if used + size <= room:
                break
            used -= self._blocks.pop(key).nbytes
        return size <= room

    def put(self, name: str, block: Tensor) -> Tensor:
        """Keep a block and return it."""
        self._blocks[(name, block.device)] = block
        return block

    def clear(self) -> None:
        """Forget all blocks."""
        self._blocks.clear()


def _room(device: torch.device) -> float:
    if device.type != "cuda":
        return UNKNOWN_MEMORY_BYTES
    return SHARE * torch.cuda.get_device_properties(device).total_memory


BLOCKS = BlockMemory()
"""The blocks of this process."""
