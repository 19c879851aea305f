"""A network made ready for its kernel: copied, checked, its outputs and parameters chosen.

Shapes: B examples, O outputs of the network, C combinations of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distillens.errors import KernelError, nearest
from distillens.kernel.factors import Pairing
from distillens.kernel.grad_mode import usable

OutputForm = Literal["sum", "class-diagonal", "trace", "full"]
Outputs = int | tuple[int, int] | OutputForm
"""c: one logit. (a, b): logit a minus logit b. "sum": the sum of the logits. "class-diagonal": each
logit apart. "trace": the mean over logits of their kernels. "full": all pairs of logits."""


@dataclass(frozen=True)
class Prepared:
    """A copy of the network in evaluation mode, in the type to compute in."""

    network: nn.Module
    parameters: Mapping[str, Tensor]
    dtype: torch.dtype
    device: torch.device

    def examples(self, inputs: Tensor, what: str) -> Tensor:
        """Return inputs on the device, in the type of the network unless they are integers.

        Raises
        ------
        KernelError
            There are none, or one is not finite.
        """
        if not isinstance(inputs, Tensor):
            raise KernelError(
                f"{what} are a {type(inputs).__name__}; give one tensor, examples first"
            )
        if inputs.ndim == 0 or len(inputs) == 0:
            raise KernelError(
                f"{what} have shape {tuple(inputs.shape)}; give at least one example, (N, ...)"
            )
        inputs = usable(inputs)
        if inputs.is_floating_point():
            if not torch.isfinite(inputs).all():
                raise KernelError(f"{what} hold NaN or infinity; clean the data first")
            return inputs.to(self.device, self.dtype)
        return inputs.to(self.device)

    def count_outputs(self, example: Tensor) -> int:
        """Return O, after a look at what the network makes of one example."""
        with torch.no_grad():
            result = self.network(example)
        if not isinstance(result, Tensor) or result.ndim != 2 or result.shape[0] != 1:
            seen = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise KernelError(
                f"for one example the model returns {seen}; a kernel needs logits of shape (1, C)"
            )
        return result.shape[1]


def prepare(model: nn.Module, parameters: Iterable[str] | None, dtype: torch.dtype) -> Prepared:
    """Copy a model to a type and evaluation mode; the model itself stays as it is.

    Raises
    ------
    KernelError
        BatchNorm in training mode or without running statistics; weights that are not finite;
        an unknown parameter, or none that requires gradients; a model that cannot be copied.
    """
    if dtype not in (torch.float32, torch.float64):
        raise KernelError(f"kernels are computed in float32 or float64, not {dtype}")
    refuse_batch_statistics(model)
    network = copied(model).to(dtype).eval()
    chosen = chosen_parameters(network, parameters)
    for name, weight in network.named_parameters():
        weight.requires_grad_(name in chosen)
    return Prepared(network, chosen, dtype, next(iter(chosen.values())).device)


def chosen_parameters(network: nn.Module, parameters: Iterable[str] | None) -> dict[str, Tensor]:
    """Return the parameters to differentiate by, after a look at all numbers of the network.

    Raises
    ------
    KernelError
        A weight or buffer is not finite; an unknown parameter, or none that requires gradients.
    """
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if not torch.isfinite(tensor).all():
            raise KernelError(f"the model's {name} holds NaN or infinity; load a sound checkpoint")
    trainable = {name: each for name, each in network.named_parameters() if each.requires_grad}
    names = list(trainable) if parameters is None else list(dict.fromkeys(parameters))
    for name in names:
        if name not in trainable:
            raise KernelError(f"no trainable parameter {name!r}{nearest(name, trainable)}")
    if not names:
        raise KernelError("no trainable parameters to differentiate by; unfreeze or name some")
    return {name: trainable[name] for name in names}


def copied(model: nn.Module, *, share_parameters: bool = False) -> nn.Module:
    """Return a copy of a model, with parameters of its own or with the same.

    Raises
    ------
    KernelError
        It holds something that cannot be copied.
    """
    # torch.nn.utils.weight_norm and spectral_norm keep the weight that they made of the parameters,
    # with its graph, which torch does not copy. Each call makes it anew, so its values will do.
    made = {
        id(held): held.detach().clone()
        for module in model.modules()
        for held in vars(module).values()
        if isinstance(held, Tensor) and not held.is_leaf
    }
    if share_parameters:
        made |= {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, made)
    except (RuntimeError, TypeError, ValueError, AttributeError, copy.Error) as error:
        raise KernelError(
            f"the model cannot be copied: {' '.join(str(error).split())}; give one that "
            "copy.deepcopy takes"
        ) from None


def pairing_of(outputs: Outputs) -> Pairing:
    """Return which pairs of outputs a form contracts."""
    return "full" if outputs == "full" else "diagonal"


def directions(outputs: Outputs, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the combinations of a network's outputs that a kernel is taken of, (C, O).

    Raises
    ------
    KernelError
        The network has no such output, or the form is unknown.
    """
    one = torch.eye(count, dtype=dtype, device=device)
    if isinstance(outputs, str):
        if outputs not in get_args(OutputForm):
            raise KernelError(
                f"unknown outputs {outputs!r}{nearest(outputs, get_args(OutputForm))}, "
                "or the number of a logit, or two of them"
            )
        return one.sum(dim=0, keepdim=True) if outputs == "sum" else one
    chosen: list[int] = [outputs] if isinstance(outputs, int) else list(outputs)
    if len(chosen) > 2 or len(set(chosen)) < len(chosen):
        raise KernelError(f"outputs are {outputs}; give one logit, or two for their difference")
    for number in chosen:
        if not 0 <= number < count:
            raise KernelError(f"no output {number}; the model has outputs 0 to {count - 1}")
    if len(chosen) == 1:
        return one[chosen[0]][None]
    return (one[chosen[0]] - one[chosen[1]])[None]


def refuse_batch_statistics(model: nn.Module) -> None:
    """Raise KernelError if BatchNorm uses the statistics of the batch."""
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if module.training:
            raise KernelError(
                f"BatchNorm {name!r} is in training mode, where an output depends on the other "
                "examples of its batch and has no kernel of its own; call model.eval() first"
            )
        if module.running_mean is None:
            raise KernelError(
                f"BatchNorm {name!r} has track_running_stats=False, so its outputs depend on the "
                "other examples of the batch; keep running statistics"
            )
