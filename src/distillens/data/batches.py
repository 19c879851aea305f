"""Batches of examples: augmented and normalised inputs of training steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distillens.data.augment import augment
from distillens.data.examples import Examples
from distillens.data.labels import IGNORED, fit_to_logits, outside
from distillens.data.normalisation import Normalisation, as_float
from distillens.data.recipe import Augmentation
from distillens.errors import DataError
from distillens.forward.device_errors import checked_device

CHUNK_BYTES = 2**26
"""Bytes of images that are augmented at once where an epoch is prepared on the device."""

SHARE = 0.5
"""Share of the free memory of a device that data may take; the rest is for networks."""


@dataclass(frozen=True)
class Rows:
    """Rows of a batch in its source, which is held on the device.

    Attributes
    ----------
    examples : Examples
        All examples of the source, on the device.
    positions : Tensor
        (B,) int64 positions in ``examples``, on the device.
    """

    examples: Examples
    positions: Tensor


@dataclass(frozen=True)
class LabelRange:
    """The lowest and the highest label of a source, known before any batch is on the device.

    ``labels`` are those of the batch that it was given with. A batch whose labels were replaced by
    others is not described by it.
    """

    labels: Tensor
    lowest: int
    highest: int


@dataclass(frozen=True)
class Batch:
    """The inputs of a network and a supervision at a step.

    Attributes
    ----------
    inputs : Tensor
        (B, …) float32, augmented and normalised; (B, T) or (B, K, T) int64 tokens of text, -1 behind
        the last one.
    labels : Tensor
        (B,) or (B, T) int64.
    indices : Tensor
        (B,) int64 stable indices, on the CPU.
    epoch : int
        Epoch for which images are augmented.
    weight : float
        Factor of this batch's mean loss, so that the sum over micro-batches and the mean over
        processes is the mean over the global batch.
    mask : Tensor or None
        (B,) or (B, T) bool: examples or positions that count.
    classes : int or None
        Number of classes, if it is known; it tells logits from other outputs of a network that
        returns a tuple.
    further : dict of str to Tensor, or None
        Further inputs by name, (B, …) each, for example ``token_type_ids`` (B, T); a network gets those
        that its ``forward`` takes. None where the source of the batch has no such inputs.
    rows : Rows or None
        Rows of its examples in its source; None unless the source is held on the device.
    label_range : LabelRange or None
        Known range of the labels, without reading them from the device.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    epoch: int = 0
    weight: float = 1.0
    mask: Tensor | None = None
    classes: int | None = None
    further: dict[str, Tensor] | None = None
    rows: Rows | None = None
    label_range: LabelRange | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; indices stay on the CPU."""
        return self._changed(lambda values: values.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with another form of inputs, labels, mask and further inputs."""
        return replace(
            self,
            inputs=change(self.inputs),
            labels=change(self.labels),
            mask=None if self.mask is None else change(self.mask),
            further=self.further and {name: change(each) for name, each in self.further.items()},
        )

    @property
    def known_labels(self) -> LabelRange | None:
        """The range of the labels if all of them count and it is known without a look at them."""
        known = self.label_range
        return known if self.mask is None and known and known.labels is self.labels else None

    def labels_are_classes(self, classes: int) -> bool:
        """Return whether all labels are known to be classes that count, without a look at them.

        Raises
        ------
        DataError
            The range of the labels is known, and it is not that of the classes.
        """
        known = self.known_labels
        if known and (known.lowest < 0 or known.highest >= max(classes, 2)):
            raise outside(known.lowest if known.lowest < 0 else known.highest, classes)
        return known is not None

    def counted(self, values: Tensor) -> Tensor:
        """Return the sum of (B,) or (B, T) values over the positions that count."""
        # Not a product with the mask: 0 times a NaN is a NaN.
        return (values if self.mask is None else values.masked_fill(~self.mask, 0)).sum()

    def fitted(self, logits: Tensor) -> Batch:
        """Return the batch with int64 labels and mask of the logits' shape without its last axis.

        Raises
        ------
        DataError
            The labels are no integers, or labels or mask do not fit the logits.
        """
        labels, mask = fit_to_logits(self.labels, self.mask, logits)
        if labels is self.labels and mask is self.mask:
            return self
        return replace(self, labels=labels, mask=mask)

    def split(self, parts: int) -> Iterator[Batch]:
        """Yield micro-batches whose weights add up to this batch's."""
        if parts == 1:
            yield self
            return
        size = math.ceil(len(self) / parts)
        whole = len(self) if self.mask is None else int(self.mask.sum())
        rows, known = self.rows, self.known_labels
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            found = self._changed(lambda values, part=part: values[part])
            # The loss is a mean over positions that count, so that is what a share is a share of.
            counting = len(found) if found.mask is None else int(found.mask.sum())
            yield replace(
                found,
                indices=self.indices[part],
                weight=self.weight * counting / max(1, whole),
                rows=None if rows is None else replace(rows, positions=rows.positions[part]),
                label_range=None if known is None else replace(known, labels=found.labels),
            )


