"""Signatures that tell whether a model's structure or weights changed since it was traced."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_TORCH_NAMES = frozenset(vars(nn.Module()))
_HOOKS = sorted(name for name in _TORCH_NAMES if name.endswith("hooks"))
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def structure_signature(model: nn.Module) -> Hashable:
    """Return a value that changes with the structure of a model, but not with its weights' values."""
    modules = [
        (
            name,
            type(module),
            id(getattr(type(module).forward, "__code__", type(module).forward)),
            module.training,
            tuple(
                tuple((key, id(hook)) for key, hook in getattr(module, each).items())
                for each in _HOOKS
            ),
            tuple(
                (key, _value(each)) for key, each in vars(module).items() if key not in _TORCH_NAMES
            ),
        )
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    parameters = [
        (name, id(each), _shape(each), each.requires_grad)
        for name, each in model.named_parameters(remove_duplicate=False)
    ]
    buffers = [(name, _shape(each)) for name, each in model.named_buffers(remove_duplicate=False)]
    return tuple(modules), tuple(parameters), tuple(buffers)


def weights_version(model: nn.Module) -> Hashable:
    """Return a value that changes when a weight or buffer is written to or replaced."""
    tensors: Iterable[Tensor] = (*model.parameters(), *model.buffers())
    return tuple(
        (id(each), each.data_ptr(), each._version)
        if each.layout is torch.strided and not each.is_inference()
        else object()  # equal to no other, since changes of it cannot be detected
        for each in tensors
    )


def _shape(tensor: Tensor) -> Hashable:
    stride = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout, stride


def _value(value: Any) -> Hashable:
    """Return a plain value itself, a container's contents, and any other object's identity."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if type(value) in (list, tuple):
        return type(value), tuple(_value(each) for each in value)
    if type(value) is dict:
        return dict, tuple((_value(key), _value(each)) for key, each in value.items())
    if isinstance(value, FunctionType):
        return id(value), id(value.__code__)
    if isinstance(value, Tensor):
        return id(value), _shape(value)
    return type(value), id(value)
