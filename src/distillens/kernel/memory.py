"""How many bytes of tensors some work holds at once, and how many are free.

What a pass takes is bounded by the shapes of what a forward pass keeps for its backward pass
(`SavedBytes`). Only where a budget is too tight for that bound are the bytes counted, operation by
operation (`LiveBytes`), which slows down every operation. Scratch space inside an operation is not
seen.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode


class SavedBytes(saved_tensors_hooks):
    """Adds up the bytes that forward passes keep for their backward passes while it is entered.

    Parameters
    ----------
    apart
        Tensors that do not count, such as parameters.
    """

    def __init__(self, apart: Iterable[Tensor]) -> None:
        self._places = {
            each.untyped_storage().data_ptr() for each in apart if each.layout is torch.strided
        }
        self.bytes = 0
        super().__init__(self._keep, lambda kept: kept)

    def _keep(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            self.bytes += tensor.numel() * tensor.element_size()  # at most
            return tensor.detach()
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._places:
            self._places.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        # A function that kept its own output would keep itself alive.
        return tensor.detach()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is entered, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        self._views: dict[Any, bool] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Skipping would import the compiler, which takes seconds and has nothing to do here.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Carry out an operation and count the storages that it made."""
        result = func(*args, **(kwargs or {}))
        # What returns its arguments or views of them makes nothing.
        if self._returns_views(func):
            return result
        if isinstance(result, Tensor):
            self._note(result)
        elif isinstance(result, (list, tuple)):
            for each in result:
                if isinstance(each, Tensor):
                    self._note(each)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        size = storage.nbytes()
        self._known[place] = weakref.ref(storage, partial(self._forget, place, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _returns_views(self, func: Any) -> bool:
        """Whether an operation returns its arguments or views of them, by its schema."""
        if func not in self._views:
            self._views[func] = any(each.alias_info for each in func._schema.returns)
        return self._views[func]

    def _forget(self, place: int, size: int, _: object) -> None:
        self._known.pop(place, None)
        self.now -= size


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes of tensors that some work holds at once, its result included."""
    with LiveBytes() as live:
        result = work()
        del result
    return live.peak


def some_examples(inputs: Tensor, count: int) -> Tensor:
    """Return so many examples, repeated where there are fewer."""
    return inputs[torch.arange(count, device=inputs.device) % len(inputs)]


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device now."""
    if device.type == "cuda":
        # What torch's allocator holds but does not use is free, too.
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
