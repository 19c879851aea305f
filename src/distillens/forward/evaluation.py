"""Forward passes that change neither the network nor its inputs.

Networks of other programs may normalise their inputs in place, may have been left in training mode, may
have parameters of another type than the inputs, or may lie on several devices.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from distillens.errors import ModelError, SupervisionError, one_line
from distillens.forward.sequences import run

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def evaluate(module: nn.Module, inputs: Tensor, further: Mapping[str, Tensor] | None = None) -> Any:
    """Run a network in evaluation mode, without gradients, on a copy of the inputs.

    Afterwards every submodule is in the mode in which it was before.

    Parameters
    ----------
    module
        The network.
    inputs : Tensor
        (B, …). They are moved to the device of the network's first parameter, and floating-point
        inputs are converted to its type.
    further
        Further inputs by name; see `distillens.forward.sequences.run`.

    Returns
    -------
    What the network returns.
    """
    # Parameters on the meta device are offloaded: accelerate's hooks fetch them, and move the inputs.
    places = (p.device for p in module.parameters() if p.device.type != "meta")
    there = inputs.to(next(places, inputs.device))
    with evaluation_mode(module):
        return run(module, own_inputs(there, input_type(module)), further)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode; restore the mode of every submodule afterwards.

    Raises
    ------
    ModelError
        It has no evaluation mode, as the module of an exported program.
    """
    modes = [(each, each.training) for each in module.modules()]
    try:
        if any(training for _, training in modes):
            module.eval()
    except NotImplementedError as error:
        raise ModelError(
            f"a {type(module).__name__} cannot be put into evaluation mode ({error}); give the module "
            "that it was exported from, or its logits as RecordedTeacher(logits)"
        ) from None
    try:
        yield
    finally:
        # By train() where possible: layers such as LoRA's merge and split their weights in it.
        for each, training in modes:
            if each.training != training:
                each.train(training)
        for each, training in modes:
            if each.training != training:
                each.training = training


def frozen_statistics(module: nn.Module) -> list[nn.Module]:
    """Return the normalisation layers in evaluation mode whose parameters are all frozen.

    Their running statistics belong to a frozen part of the network and are to stay as they are.
    """
    found = []
    for each in module.modules():
        frozen = [not parameter.requires_grad for parameter in each.parameters(recurse=False)]
        statistics = getattr(each, "running_mean", None)
        if isinstance(statistics, Tensor) and not each.training and frozen and all(frozen):
            found.append(each)
    return found


def train_mode(module: nn.Module, frozen: list[nn.Module]) -> None:
    """Put a network into training mode, all but its frozen layers."""
    module.train()
    for each in frozen:
        each.eval()


def input_type(module: nn.Module) -> torch.dtype | None:
    """Return the type of a network's first floating-point parameter.

    A complex parameter counts as its real type. None for a network without such parameters, for
    example a quantised one.
    """
    for parameter in module.parameters():
        kind = parameter.dtype.to_real() if parameter.is_complex() else parameter.dtype
        if kind in _FLOATS:
            return kind
    return None


def own_inputs(inputs: Tensor, kind: torch.dtype | None) -> Tensor:
    """Return a copy of a batch's inputs that a network may modify.

    Parameters
    ----------
    inputs : Tensor
        (B, …).
    kind
        The floating-point type that the network computes in; None keeps that of the inputs. Inputs
        of other types, for example tokens, keep theirs.
    """
    wanted = kind if kind is not None and inputs.is_floating_point() else inputs.dtype
    return inputs.detach().to(wanted, copy=True)


def make_gradients_dense(parameters: Iterable[Tensor]) -> None:
    """Make sparse gradients dense, as those of ``Embedding(sparse=True)``.

    Momentum, Adam and fused steps have no sparse form.
    """
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.layout is not torch.strided:
            parameter.grad = parameter.grad.to_dense()


def shares_tensors(module: nn.Module, student: nn.Module) -> bool:
    """Return whether training ``student`` would change tensors that ``module`` uses as well.

    The student's trainable parameters and its persistent buffers, such as the statistics of
    BatchNorm, change in training.
    """
    moving = {
        _memory(tensor)
        for tensor in student.state_dict(keep_vars=True).values()
        if isinstance(tensor, Tensor)
        and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
    }
    return any(_memory(tensor) in moving for tensor in chain(module.parameters(), module.buffers()))


def copied(module: nn.Module) -> nn.Module:
    """Return a copy of a teacher that shares no memory with it.

    Raises
    ------
    SupervisionError
        The module cannot be copied.
    """
    try:
        own = copy.deepcopy(module)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        raise SupervisionError(
            "the teacher shares weights with the student and cannot be copied "
            f"({one_line(error)[:120]}); build the teacher a second time, so that training the student "
            "does not change it"
        ) from None
    own.zero_grad(set_to_none=True)
    return own


def _memory(tensor: Tensor) -> tuple[str, int]:
    try:
        address = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        # Tensors without a storage of their own, for example sparse ones and subclasses.
        address = 0
    return (str(tensor.device), address) if address else ("object", id(tensor))


def bring(module: nn.Module, device: torch.device) -> None:
    """Move a teacher to a device, unless it is quantised or spread over several devices."""
    places = {tensor.device for tensor in chain(module.parameters(), module.buffers())}
    if places <= {device}:
        return
    spread = len({parameter.device for parameter in module.parameters()}) > 1
    if not (spread or any(_is_placed(each) for each in module.modules())):
        module.to(device)


def _is_placed(module: nn.Module) -> bool:
    # Set by transformers and accelerate on networks that were dispatched or quantised as they loaded.
    names = ("hf_device_map", "_hf_hook", "is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit")
    return any(bool(getattr(module, name, None)) for name in names)
