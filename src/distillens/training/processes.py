"""The device, the processes and the precision that a training runs on."""

from __future__ import annotations

import os
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    disable_fsdp_ram_efficient_loading,
)
from torch.distributed.fsdp import CPUOffloadPolicy

from distillens.errors import TrainingError
from distillens.forward.device_errors import checked_device, why_no_cuda
from distillens.training.recipe import Precision

KNOWN = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)

REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor or context parallelism)",
}
"""Settings of launchers' environment variables that checkpoints here do not support."""


def accelerator_for(precision: Precision) -> Accelerator:
    """Return an Accelerator of this precision on whatever `accelerate launch` or the machine gives.

    Accelerate keeps one precision a process and refuses another; studies of different precision may
    follow each other in one process, so its state is set anew where it differs.

    Raises
    ------
    TrainingError
        The launcher asks for what this loop does itself, or for a way to share work out that
        checkpoints here do not support.
    DeviceError
        The environment names a device that does not exist.
    """
    for variable, name in REFUSED.items():
        if _asked(variable):
            raise _unsupported(name)
    sharded = _asked("ACCELERATE_USE_FSDP")
    if sharded:
        # Every process builds the network from its seed or its file. With this switch transformers
        # would leave all but the first empty, and wait for a broadcast that buffers have no part in.
        disable_fsdp_ram_efficient_loading()
    if asked := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        # Accelerate does not check the device, so the first tensor would fail.
        checked_device(asked, "ACCELERATE_TORCH_DEVICE")
    wanted = "bf16" if precision == "bfloat16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=wanted)
    started = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if started != accelerator.num_processes:
        # Accelerate would train an independent copy in each of them.
        why = "" if torch.cuda.is_available() else f" ({why_no_cuda()})"
        raise TrainingError(
            f"the launcher started {started} processes, but this machine has no GPU for them{why}; set "
            "ACCELERATE_USE_CPU=true to train on CPUs"
        )
    if sharded and accelerator.device.type == "cpu" and torch.distributed.is_initialized():
        _shard_on_cpus(accelerator)
    check_accelerator(accelerator)
    if sharded and not is_sharded(accelerator):
        raise TrainingError(
            "FSDP is asked for, but this process is no part of a group that a launcher started; use "
            "accelerate launch or torchrun"
        )
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether each process holds a share of a network's parameters only."""
    return accelerator.distributed_type is DistributedType.FSDP


def fsdp_plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin:
    """Return how an Accelerator shards networks; only where it does."""
    return cast(FullyShardedDataParallelPlugin, accelerator.state.fsdp_plugin)


def check_accelerator(accelerator: Accelerator, *, compiled: bool = False) -> None:
    """Refuse an Accelerator that the training loop cannot use.

    ``compiled`` is true if a network will be trained through `torch.compile`.

    Raises
    ------
    TrainingError
        It asks for what this loop does itself, or for a way to share work out that checkpoints here
        do not support.
    """
    if accelerator.gradient_accumulation_steps != 1:
        raise TrainingError(
            f"the launcher asks for {accelerator.gradient_accumulation_steps} gradient accumulation "
            "steps; set training.accumulate in the recipe instead"
        )
    if accelerator.distributed_type not in KNOWN:
        raise _unsupported(accelerator.distributed_type.value)
    if is_sharded(accelerator):
        check_sharding(fsdp_plugin(accelerator))
        if compiled:
            raise TrainingError(
                "training.compile does not go with FSDP; leave it out of the recipe"
            )


def check_sharding(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse FSDP of version 1, and options that would train another network or none.

    Raises
    ------
    TrainingError
        Names the option.
    """
    # Versions of Accelerate without FSDP 2 have no such field.
    version = getattr(plugin, "fsdp_version", 1)
    if version != 2:
        raise TrainingError(
            f"the launcher asks for FSDP {version}; launch with --fsdp_version 2 (fsdp_version: 2)"
        )
    asked = {
        # Accelerate recomputes without the random state: dropout would draw another mask, and
        # BatchNorm would count its statistics twice.
        "fsdp_activation_checkpointing": plugin.activation_checkpointing,
        # Gathering shards from host memory needs a second backend, which Accelerate does not open.
        "fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        # Gradients of ignored modules are not averaged.
        "fsdp_ignored_modules": plugin.ignored_modules,
    }
    for name, value in asked.items():
        if value:
            raise TrainingError(
                f"the launcher asks for {name}, which is not supported here; drop it"
            )


def _shard_on_cpus(accelerator: Accelerator) -> None:
    """Complete Accelerate's setup, which covers GPUs only; on CPUs it would silently not shard."""
    if torch.accelerator.is_available():
        raise TrainingError(
            "FSDP on CPUs would put its shards on the GPU that torch sees; hide it "
            "(CUDA_VISIBLE_DEVICES=) or unset ACCELERATE_USE_CPU"
        )
    for state in (PartialState(), accelerator.state):
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def _unsupported(name: str) -> TrainingError:
    return TrainingError(
        f"the launcher asks for {name}, which checkpoints here do not support; launch with plain "
        "data parallelism or FSDP 2"
    )
