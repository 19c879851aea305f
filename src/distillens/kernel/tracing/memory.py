"""The bytes of tensors that a computation holds, and those that are free.

The memory of a pass is bounded by the shapes of the tensors that a forward pass saves for its backward
pass (`SavedBytes`). Only if a budget is too small for that bound are the bytes counted operation by
operation (`LiveBytes`), which slows down every operation. Scratch space inside of an operation is not
counted. The time of a pass is measured on a few examples, too.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode


class SavedBytes(saved_tensors_hooks):
    """Sums the bytes that forward passes save for their backward passes while it is entered.

    Parameters
    ----------
    apart
        Tensors that are not counted, such as parameters.
    """

    def __init__(self, apart: Iterable[Tensor]) -> None:
        self._places = {
            each.untyped_storage().data_ptr() for each in apart if each.layout is torch.strided
        }
        self.bytes = 0
        super().__init__(self._keep, lambda kept: kept)

    def _keep(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            self.bytes += tensor.numel() * tensor.element_size()  # an upper bound
            return tensor.detach()
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._places:
            self._places.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        # A function that saved its own output would keep itself alive.
        return tensor.detach()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the live tensors that were created while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Skipping would import the compiler, which takes seconds and is not needed here.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count the storages that it created."""
        result = func(*args, **(kwargs or {}))
        # An operation that returns its arguments or views of them creates no storage.
        if not _returns_views(func):
            for each in result if isinstance(result, (list, tuple)) else [result]:
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

    def _forget(self, place: int, size: int, _: object) -> None:
        self._known.pop(place, None)
        self.now -= size


@cache
def _returns_views(func: Any) -> bool:
    """Return whether an operation returns its arguments or views of them, by its schema."""
    return any(each.alias_info for each in func._schema.returns)


def some_examples(inputs: Tensor, count: int) -> Tensor:
    """Return ``count`` examples, repeating them if there are fewer."""
    return inputs[torch.arange(count, device=inputs.device) % len(inputs)]


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device now."""
    if device.type == "cuda":
        # Memory that torch's allocator reserves but does not use is free, too.
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


Make = Callable[[Tensor, int], object]
"""Makes the gradients of examples in passes of a number of examples."""


@dataclass(frozen=True)
class PassMemory:
    """Bytes that making gradients takes in addition to the gradients that are kept."""

    fixed: int
    each: int
    """For each example of a pass."""


def counted_memory(make: Make, sample: Tensor) -> PassMemory:
    """Return the memory of a pass, counted for one and for two examples."""
    peaks = []
    for count in (1, 2):
        with LiveBytes() as live:
            made = make(some_examples(sample, count), count)
            del made
        peaks.append(live.peak)
    each = max(peaks[1] - peaks[0], 1)
    return PassMemory(max(peaks[0] - each, 0), each)


def timed_pass(make: Make, sample: Tensor, count: int) -> float:
    """Return the seconds of a pass of ``count`` examples."""
    inputs = some_examples(sample, count)
    began = time.perf_counter()
    make(inputs, count)
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
