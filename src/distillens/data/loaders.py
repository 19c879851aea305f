"""A user's own loader as a source of batches, and the random states of its parts."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillens.data.batches import Batch
from distillens.data.labels import class_labels, counting_mask
from distillens.errors import DataError
from distillens.files.arrays import native
from distillens.forward.device_errors import checked_device

MAX_DEPTH = 6
"""Depth of the search for parts of a loader: loader, dataset, transforms, one of them, ..."""
MAX_ITEMS = 64
"""Longer lists hold examples rather than parts."""

_NO_PARTS = (
    Tensor, np.ndarray, nn.Module, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType,
    str, bytes, int, float,
)  # fmt: skip

_GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    np.random.Generator: (
        lambda generator: _plain(generator.bit_generator.state),
        lambda generator, state: setattr(generator.bit_generator, "state", state),
    ),
    np.random.RandomState: (
        lambda generator: _plain(generator.get_state(legacy=False)),
        np.random.RandomState.set_state,
    ),
    random.Random: (random.Random.getstate, random.Random.setstate),
}
"""Functions that return and set the state of a random generator."""


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
        if depth < MAX_DEPTH and _accessors(part) is None:
            waiting.extend((f"{path}.{name}", each, depth + 1) for name, each in _inside(part))


def _inside(part: Any) -> list[tuple[str, Any]]:
    if isinstance(part, (list, tuple)):
        part = dict(enumerate(part))
    if isinstance(part, dict):
        return [(str(name), each) for name, each in part.items()] if len(part) <= MAX_ITEMS else []
    # The running iterator of persistent workers is made anew after an interruption.
    inside = getattr(part, "__dict__", {})
    return [(name, each) for name, each in inside.items() if name != "_iterator"]


def _accessors(part: Any) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]] | None:
    """Return the entry of `_GENERATORS`; None for an object that is no such generator."""
    found = (both for kind, both in _GENERATORS.items() if isinstance(part, kind))
    return None if isinstance(part, random.SystemRandom) else next(found, None)


def _plain(value: Any) -> Any:
    """Return a state with its arrays as lists, which a file of tensors and plain values may hold."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        return torch.from_numpy(np.array(native(values), order="C"))
    raise DataError(
        "a loader must yield tensors or arrays of numbers, "
        f"got {getattr(values, 'dtype', type(values).__name__)}; write a collate_fn"
    )


def stable_indices(values: Any, examples: int) -> Tensor:
    """Return (B,) int64 indices on the CPU.

    Raises
    ------
    DataError
        They are not one integer an example.
    """
    found = _tensor(values)
    numbers = found.is_floating_point() or found.is_complex() or found.dtype == torch.bool
    if numbers or found.numel() != examples:
        raise DataError(
            f"the indices of a batch are {str(found.dtype).removeprefix('torch.')} of shape "
            f"{tuple(found.shape)} for {examples} labels; give one integer an example"
        )
    return found.cpu().reshape(-1).to(torch.int64)


