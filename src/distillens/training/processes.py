"""The device, the processes and the precision that a training runs on."""

from __future__ import annotations

from typing import Literal

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from distillens.errors import TrainingError

KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

Precision = Literal["float32", "bfloat16"]


def accelerator_for(precision: Precision) -> Accelerator:
    """Return an Accelerator of this precision on whatever `accelerate launch` or the machine gives.

    Accelerate keeps one precision a process and refuses another; studies of different precision may
    follow each other in one process, so its state is set anew where it differs.

    Raises
    ------
    TrainingError
        The launcher asks for what this loop does itself, or for sharded weights.
    """
    wanted = "bf16" if precision == "bfloat16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=wanted)
    if accelerator.gradient_accumulation_steps != 1:
        raise TrainingError(
            f"the launcher asks for {accelerator.gradient_accumulation_steps} gradient accumulation "
            "steps; set training.accumulate in the recipe instead"
        )
    if accelerator.distributed_type not in KNOWN:
        raise TrainingError(
            f"the launcher asks for {accelerator.distributed_type.value}, which checkpoints here do "
            "not support; launch with plain data parallelism"
        )
    return accelerator
