"""The device, the processes and the precision that a training runs on."""

from __future__ import annotations

from typing import Literal

from accelerate import Accelerator
from accelerate.state import AcceleratorState

Precision = Literal["float32", "bfloat16"]


def accelerator_for(precision: Precision) -> Accelerator:
    """Return an Accelerator of this precision on whatever `accelerate launch` or the machine gives.

    Accelerate keeps one precision a process and refuses another; studies of different precision may
    follow each other in one process, so its state is set anew where it differs.
    """
    wanted = "bf16" if precision == "bfloat16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=wanted)