class LoaderBatches:
    """A user's own loader as a source of batches.

    Every epoch is a new iteration over the loader. Before it, ``set_epoch(epoch)`` is called on the
    loader and on each of its parts that has this method, for example a `DistributedSampler`. The
    states of the random generators that the loader and its parts hold are part of
    :meth:`state_dict`, so an interrupted training continues with the order that it would have had.
    Random states inside persistent workers cannot be read; with ``persistent_workers=True`` the order
    is still the same, but what the workers draw is not.

    Parameters
    ----------
    loader
        An iterable, not an iterator, that yields :class:`Batch` objects, ``(inputs, labels, indices)``
        or ``(inputs, labels)``. Without indices, supervisions that look an example up cannot be used.
        Labels are integer class labels; those equal to -100 do not count, as in torch.
    device
        Device of the batches.
    classes
        Number of classes. It is needed only for networks that return a tuple of which several
        elements can be the logits.
    steps_per_epoch
        Batches of an epoch. By default the length of the loader; required where it has none, for
        example for a `DataLoader` over an `IterableDataset`. A loader that yields more batches is
        stopped after this number; the next epoch iterates over it anew.

    Raises
    ------
    DataError
        The loader has no length and ``steps_per_epoch`` is not given, it has no batches, or it is an
        iterator, which can be read only once.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> examples = TensorDataset(torch.zeros(10, 3), torch.zeros(10, dtype=torch.int64))
    >>> len(LoaderBatches(DataLoader(examples, batch_size=4)))
    3
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device | str = "cpu",
        *,
        classes: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        name = type(loader).__name__
        if isinstance(loader, Iterator):
            raise DataError(
                f"the loader is an iterator ({name}), which can be read only once; give an object "
                "that starts anew in every epoch, such as a list or a DataLoader"
            )
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise DataError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
        self.loader = loader
        self.device = checked_device(device, "device of the batches")
        self.classes = classes
        self._steps = steps_per_epoch
        if len(self) == 0:
            raise DataError(
                f"the loader {name} has no batches; with drop_last=True it needs at least one whole "
                "batch of examples"
            )

    def __len__(self) -> int:
        if self._steps is not None:
            return self._steps
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            raise DataError(
                f"the loader {type(self.loader).__name__} has no length; give the number of batches "
                "per epoch: LoaderBatches(loader, steps_per_epoch=...)"
            ) from None

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the loader's batches; its own randomness decides their order."""
        for _, part in loader_parts(self.loader):
            if callable(method := getattr(part, "set_epoch", None)):
                method(epoch)
        for item in islice(self.loader, self._steps):
            if isinstance(item, Batch):
                labels = class_labels(item.labels)
                mask = counting_mask(labels, item.mask)
                classes = item.classes or self.classes
                yield replace(item, labels=labels, mask=mask, epoch=epoch, classes=classes)
                continue
            if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
                keys = f" of {sorted(map(str, item))}" if isinstance(item, Mapping) else ""
                raise DataError(
                    "a loader must yield (inputs, labels) or (inputs, labels, indices), got a "
                    f"{type(item).__name__}{keys}; train on mappings with "
                    "distillens.integrations.transformers.DistillationTrainer"
                )
            given = item[1]
            labels = class_labels(given if isinstance(given, (list, int)) else _tensor(given))
            if labels.ndim == 0:
                raise DataError(
                    "a loader must yield batches, got one example with one label; read the data set "
                    "through torch.utils.data.DataLoader(dataset, batch_size=...)"
                )
            mask = counting_mask(labels, None)
            mask = None if mask is None else mask.to(self.device)
            inputs, labels = _tensor(item[0]).to(self.device), labels.to(self.device)
            # -1 marks an example without a stable index; code that needs an index refuses it.
            indices = torch.full((len(labels),), -1)
            if len(item) == 3:
                indices = stable_indices(item[2], len(labels))
            yield Batch(inputs, labels, indices, epoch, mask=mask, classes=self.classes)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the random generators that the loader and its parts hold.

        A loader with a ``state_dict`` of its own, such as torchdata's `StatefulDataLoader`, is asked
        for it as well. Empty for a loader without either.
        """
        own = getattr(self.loader, "state_dict", None)
        state = {path: get(part) for path, part, (get, _) in self._generators()}
        return state | {"loader.state_dict": own()} if callable(own) else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that :meth:`state_dict` returned.

        Raises
        ------
        DataError
            The loader holds other generators than the one whose states these are.
        """
        states = dict(state)
        if "loader.state_dict" in states:
            self.loader.load_state_dict(states.pop("loader.state_dict"))  # type: ignore[attr-defined]
        generators = self._generators()
        paths = sorted(path for path, _, _ in generators)
        if paths != sorted(states):
            raise DataError(
                f"the loader holds the random generators {paths}, the saved state is of "
                f"{sorted(states)}; build the loader as it was built for the interrupted training"
            )
        for path, generator, (_, set_state) in generators:
            set_state(generator, states[path])

    def _generators(self) -> list[tuple[str, Any, Any]]:
        parts = ((path, part, _accessors(part)) for path, part in loader_parts(self.loader))
        return [(path, part, both) for path, part, both in parts if both is not None]
