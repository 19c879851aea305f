"""A network made ready for its kernel: copied, checked, its outputs and parameters chosen.

Shapes: B examples, O outputs of the network, C combinations of them.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distillens.errors import DistillensError, KernelError, nearest
from distillens.forward.sequences import check_marked, is_text_model
from distillens.kernel.called import CalledNetwork, held_tensors
from distillens.kernel.failures import ran_out_of_memory
from distillens.kernel.grad_mode import usable
from distillens.kernel.memory import LiveBytes, SavedBytes
from distillens.kernel.structure import built_as, state_of

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class First:
    """What one or two examples show of a network."""

    outputs: int
    """O."""
    kept_bytes: int
    """What a forward pass of an example keeps for a backward pass, parameters and buffers apart."""


@dataclass(frozen=True)
class Prepared:
    """A copy of the network in evaluation mode, in the type to compute in."""

    network: CalledNetwork
    parameters: Mapping[str, Tensor]
    dtype: torch.dtype
    device: torch.device
    originals: Mapping[str, nn.Parameter]
    """Parameters of the model that this is a copy of."""
    model: ref[nn.Module]
    """The model itself."""
    built: Hashable
    """What tells whether the model is built as it was, and what counts of it: `structure.built_as`."""
    state: Hashable
    """What changes when its weights do: `structure.state_of`."""

    def examples(self, inputs: Tensor, what: str) -> Tensor:
        """Return inputs on the device, in the type of the network unless they are integers.

        Raises
        ------
        KernelError
            There are none, or one is not finite.
        ModelError
            Tokens for a bare text model end in its ``pad_token_id``.
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
        if inputs.is_floating_point() or inputs.is_complex():
            if not torch.isfinite(inputs).all():
                raise KernelError(f"{what} hold NaN or infinity; clean the data first")
            kind = self.dtype.to_complex() if inputs.is_complex() else self.dtype
            return inputs.to(self.device, kind)
        if is_text_model(self.network.model) and inputs.ndim == 2:
            check_marked(self.network.model, inputs)
        return inputs.to(self.device)

    def first(self, examples: Tensor) -> tuple[First, Tensor]:
        """Return what examples, (B, …), show of the network, and their logits with their graph.

        Raises
        ------
        KernelError
            The network fails, or what it returns holds no logits (B, O).
        """
        saved = SavedBytes((*self.network.parameters(), *self.network.buffers()))
        count = "one example" if len(examples) == 1 else f"{len(examples)} examples"
        where = f"on {count} of shape {tuple(examples.shape)} in {_name(examples.dtype)}"
        try:
            with explained(where), saved:
                logits = self.network.look(examples, self.originals)
            kept = saved.bytes
        except KernelError as error:
            # A forward that calls torch.func itself bears no hooks; what it makes is counted.
            if "saved tensor hooks" not in str(error):
                raise
            with explained(where), LiveBytes() as live:
                logits = self.network.look(examples, self.originals)
            kept = live.peak
        return First(logits.shape[1], -(-kept // len(examples))), logits

    def count_outputs(self, example: Tensor) -> int:
        """Return O; for the errors see `first`."""
        return self.first(example)[0].outputs

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the types that the network would have computed in."""
        if not self.network.reduced:
            return ()
        return (
            f"the model's forward uses {' and '.join(sorted(self.network.reduced))}; the kernel is "
            f"that of the same network computed in {_name(self.dtype)} throughout",
        )


def prepare(model: nn.Module, parameters: Iterable[str] | None, dtype: torch.dtype) -> Prepared:
    """Copy a model to a type and evaluation mode; the model itself stays as it is.

    Raises
    ------
    KernelError
        BatchNorm in training mode or without running statistics; weights that are not finite;
        an unknown parameter, or none that requires gradients; a model that cannot be copied or
        differentiated.
    """
    if dtype not in (torch.float32, torch.float64):
        raise KernelError(f"kernels are computed in float32 or float64, not {dtype}")
    if not isinstance(model, nn.Module):
        raise KernelError(f"a kernel is of a torch.nn.Module, got {type(model).__name__}")
    inner, prefix = unwrapped(model)
    refuse_without_derivatives(inner)
    refuse_batch_statistics(inner)
    built, state = built_as(inner), state_of(inner)
    network = CalledNetwork(copied(inner).eval(), dtype)
    if parameters is not None:
        parameters = [parameters] if isinstance(parameters, str) else parameters
        parameters = [name.removeprefix(prefix) for name in parameters]
    chosen = chosen_parameters(network, parameters)
    for name, weight in network.named_parameters():
        if weight.is_floating_point() or weight.is_complex():
            weight.requires_grad_(name in chosen)
    originals = WeakValueDictionary(inner.named_parameters())
    device = next(iter(chosen.values())).device
    return Prepared(
        network,
        chosen,
        dtype,
        device,
        originals,
        ref(inner),
        (built, dtype, device, tuple(chosen)),
        state,
    )


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what a model raises into an error that says where it failed.

    Raises
    ------
    KernelError
        The body raised anything but for memory that ran out.
    """
    try:
        yield
    except DistillensError:
        raise
    except Exception as error:
        # A model may raise anything.
        if ran_out_of_memory(error):
            raise
        said = " ".join(str(error).split()) or "no message"
        raise KernelError(f"the model fails {where}: {type(error).__name__}: {said}") from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """Return a model without what torch wraps around it, and what that put before its names."""
    prefix = ""
    while True:
        name = "_orig_mod" if hasattr(model, "_orig_mod") else "module"
        wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
        if name == "module" and not isinstance(model, wrappers):
            return model, prefix
        model, prefix = getattr(model, name), f"{prefix}{name}."


def chosen_parameters(network: nn.Module, parameters: Iterable[str] | None) -> dict[str, Tensor]:
    """Return the parameters to differentiate by, after a look at all numbers of the network.

    Frozen parameters count if they are named.

    Raises
    ------
    KernelError
        A weight or buffer is not finite; an unknown parameter, or none that requires gradients.
    """
    known = {
        name: each
        for name, each in network.named_parameters()
        if each.is_floating_point() or each.is_complex()
    }
    trainable = [name for name, each in known.items() if each.requires_grad]
    names = trainable if parameters is None else list(dict.fromkeys(parameters))
    for name in names:
        if name not in known:
            raise KernelError(f"no parameter {name!r}{nearest(name, known)}")
    if not names:
        raise KernelError("no trainable parameters to differentiate by; unfreeze or name some")
    every = [*network.named_parameters(), *network.named_buffers()]
    # A sum is finite only if all numbers are; where one is not, each tensor is looked at.
    sums = [tensor.detach().sum().double() for _, tensor in every if not tensor.is_complex()]
    together = len(sums) == len(every) and len({each.device for each in sums}) == 1
    if together and torch.isfinite(torch.stack(sums)).all():
        every = []
    for name, tensor in every:
        # Masks hold infinity, which no training moves.
        sound = torch.isfinite(tensor) if name in names else ~torch.isnan(tensor)
        if not sound.all():
            what = "NaN or infinity" if name in names else "NaN"
            raise KernelError(f"the model's {name} holds {what}; load a sound checkpoint")
    return {name: known[name] for name in names}


def copied(model: Model, *, share_parameters: bool = False) -> Model:
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
        for held in held_tensors(vars(module))
        if not held.is_leaf
    }
    # copy.deepcopy takes most of its time for empty containers, such as those of hooks, and for tensors.
    # Tensors that share their memory are left to it.
    made |= {
        id(held): type(held)()
        for module in model.modules()
        for held in vars(module).values()
        if type(held) in (dict, OrderedDict, set) and not held
    }
    tensors = {
        id(each): each
        for each in (*model.parameters(), *model.buffers())
        if type(each) in (Tensor, nn.Parameter) and each.layout is torch.strided
    }
    places = Counter(each.untyped_storage().data_ptr() for each in tensors.values())
    made |= {
        key: each.detach().clone().requires_grad_(each.requires_grad)
        for key, each in tensors.items()
        if type(each) is Tensor and each.is_leaf and _alone(each, places)
    }
    made |= {
        key: nn.Parameter(each.detach().clone(), each.requires_grad)
        for key, each in tensors.items()
        if type(each) is nn.Parameter and not vars(each) and _alone(each, places)
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


def _alone(tensor: Tensor, places: Mapping[int, int]) -> bool:
    """Whether a tensor has all of its memory to itself, in the order of its axes."""
    storage = tensor.untyped_storage()
    return (
        places[storage.data_ptr()] == 1
        and storage.nbytes() == tensor.numel() * tensor.element_size()
        and tensor.is_contiguous()
        and tensor.grad is None
        and not tensor._backward_hooks
    )


def refuse_without_derivatives(model: nn.Module) -> None:
    """Raise KernelError if a model cannot be differentiated as it is.

    Raises
    ------
    KernelError
        It is a TorchScript or quantised module, on the meta device, or not initialised.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise KernelError(
                f"{f'module {name!r}' if name else 'the model'} is a TorchScript module, whose "
                "calls cannot be followed; give the Python module that it was made of"
            )
        if ".quantized" in type(module).__module__:
            raise KernelError(
                f"module {name!r} is quantised and has no derivative by its weights; give the "
                "floating-point model"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise KernelError(
                f"{name} is not initialised yet; call the lazy module on an example first"
            )
        if tensor.is_meta:
            raise KernelError(f"{name} is on the meta device and has no values; load weights first")


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
