"""A network whose calls do not affect each other.

Shapes: B examples, O outputs.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only

from distillens.errors import KernelError
from distillens.forward.sequences import SequenceModel, is_text_model
from distillens.kernel.tracing.precision import OnePrecision, stand_ins

_TORCH_NAMES = frozenset(vars(nn.Module()))
"""Attributes of a module that torch itself uses."""


class IsolatedNetwork(nn.Module):
    """A copy of a network whose calls are independent of each other, in one type.

    Each call receives a copy of its inputs, which the network may change. State that the network
    changes in its modules during a call (counters, caches, statistics) is restored. Types are
    replaced by `OnePrecision`, and the logits are extracted from whatever structure the network
    returns. Parameters and buffers have the network's own names.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.reduced: set[str] = set()
        """Descriptions of what the model would have computed in less than float32."""
        self.altered_embeddings: set[str] = set()
        """Names of arguments with which an embedding of the model differs from its function."""
        self.keeps_state = True
        """Whether calls change the network's modules; assumed until a call shows that they do not."""
        self.in_autocast = False
        """Whether functions of the network would run their backward pass under autocast."""
        self._held: set[torch.dtype] = set()
        self.as_type(dtype)

    def as_type(self, dtype: torch.dtype) -> IsolatedNetwork:
        """Convert the network's tensors; complex tensors stay complex, integers stay integers."""
        kinds = stand_ins(dtype)
        self._held |= {each.dtype for each in self.model.parameters()}
        # A more precise type is replaced only if the network has parameters of that type.
        self._types = {
            each: kind
            for each, kind in kinds.items()
            if each.itemsize < kind.itemsize or each in self._held
        }

        def converted(tensor: Tensor) -> Tensor:
            return tensor.to(kinds[tensor.dtype]) if tensor.dtype in kinds else tensor

        self.model._apply(converted)
        for module in self.model.modules():
            for name, held in _own_attributes(module).items():
                if any(each.dtype in kinds for each in held_tensors(held)):
                    vars(module)[name] = tree_map_only(Tensor, converted, held)
        self.dtype = dtype
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the network's parameters with its own names."""
        return self.model.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield the network's buffers with its own names."""
        return self.model.named_buffers(*args, **kwargs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, (B, O)."""
        return self.with_weights(None, inputs)

    def with_weights(self, weights: Mapping[str, Tensor] | None, inputs: Tensor) -> Tensor:
        """Return the logits, (B, O), with the given weights in place of the network's own."""
        state = _BorrowedState(self.model) if self.keeps_state else None
        try:
            with OnePrecision(
                self._types, inputs.device.type, self.reduced, self.altered_embeddings
            ):
                given = inputs.clone()
                model, prefix = self.model, ""
                if is_text_model(model) and not inputs.is_floating_point():
                    model, prefix = SequenceModel(model), "network."
                named = {f"{prefix}{name}": each for name, each in (weights or {}).items()}
                result = functional_call(model, named, (given,)) if named else model(given)
        finally:
            changed = state is not None and state.restore()
        self.keeps_state = changed
        logits = logits_of(result, len(inputs)).to(self.dtype)
        if self.in_autocast:
            leave_autocast(logits)
        return logits

    def trace(self, inputs: Tensor, originals: Mapping[str, nn.Parameter]) -> Tensor:
        """Return the logits, (B, O), with their graph, and note what the call changes and uses.

        Raises
        ------
        KernelError
            The logits depend on parameters of the model that the network was copied from.
        """
        self.keeps_state = True  # until this call shows that it does not
        with torch.enable_grad():
            logits = self(inputs)
        names = {id(parameter): name for name, parameter in originals.items()}
        for node in _graph(logits):
            if (name := names.get(id(getattr(node, "variable", None)))) is not None:
                raise KernelError(
                    f"a function of the model refers to its parameter {name!r} by itself (a hook "
                    "or a closure that holds the model), which copying the model cannot follow; "
                    "take the parameter from the module that the function is given"
                )
        self.in_autocast = leave_autocast(logits)
        return logits


def leave_autocast(logits: Tensor) -> bool:
    """Run the backward pass of functions that saved autocast without it; return whether any did.

    `torch.amp.custom_bwd` enters autocast again if `torch.amp.custom_fwd` saw it.
    """
    found = [node for node in _graph(logits) if getattr(node, "_fwd_used_autocast", False)]
    for node in found:
        node._fwd_used_autocast = False
    return bool(found)


def _graph(tensor: Tensor) -> Iterator[Any]:
    """Yield the nodes of a tensor's graph."""
    seen: set[Any] = set()
    left: list[Any] = [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left.extend(following for following, _ in node.next_functions)


def logits_of(result: Any, examples: int) -> Tensor:
    """Return the logits (B, O) among what a network returned for a number of examples.

    Accepted are a tensor of shape (B, O), (B, O, 1, …) or (B,), a mapping or an object with
    ``logits``, and a tuple in which one element has such a shape.

    Raises
    ------
    KernelError
        There are no logits, several tensors could be the logits, or the logits are complex.
    """
    found = getattr(result, "logits", None)
    if isinstance(result, Mapping) and "logits" in result:
        found = result["logits"]
    elif found is None:
        found = result
    if found is result and isinstance(result, (tuple, list)):
        candidates = [each for each in result if _flat(each, examples) is not None]
        found = candidates[0] if len(candidates) == 1 else result
    logits = _flat(found, examples)
    if logits is None:
        raise KernelError(
            f"for {counted(examples)} the model returns {_described(found)}; a kernel needs "
            f"logits of shape ({examples}, C): wrap the model in one that returns them"
        )
    if logits.is_complex():
        raise KernelError(
            "the model returns complex logits, of which a kernel is not defined; return their "
            "real part or absolute value"
        )
    return logits


def _flat(value: Any, examples: int) -> Tensor | None:
    """Return a value as (B, O) if it has that shape, possibly with trailing axes of size 1."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return None
    while value.ndim > 2 and value.shape[-1] == 1:
        value = value.squeeze(-1)
    if value.ndim == 0 and examples == 1:
        value = value[None]
    if value.ndim == 1 and len(value) == examples:
        value = value[:, None]
    return value if value.ndim == 2 and len(value) == examples else None


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = "" if value.is_floating_point() else f" of {value.dtype}"
        return f"{tuple(value.shape)}{kind}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(_described(each) for each in value)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(str, value))}"
    return f"a {type(value).__name__}"


def counted(count: int) -> str:
    """Return a number of examples in words."""
    return "one example" if count == 1 else f"{count} examples"


def held_tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a value and in the containers inside of it."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: each for name, each in vars(module).items() if name not in _TORCH_NAMES}


class _BorrowedState:
    """Copies of the state in a network's modules, which a call may change.

    Parameters are not copied, nor are objects of other classes than tensors and containers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._copies: dict[int, Tensor] = {}
        self._places: list[tuple[dict[str, Any], bool, dict[str, Any], dict[str, Any], Any]] = []
        for module in model.modules():
            for place, own in ((vars(module), True), (module._buffers, False)):
                held = _own_attributes(module) if own else dict(place)
                borrowed = {name: self._borrowed(each) for name, each in held.items()}
                place.update(borrowed)
                # The borrowed values are kept, so that no other object gets the identity of one.
                self._places.append((place, own, held, borrowed, _identities(borrowed)))

    def restore(self) -> bool:
        """Restore the modules' own state; return whether the call changed its copy."""
        changed = any(tensor._version > 0 for tensor in self._copies.values())
        for place, own, held, _, identities in self._places:
            now = {n: each for n, each in place.items() if not own or n not in _TORCH_NAMES}
            changed = changed or _identities(now) != identities
            for name in now.keys() - held.keys():
                del place[name]
            place.update(held)
        return changed

    def _borrowed(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if isinstance(value, nn.Parameter) or value.requires_grad:
                return value
            if id(value) not in self._copies:
                self._copies[id(value)] = value.clone()
            return self._copies[id(value)]
        if isinstance(value, (list, dict, set, deque)):
            return copy.copy(value)
        return value


def _identities(values: dict[str, Any]) -> dict[str, Any]:
    """Return a value that changes if one of the values is replaced, or a container's contents change."""

    def inside(value: Any) -> Any:
        if isinstance(value, dict):
            return [(id(key), id(each)) for key, each in value.items()]
        return [id(each) for each in value] if isinstance(value, (list, set, deque)) else None

    return {name: (id(each), inside(each)) for name, each in values.items()}
