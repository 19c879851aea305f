"""A stand-in for a CUDA graph on a CPU: operations that are carried out again on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Tape(TorchDispatchMode):
    """Records the operations of a function with their tensors, and repeats them.

    Like a graph it knows nothing of Python: numbers that a step takes from Python are those of the
    captured step for ever, and tensors are read and written where they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def capture(self, body: Callable[[], None]) -> None:
        # A CPU cannot record without carrying out, so the first replay has nothing left to do.
        with self:
            body()

    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:
            return
        with torch.no_grad():
            for func, args, kwargs, before in self._calls:
                inputs = {_memory(each) for each in _tensors((args, kwargs))}
                after = func(*args, **kwargs)
                for old, new in zip(_tensors(before), _tensors(after), strict=True):
                    if _memory(old) not in inputs:
                        old.copy_(new)

    def close(self) -> None:
        self._calls.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, result))
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
