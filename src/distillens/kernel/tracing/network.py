"""Preparing a network: it is validated, copied and converted, and its parameters are selected.

Shapes: B examples, O outputs of the network.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distillens.errors import DistillensError, KernelError, nearest
from distillens.forward.device_errors import ran_out_of_memory
from distillens.forward.sequences import check_marked, is_text_model
from distillens.kernel.tracing.directions import Directions, Outputs, directions
from distillens.kernel.tracing.gradients import real_numbers
from distillens.kernel.tracing.isolated import IsolatedNetwork, counted, held_tensors
from distillens.kernel.tracing.memory import LiveBytes, SavedBytes
from distillens.kernel.tracing.signature import structure_signature, weights_version

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class ForwardSize:
    """The size of a network's forward pass."""

    outputs: int
    """O."""
    saved_bytes: int
    """What the pass of an example saves for the backward pass, without parameters and buffers."""


@dataclass(frozen=True)
class Prepared:
    """A copy of a model in evaluation mode and in the type to compute in."""

    network: IsolatedNetwork
    parameters: Mapping[str, Tensor]
    dtype: torch.dtype
    device: torch.device
    originals: Mapping[str, nn.Parameter]
    """Parameters of the model itself, which closures may keep alive longer than the model."""
    model: ref[nn.Module]
    """The model itself."""
    structure: Hashable
    """Changes with the structure of the model, the type, the device and the chosen parameters."""
    version: Hashable
    """Changes when a weight of the model is written to."""
    _sizes: dict[torch.Size, ForwardSize] = field(default_factory=dict)

    def examples(self, inputs: Tensor, what: str) -> Tensor:
        """Return inputs on the device, converted to the type of the network unless they are integers.

        Raises
        ------
        KernelError
            There are no examples, or a number is not finite.
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
        # Autograd cannot save inference tensors.
        inputs = inputs.clone() if inputs.is_inference() else inputs.detach()
        if inputs.is_floating_point() or inputs.is_complex():
            if not torch.isfinite(inputs).all():
                raise KernelError(f"{what} hold NaN or infinity; clean the data first")
            kind = self.dtype.to_complex() if inputs.is_complex() else self.dtype
            return inputs.to(self.device, kind)
        if is_text_model(self.network.model) and inputs.ndim == 2:
            check_marked(self.network.model, inputs)
        return inputs.to(self.device)

    def measure(self, examples: Tensor) -> tuple[ForwardSize, Tensor]:
        """Return the size of the forward pass of examples, (B, …), and their logits with their graph.

        Raises
        ------
        KernelError
            The network fails, or does not return logits (B, O).
        """
        saved = SavedBytes((*self.network.parameters(), *self.network.buffers()))
        shape, kind = tuple(examples.shape), _name(examples.dtype)
        where = f"on {counted(len(examples))} of shape {shape} in {kind}"
        try:
            with explained(where), saved:
                logits = self.network.trace(examples, self.originals)
            saved_bytes = saved.bytes
        except KernelError as error:
            # A forward that calls torch.func itself does not allow hooks; its live tensors are counted.
            if "saved tensor hooks" not in str(error):
                raise
            with explained(where), LiveBytes() as live:
                logits = self.network.trace(examples, self.originals)
            saved_bytes = live.peak
        return ForwardSize(logits.shape[1], -(-saved_bytes // len(examples))), logits

    def pair(self, inputs: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the examples of a Gram's rows and columns; they are the same if ``other`` is None.

        Raises
        ------
        KernelError
            As of `examples`, or the shapes of the two sets differ.
        """
        rows = self.examples(inputs, "inputs")
        columns = rows if other is None else self.examples(other, "other inputs")
        if rows.shape[1:] != columns.shape[1:]:
            raise KernelError(
                f"inputs of shape {tuple(rows.shape)} and others of shape {tuple(columns.shape)} "
                "do not fit; examples must have one shape"
            )
        return rows, columns

    def size(self, rows: Tensor) -> ForwardSize:
        """Return the size of the forward pass of such examples, measured once; see `measure`."""
        shape = rows.shape[1:]
        if shape not in self._sizes:
            self._sizes[shape] = self.measure(rows[:1])[0]
        return self._sizes[shape]

    def begin(self, rows: Tensor, numbers_R: Tensor) -> Tensor | None:
        """Return the logits of some examples with their graph if `size` has to be measured.

        None if it is known already, or if the network fails on these examples: `size` then raises.
        """
        shape = rows.shape[1:]
        if shape in self._sizes:
            return None
        try:
            self._sizes[shape], logits_RO = self.measure(rows[numbers_R])
        except KernelError:
            return None
        return logits_RO

    def directions(self, outputs: Outputs, rows: Tensor) -> Directions:
        """Return the combinations of the network's outputs that a kernel is taken of.

        Raises
        ------
        KernelError
            As of `measure`, or the network has no such output.
        """
        return directions(outputs, self.size(rows).outputs, self.dtype, self.device)

    @property
    def numbers(self) -> int:
        """How many real numbers the parameters have."""
        return sum(real_numbers(each) for each in self.parameters.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on types that the network would have computed in."""
        if not self.network.reduced:
            return ()
        return (
            f"the model's forward uses {' and '.join(sorted(self.network.reduced))}; the kernel is "
            f"that of the same network computed in {_name(self.dtype)} throughout",
        )


def prepare(model: nn.Module, parameters: Iterable[str] | None, dtype: torch.dtype) -> Prepared:
    """Return a copy of a model in a type and in evaluation mode; the model itself is not changed.

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
    inner, prefix = _unwrapped(model)
    _refuse(inner)
    structure, version = structure_signature(inner), weights_version(inner)
    network = IsolatedNetwork(copied(inner).eval(), dtype)
    if parameters is not None:
        parameters = [parameters] if isinstance(parameters, str) else parameters
        parameters = [name.removeprefix(prefix) for name in parameters]
    chosen = _chosen_parameters(network, parameters)
    for name, weight in network.named_parameters():
        if weight.is_floating_point() or weight.is_complex():
            weight.requires_grad_(name in chosen)
    device = next(iter(chosen.values())).device
    return Prepared(
        network,
        chosen,
        dtype,
        device,
        WeakValueDictionary(inner.named_parameters()),
        ref(inner),
        (structure, dtype, device, tuple(chosen)),
        version,
    )


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn an exception of a model into an error that names the place of the failure.

    Raises
    ------
    KernelError
        The body raised anything except for an error of exhausted memory.
    """
    try:
        yield
    except DistillensError:
        raise
    except Exception as error:
        # A model may raise anything.
        if ran_out_of_memory(error):
            raise
        text = " ".join(str(error).split()) or "no message"
        raise KernelError(f"the model fails {where}: {type(error).__name__}: {text}") from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """Return a model without torch's wrappers, and the prefix that they add to its names."""
    prefix = ""
    while True:
        name = "_orig_mod" if hasattr(model, "_orig_mod") else "module"
        wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
        if name == "module" and not isinstance(model, wrappers):
            return model, prefix
        model, prefix = getattr(model, name), f"{prefix}{name}."


def _chosen_parameters(network: nn.Module, parameters: Iterable[str] | None) -> dict[str, Tensor]:
    """Return the parameters to differentiate by, after checking that all numbers are finite.

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
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        # Masks may hold infinity in buffers and frozen parameters.
        if tensor.layout is not torch.strided:
            tensor = tensor.to_sparse().coalesce().values()
        sound = torch.isfinite(tensor) if name in names else ~torch.isnan(tensor)
        if not sound.all():
            what = "NaN or infinity" if name in names else "NaN"
            raise KernelError(f"the model's {name} holds {what}; load a sound checkpoint")
    return {name: known[name] for name in names}


def copied(model: Model, *, share_parameters: bool = False) -> Model:
    """Return a copy of a model, with its own parameters or sharing those of the model.

    Raises
    ------
    KernelError
        The model holds something that cannot be copied.
    """
    # torch.nn.utils.weight_norm and spectral_norm keep the weight that they computed, with its graph,
    # which torch cannot copy. Each call computes it again, so its values suffice.
    made = {
        id(held): held.detach().clone()
        for module in model.modules()
        for held in held_tensors(vars(module))
        if not held.is_leaf
    }
    # copy.deepcopy spends most of its time on empty containers, such as those of hooks.
    made |= {
        id(held): type(held)()
        for module in model.modules()
        for held in vars(module).values()
        if type(held) in (dict, OrderedDict, set) and not held
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


def _refuse(model: nn.Module) -> None:
    """Raise KernelError if a model cannot be differentiated or uses the statistics of the batch.

    Raises
    ------
    KernelError
        A module is TorchScript or quantised; BatchNorm is in training mode or has no running statistics;
        a weight is on the meta device or not initialised.
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
        if isinstance(module, _BatchNorm) and module.training:
            raise KernelError(
                f"BatchNorm {name!r} is in training mode, where an output depends on the other "
                "examples of its batch and has no kernel of its own; call model.eval() first"
            )
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise KernelError(
                f"BatchNorm {name!r} has track_running_stats=False, so its outputs depend on the "
                "other examples of the batch; keep running statistics"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise KernelError(
                f"{name} is not initialised yet; call the lazy module on an example first"
            )
        if tensor.is_meta:
            raise KernelError(f"{name} is on the meta device and has no values; load weights first")
