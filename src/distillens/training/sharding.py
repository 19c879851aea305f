"""Networks whose parameters are sharded over processes (FSDP 2), and the gathering of shards.

Files contain whole tensors in either case, so a training may resume under another launcher.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from distillens.errors import TrainingError, one_line
from distillens.training.processes import fsdp_plugin, is_sharded


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Wrap a network and its optimizer for the processes of the launcher.

    Under FSDP the network is sharded in place, and the optimizer's state with it.

    Raises
    ------
    TrainingError
        The launcher's policy does not fit the network.
    """
    if not is_sharded(accelerator):
        return accelerator.prepare(model, optimizer)
    plugin = fsdp_plugin(accelerator)
    # The loop casts by itself, as for unsharded networks: gradients are summed in float32.
    plugin.mixed_precision_policy = None
    plugin.cpu_ram_efficient_loading = False
    # Shards are cut from rows in memory: other layouts are refused.
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # Accelerate gives the optimizer new parameters and forgets the state of the old ones.
    states = [optimizer.state.pop(parameter, {}) for parameter in _parameters(optimizer)]
    try:
        wrapped, prepared = accelerator.prepare(model, optimizer)
    except (KeyError, NotImplementedError, ValueError) as error:
        raise TrainingError(
            f"FSDP cannot shard this network: {one_line(error)[:160]}; every network of a run is "
            "wrapped by one policy, SIZE_BASED_WRAP fits any"
        ) from None
    for parameter, state in zip(_parameters(optimizer), states, strict=True):
        if state:
            optimizer.state[parameter] = {
                name: _share(value, cast(DTensor, parameter)) for name, value in state.items()
            }
    return wrapped, prepared


def whole(value: Any, *, keep: bool) -> Any:
    """Return a state with every shard replaced by its whole tensor, on the CPU.

    All processes must call it together. One that does not ``keep`` helps with the gathering alone
    and gets None in the place of tensors, so that whole networks do not pile up on it.
    """
    if isinstance(value, DTensor):
        gathered = value.full_tensor()
        return gathered.cpu() if keep else None
    if isinstance(value, dict):
        return {name: whole(part, keep=keep) for name, part in value.items()}
    return value


def not_finite(accelerator: Accelerator, model: nn.Module) -> list[str]:
    """Return the names in a network's state that hold a NaN or an infinity.

    Shards are checked on their devices; all processes return the same names.
    """
    state = {name: each for name, each in model.state_dict().items() if isinstance(each, Tensor)}
    bad = [(~torch.isfinite(_local(tensor))).any() for tensor in state.values()]
    if not bad:
        return []
    found = torch.stack([flag.to(accelerator.device) for flag in bad]).int()
    if is_sharded(accelerator):
        found = cast(Tensor, accelerator.reduce(found, "sum"))
    return [name for name, flag in zip(state, found.tolist(), strict=True) if flag]


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _share(value: Any, like: DTensor) -> Any:
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # Every process has read the same file: each cuts its own share, nothing is sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
