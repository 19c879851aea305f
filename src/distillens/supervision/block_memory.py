"""Blocks of teacher logits on a device, shared by all students, seeds and temperatures of a process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

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

    def fetch(
        self, name: str, device: torch.device, size: int, make: Callable[[], Tensor]
    ) -> Tensor | None:
        """Return a block, which is made if it is not in memory.

        Others are evicted for a new one of ``size`` bytes; None if it does not fit all the same.
        """
        if (name, device) not in self._blocks:
            room: float = UNKNOWN_MEMORY_BYTES
            if device.type == "cuda":
                room = SHARE * torch.cuda.get_device_properties(device).total_memory
            mine = [key for key in self._blocks if key[1] == device]
            used = sum(self._blocks[key].nbytes for key in mine)
            for key in mine:
                if used + size <= room:
                    break
                used -= self._blocks.pop(key).nbytes
            if size > room:
                return None
            self._blocks[(name, device)] = make()
        self._blocks.move_to_end((name, device))
        return self._blocks[(name, device)]

    def clear(self) -> None:
        """Forget all blocks."""
        self._blocks.clear()


BLOCKS = BlockMemory()
"""The blocks of this process."""
