"""Which failures say that memory ran out, and so must never be taken for something else."""

from __future__ import annotations

import torch

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_cpu")


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether a device or the machine had no room left."""
    # On the CPU torch has no type of its own for it.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
    )
