"""Examples and logits that are held on the device on which networks are trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.data.examples import Examples

SHARE = 0.5
"""Share of the free memory of a device that data may take; the rest is for networks."""


@dataclass(frozen=True)
class Rows:
    """Rows of a batch in its source, which is held on the device.

    Attributes
    ----------
    examples : Examples
        All examples of the source, on the device.
    positions : Tensor
        (B,) int64 positions in ``examples``, on the device.
    """

    examples: Examples
    positions: Tensor


def room_for_data(device: torch.device) -> float:
    """Return how many bytes of data a device may hold; infinite where its free memory is unknown."""
    if device.type != "cuda":
        return float("inf")
    # Memory that torch has reserved and does not use is free as well.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE * (torch.cuda.mem_get_info(device)[0] + unused)


def too_large(what: str, size: int, device: torch.device) -> str | None:
    """Return the reason why data of a number of bytes are not held on a device; None if they fit."""
    room = room_for_data(device)
    if size <= room:
        return None
    return (
        f"{what} take {size / 1e9:.2f} GB and stay in the memory of the host, because {device} has room "
        f"for {room / 1e9:.2f} GB of data; batches are copied at each step"
    )