class EpochSource(Protocol):
    """The source of the training loop: ``len`` steps per epoch, and the batches of an epoch.

    A source whose batches also depend on a random state of its own has two more methods,
    ``state_dict()`` and ``load_state_dict(state)``, of tensors, numbers and strings. The training
    loop saves that state with each checkpoint.
    """

    def __len__(self) -> int: ...

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, the same ones whenever it is asked for."""
        ...


class Batches:
    """The batches of examples, epoch after epoch.

    The order of an epoch is a function of (seed, epoch), the pictures of (augmentation seed, epoch,
    index). Every example is seen once an epoch; the last batch may be smaller. With several
    processes each takes its share of every global batch.

    On an accelerator the examples are held as they are stored, for example in uint8, together with the
    augmented images of the current epoch. Batches are gathered there; no step waits for the host.
    Examples that do not fit are copied from host memory at each step, which ``note`` states.

    Parameters
    ----------
    examples
        Examples of the batches.
    batch_size
        Size of the global batch.
    normalisation
        Applied to every batch; None leaves inputs as they are (bytes become [0, 1]).
    augmentation
        Applied before normalisation; images only.
    seed
        Seed of the order; None keeps the order of the examples.
    device
        Device of the batches.
    channels_last
        Lay images out with channels last in memory.
    rank, processes
        This process among how many.
    resident
        Whether the examples are held on the device. By default they are on an accelerator where they
        fit. True on a CPU takes the path of an accelerator.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        *,
        normalisation: Normalisation | None = None,
        augmentation: Augmentation | None = None,
        seed: int | None = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        rank: int = 0,
        processes: int = 1,
        resident: bool | None = None,
    ) -> None:
        if batch_size < processes:
            raise DataError(f"a batch of {batch_size} cannot be shared by {processes} processes")
        self.examples = examples
        self.batch_size = batch_size
        self.normalisation = normalisation
        self.augmentation = augmentation
        self.seed = seed
        self.device = checked_device(device, "device of the batches")
        is_image = examples.inputs.ndim == 4
        self.channels_last = channels_last and is_image
        self.rank = rank
        self.processes = processes
        self.note: str | None = None
        """Reason why the examples are not held on an accelerator; None if they are, and on a CPU."""
        self._resident = resident
        self._changes = augmentation is not None and augmentation.changes
        self._epoch_inputs: tuple[int, Tensor] | None = None
        if self._changes and not is_image:
            raise DataError(
                f"augmentation works on images (channels, height, width), "
                f"these inputs have shape {examples.input_shape}; leave it out"
            )

    def __len__(self) -> int:
        return math.ceil(len(self.examples) / self.batch_size)

    @cached_property
    def held(self) -> Examples | None:
        """The examples on the device; None where they stay in the memory of the host."""
        on_accelerator = self.device.type != "cpu"
        if not (on_accelerator if self._resident is None else self._resident):
            return None
        if self._resident is None:
            copies = int(not self.examples.is_on(self.device)) + int(self._changes)
            size = self.examples.inputs.nbytes * copies
            self.note = too_large("the examples", size, self.device)
        return None if self.note else self.examples.on(self.device)

    def order(self, epoch: int) -> np.ndarray:
        """Return the (N,) positions in the order in which this epoch visits them."""
        if self.seed is None:
            return np.arange(len(self.examples))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        opened, order = self.open_epoch(epoch), self.order(epoch)
        for place in range(len(self)):
            if opened is None:
                mine, weight = self._share(order, place)
                yield self.take(mine, epoch, weight)
            else:
                yield opened.batch(place)

    def open_epoch(self, epoch: int) -> OpenEpoch | None:
        """Prepare an epoch on the device; None where the examples are not held there.

        The augmented images take the place of those of the epoch that was opened before.
        """
        held = self.held
        if held is None:
            return None
        inputs = self._augmented(held, epoch) if self._changes else held.inputs
        return OpenEpoch(self, epoch, inputs)

    def take(self, positions: np.ndarray, epoch: int, weight: float = 1.0) -> Batch:
        """Return these positions as the batch they are in this epoch."""
        where = torch.from_numpy(positions)
        there = where if self.held is None else where.to(self.device)
        return self._gather(there, self.examples.indices[where], epoch, weight)

    def _gather(
        self,
        where: Tensor,
        indices: Tensor,
        epoch: int,
        weight: float,
        stored: Tensor | None = None,
    ) -> Batch:
        """Return the batch of (B,) positions, which lie where the examples are held.

        ``stored`` are all (N, …) inputs, as they are augmented in this epoch.
        """
        source = self.examples if self.held is None else self.held
        inputs = (source.inputs if stored is None else stored).index_select(0, where)
        labels = source.labels.index_select(0, where)
        if self.held is None and self.device.type == "cuda":
            inputs = inputs.pin_memory().to(self.device, non_blocking=True)
            labels = labels.pin_memory().to(self.device, non_blocking=True)
        if stored is None and self._changes:
            assert self.augmentation is not None
            inputs = augment(inputs, source.indices[where], epoch, self.augmentation)
        inputs = self.normalisation(inputs) if self.normalisation else as_float(inputs)
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        span = self.label_span
        return Batch(
            inputs,
            labels,
            indices,
            epoch,
            weight,
            classes=len(self.examples.classes) or None,
            rows=None if self.held is None else Rows(source, where),
            label_range=None if span is None else LabelRange(labels, *span),
        )

    def _share(self, order: np.ndarray, place: int) -> tuple[np.ndarray, float]:
        """Return the positions of this process's share of a global batch, and their weight."""
        start = place * self.batch_size
        whole = order[start : start + self.batch_size]
        # A last batch smaller than the number of processes: some get an example that counts 0.
        mine = whole[self.rank :: self.processes]
        weight = len(mine) * self.processes / len(whole)
        return mine if len(mine) else whole[:1], weight

    def _augmented(self, held: Examples, epoch: int) -> Tensor:
        """Return the (N, …) augmented images of an epoch, as stored, in memory that epochs share."""
        assert self.augmentation is not None
        before, inputs = self._epoch_inputs or (None, torch.empty_like(held.inputs))
        if before != epoch:
            self._epoch_inputs = None
            step = max(1, CHUNK_BYTES // max(1, inputs[0].nbytes))
            for start in range(0, len(held), step):
                part = slice(start, start + step)
                inputs[part] = augment(
                    held.inputs[part], held.indices[part], epoch, self.augmentation
                )
            self._epoch_inputs = (epoch, inputs)
        return inputs

    @cached_property
    def label_span(self) -> tuple[int, int] | None:
        """The lowest and the highest label if all labels count, so that no batch needs a mask."""
        labels = self.examples.labels
        if not labels.numel() or bool((labels == IGNORED).any()):
            return None
        lowest, highest = labels.aminmax()
        return int(lowest), int(highest)


class OpenEpoch:
    """An epoch whose examples are held on the device, from which its batches are gathered.

    Parameters
    ----------
    batches
        The source.
    epoch
        Its number.
    inputs : Tensor
        (N, …) inputs of the epoch, augmented, as they are stored.
    """

    def __init__(self, batches: Batches, epoch: int, inputs: Tensor) -> None:
        self.epoch = epoch
        self.inputs = inputs
        self._batches = batches
        self._no_indices = batches.examples.indices[:0]
        self._order = batches.order(epoch)
        self._order_there = torch.from_numpy(self._order).to(inputs.device)
        self.outline = self.gather(self._order_there[:0])
        """An empty batch with the epoch and the source of its batches."""

    def positions(self, place: int) -> Tensor:
        """Return the (B,) positions of a batch, on the device."""
        start, size = place * self._batches.batch_size, self._batches.batch_size
        return self._order_there[start : start + size]

    def batch(self, place: int) -> Batch:
        """Return a batch of the epoch."""
        mine, weight = self._batches._share(self._order, place)
        positions = self.positions(place)
        if self._batches.processes > 1:
            positions = torch.from_numpy(np.ascontiguousarray(mine)).to(positions.device)
        indices = self._batches.examples.indices[torch.from_numpy(mine)]
        return self._batches._gather(positions, indices, self.epoch, weight, self.inputs)

    def gather(self, positions: Tensor) -> Batch:
        """Return the batch of (B,) positions on the device.

        The batch has no indices: code that needs them looks its examples up by ``rows``.
        """
        return self._batches._gather(positions, self._no_indices, self.epoch, 1.0, self.inputs)


def room_for_data(device: torch.device) -> float:
    """Return how many bytes of data a device may hold; infinite where its free memory is unknown."""
    if device.type != "cuda":
        return float("inf")
    # Memory that torch has reserved and does not use is free as well.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE * (torch.cuda.mem_get_info(device)[0] + unused)


def too_large(what: str, size: int, device: torch.device) -> str | None:
    """Return the reason why data of a number of bytes are not held on a device; None if they fit."""
    room = room_for_data(device)
    if size <= room:
        return None
    return (
        f"{what} take {size / 1e9:.2f} GB and stay in the memory of the host, because {device} has room "
        f"for {room / 1e9:.2f} GB of data; batches are copied at each step"
    )
