"""The parts of a user's loader, and the states of the random generators that they hold."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillens.errors import DataError

MAX_DEPTH = 6
"""Depth of the search for parts of a loader: loader, dataset, transforms, one of them, ..."""
MAX_ITEMS = 64
"""Longer lists hold examples rather than parts."""

_NO_PARTS = (
    Tensor, np.ndarray, nn.Module, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType,
    str, bytes, int, float,
)  # fmt: skip

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def loader_parts(loader: Any) -> Iterator[tuple[str, Any]]:
    """Yield a loader and the objects that it consists of: samplers, datasets, transforms, generators.

    Yields
    ------
    The path from the loader, such as ``loader.sampler.generator``, and the object; each object once.
    """
    waiting: deque[tuple[str, Any, int]] = deque([("loader", loader, 0)])
    seen: set[int] = set()
    while waiting:
        path, part, depth = waiting.popleft()
        if id(part) in seen or part is None or isinstance(part, _NO_PARTS):
            continue
        seen.add(id(part))
        yield path, part
        if depth < MAX_DEPTH and not isinstance(part, _GENERATORS):
            waiting.extend((f"{path}.{name}", each, depth + 1) for name, each in _inside(part))


def _inside(part: Any) -> list[tuple[str, Any]]:
    if isinstance(part, (list, tuple)):
        return [(str(place), each) for place, each in enumerate(part)] if _few(part) else []
    if isinstance(part, dict):
        return [(str(name), each) for name, each in part.items()] if _few(part) else []
    # The running iterator of persistent workers is made anew after an interruption.
    inside = getattr(part, "__dict__", {})
    return [(name, each) for name, each in inside.items() if name != "_iterator"]


def _few(items: Any) -> bool:
    return len(items) <= MAX_ITEMS


def generator_states(loader: Any) -> dict[str, Any]:
    """Return the state of each random generator in a loader, by its path."""
    return {path: _state(part) for path, part in loader_parts(loader) if _is_generator(part)}


def restore_generators(loader: Any, states: dict[str, Any]) -> None:
    """Restore states that `generator_states` returned.

    Raises
    ------
    DataError
        The loader holds other generators than the one whose states these are.
    """
    generators = {path: part for path, part in loader_parts(loader) if _is_generator(part)}
    if set(generators) != set(states):
        raise DataError(
            f"the loader holds the random generators {sorted(generators)}, the saved state is of "
            f"{sorted(states)}; build the loader as it was built for the interrupted training"
        )
    for path, generator in generators.items():
        state = states[path]
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(state)
        else:
            generator.setstate(state)


def _is_generator(part: Any) -> bool:
    return isinstance(part, _GENERATORS) and not isinstance(part, random.SystemRandom)


def _state(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return generator.getstate()


def _plain(value: Any) -> Any:
    """Return a state with its arrays as lists, which a file of tensors and plain values may hold."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
