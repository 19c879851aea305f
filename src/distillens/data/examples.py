"""Examples: inputs, labels and stable indices, held in memory as they were stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillens.data.sources.source import MAX_UNNAMED
from distillens.errors import DataError
from distillens.files.arrays import as_rows, native


@dataclass(frozen=True)
class Examples:
    """N examples of one split.

    Attributes
    ----------
    inputs : Tensor
        (N, channels, height, width) images, or (N, features); uint8 as stored, or float32. Text: (N, T)
        or (N, K, T) int64 tokens of K tokenizers, -1 behind the last one.
    labels : Tensor
        (N,) int64 in [0, number of classes).
    indices : Tensor
        (N,) int64: the example's place in its source, which no subset or shuffle changes.
    classes : tuple of str
        Names of the classes, in the order of their labels.
    vocabularies : tuple of int
        For text: vocabulary size of each tokenizer; else empty.
    sentences : tuple of str
        For text that is not tokenised yet: all sentences of the split in its source: the one of an
        example is at its index. The inputs are empty until then.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    classes: tuple[str, ...]
    vocabularies: tuple[int, ...] = ()
    sentences: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over inputs, labels, indices and their shape."""
        digest = hashlib.sha256(repr((tuple(self.inputs.shape), str(self.inputs.dtype))).encode())
        for tensor in (self.inputs, self.labels, self.indices):
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()

    def on(self, device: torch.device) -> Examples:
        """Return these examples on a device; a copy is made once and shared by all who ask for it."""
        # A device without a number is the current one of its kind.
        device = torch.empty(0, device=device).device
        if self.labels.device == device:
            return self
        copies = self._copies()
        if device not in copies:
            copies[device] = self._changed(lambda values: values.to(device))
        return copies[device]

    def is_on(self, device: torch.device) -> bool:
        """Return whether these examples, or the copy that `on` made, are on a device."""
        device = torch.empty(0, device=device).device
        return self.labels.device == device or device in self._copies()

    def _copies(self) -> dict[torch.device, Examples]:
        return self.__dict__.setdefault("_copied", {})

    def take(self, positions: np.ndarray | Tensor | slice) -> Examples:
        """Return the examples at these positions; they keep their indices."""
        where = torch.from_numpy(positions) if isinstance(positions, np.ndarray) else positions
        return self._changed(lambda values: values[where])

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Examples:
        inputs, labels, indices = map(change, (self.inputs, self.labels, self.indices))
        return replace(self, inputs=inputs, labels=labels, indices=indices)


@dataclass(frozen=True)
class LabelChange:
    """A training label that label noise replaced."""

    index: int
    before: int
    after: int


@dataclass(frozen=True)
class Splits:
    """Examples of a study.

    ``changed`` lists the training labels that noise replaced, ``tokenizers`` what made tokens of the
    sentences, each as the text of its ``tokenizer.json``.
    """

    train: Examples
    validation: Examples | None
    test: Examples
    changed: tuple[LabelChange, ...] = ()
    tokenizers: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the fingerprints of all splits."""
        parts = [self.train, self.validation, self.test]
        joined = "|".join(part.fingerprint if part is not None else "-" for part in parts)
        return hashlib.sha256(joined.encode()).hexdigest()


def examples_from_arrays(
    inputs: Any,
    labels: Any,
    classes: Sequence[str] | None = None,
    *,
    where: str = "the arrays",
) -> Examples:
    """Check arrays and make them examples; the index of an example is its row.

    Parameters
    ----------
    inputs
        (N, features), (N, height, width) grey images, (N, channels, height, width), or
        (N, height, width, channels) images with 1, 3 or 4 channels: an array, tensor, table or list
        of arrays. The index of a pandas object is not used, and a column ``id`` or ``index`` of
        unique values is left out. Floating-point inputs of any
        precision, byte order and memory layout are kept as float32, boolean ones as 0 and 1 in
        float32; everything else must be uint8.
    labels
        (N,) or (N, 1) integers.
    classes
        Names of the classes; without them there are ``max(labels) + 1`` numbered ones, at most
        100,000.
    where
        Name of the source in errors.

    Raises
    ------
    DataError
        Lengths differ, there are no examples, a value is not finite, or a label is out of range.
    """
    tensor, label = _numbers(inputs, f"{where}: inputs"), _numbers(labels, f"{where}: labels")
    if tensor.ndim == 0:
        raise DataError(f"{where}: inputs are a single number; give (N, …)")
    tensor = _inputs(tensor, where)
    if label.ndim == 2 and label.shape[1] == 1:
        label = label[:, 0]
    if label.ndim != 1 or label.dtype.is_floating_point or label.dtype.is_complex:
        raise DataError(
            f"{where}: labels must be one integer an example, "
            f"got shape {tuple(label.shape)} of {label.dtype}"
        )
    label = label.to(torch.int64)
    if len(tensor) != len(label):
        raise DataError(f"{where}: {len(tensor)} inputs but {len(label)} labels; they must pair up")
    if not len(label):
        raise DataError(f"{where}: no examples; at least one is needed")
    count = len(classes) if classes else min(int(label.max()) + 1, MAX_UNNAMED)
    outside = ((label < 0) | (label >= count)).nonzero()
    if len(outside):
        row = int(outside[0, 0])
        raise DataError(
            f"{where}: label {int(label[row])} of example {row} is out of range; "
            f"labels must lie in [0, {count - 1}]"
        )
    names = tuple(classes) if classes else tuple(str(c) for c in range(count))
    return Examples(tensor, label, torch.arange(len(label)), names)


def _numbers(values: Any, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return (values.detach() if values.layout == torch.strided else values.to_dense()).cpu()
    try:
        array = native(as_rows(values).values)
    except DataError as error:
        raise DataError(f"{what}: {error}") from None
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        # torch has no views that run backwards, such as x[::-1], or that cannot be written.
        array = array.copy()
    try:
        return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{what} are no array of numbers but of {array.dtype}") from None


def _inputs(inputs: Tensor, where: str) -> Tensor:
    if inputs.dtype.is_floating_point or inputs.dtype == torch.bool:
        inputs = inputs.to(torch.float32)
        finite = torch.isfinite(inputs.flatten(1) if inputs.ndim > 1 else inputs[:, None]).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0, 0])
            raise DataError(
                f"{where}: the input of example {row} holds a NaN or an infinity; "
                "remove or repair it"
            )
    elif inputs.dtype != torch.uint8:
        raise DataError(
            f"{where}: inputs must be uint8 or floating point, got {inputs.dtype}; convert pixels "
            "of 0 to 255 to uint8 and other numbers to float32"
        )
    if len(inputs) and not inputs.numel():
        raise DataError(f"{where}: inputs of shape {tuple(inputs.shape)} hold no values")
    if inputs.ndim == 3:
        return inputs[:, None].contiguous()
    channels_last = inputs.ndim == 4 and inputs.shape[1] not in (1, 3, 4)
    if channels_last and inputs.shape[-1] in (1, 3, 4):
        return inputs.permute(0, 3, 1, 2).contiguous()
    if inputs.ndim not in (2, 4):
        raise DataError(
            f"{where}: inputs must be (N, features), (N, height, width) or "
            f"(N, channels, height, width), got {tuple(inputs.shape)}"
        )
    return inputs.contiguous()
