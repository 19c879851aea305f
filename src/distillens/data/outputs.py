"""The logits in what a network returns.

Shapes: B examples, T positions, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from distillens.data.labels import SUPPORTED
from distillens.errors import DataError, ModelError

Classes = Callable[[], Collection[int]]
"""Gives the possible numbers of classes; called only if the output alone does not tell."""


def logits_of(
    output: Any,
    positions: tuple[int, ...],
    classes: Classes | None = None,
    *,
    whose: str = "the network",
) -> Tensor:
    """Return the logits in a network's output, with the class axis last.

    Axes of length 1 other than the class axis are dropped, so that the (B, C, 1, 1) of a network that
    ends in global pooling becomes (B, C); (B,) becomes (B, 1), the form with one output.

    Parameters
    ----------
    output
        A tensor, an object or a mapping with ``logits``, such as a `ModelOutput` of transformers, or
        a tuple or list of which exactly one element can be the logits.
    positions
        The shape of the labels: (B,), or (B, T) for sequences.
    classes
        Returns the numbers of classes that are possible; needed for a tuple of which several
        elements have a fitting shape.
    whose
        Subject of error messages.

    Raises
    ------
    ModelError
        The output holds no logits, or several tensors that can be them.
    DataError
        The logits have a shape that does not fit the labels.
    """
    found = tensor_or_parts(output, whose)
    if isinstance(found, Tensor):
        fitted = _fitted(found, positions)
        if fitted is None:
            raise DataError(
                f"{whose} gives outputs of shape {tuple(found.shape)} for labels of shape "
                f"{tuple(positions)}; {SUPPORTED}"
            )
        return fitted
    fitting = candidates(found, positions)
    if len(fitting) > 1 and classes is not None:
        possible = classes()
        chosen = [each for each in fitting if each.shape[-1] in possible]
        # Two classes may have one output.
        if not chosen and 2 in possible:
            chosen = [each for each in fitting if each.shape[-1] == 1]
        fitting = chosen or fitting
    if len(fitting) != 1:
        shapes = ", ".join(
            str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__
            for part in found
        )
        which = "several elements" if fitting else "no element"
        naming = ", or name the number of classes: LoaderBatches(..., classes=...)"
        raise ModelError(
            f"{whose} gives a {type(output).__name__} of {shapes}, in which {which} can be the logits; "
            f"return the logits alone, or an object or mapping with logits{naming if fitting else ''}"
        )
    return fitting[0]


def tensor_or_parts(output: Any, whose: str = "the network") -> Tensor | tuple[Any, ...]:
    """Return the tensor of logits that an output names, or the elements of a tuple or list.

    Raises
    ------
    ModelError
        It is none of these.
    """
    if isinstance(output, tuple | list) and not hasattr(output, "logits"):
        return tuple(output)
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = output if isinstance(output, Tensor) else named
    if not isinstance(found, Tensor):
        held = f" of {sorted(map(str, output))}" if isinstance(output, Mapping) else ""
        raise ModelError(
            f"{whose} gives a {type(output).__name__}{held} without logits; it must return logits: a "
            "tensor, an object or mapping with logits, or a tuple in which one element can be them"
        )
    if not found.is_floating_point():
        raise ModelError(
            f"{whose} gives {str(found.dtype).removeprefix('torch.')} values; it must return "
            "logits, which are floating-point numbers"
        )
    return found


def candidates(parts: Collection[Any], positions: tuple[int, ...]) -> list[Tensor]:
    """Return the elements of a tuple that can be logits for labels of this shape."""
    tensors = [each for each in parts if isinstance(each, Tensor) and each.ndim > 1]
    fitted = [_fitted(each, positions) for each in tensors if each.is_floating_point()]
    return [each for each in fitted if each is not None]


def are_probabilities(values: Tensor) -> bool:
    """Return whether (N, C) values are probabilities, not logits: N ≥ 2 rows in [0, 1] that add up to 1.

    Rows of zeros and ones alone are not taken as probabilities.
    """
    if values.ndim != 2 or min(values.shape) < 2:
        return False
    values = values.double()
    within = bool(((values >= 0) & (values <= 1)).all())
    sums = bool(((values.sum(1) - 1).abs() < 1e-3).all())
    return within and sums and bool(((values > 0) & (values < 1)).any())


def bare_logits(output: Any, whose: str = "the network") -> Tensor:
    """Return the logits of an output if no labels determine their shape.

    (B,) becomes (B, 1), the form with one output.

    Raises
    ------
    ModelError
        The output is no tensor and names no logits.
    """
    found = tensor_or_parts(output, whose)
    if not isinstance(found, Tensor):
        tensors = [each for each in found if isinstance(each, Tensor) and each.is_floating_point()]
        if len(tensors) != 1:
            raise ModelError(
                f"{whose} gives a {type(output).__name__} of {len(tensors)} tensors; give the logits"
            )
        found = tensors[0]
    if found.ndim == 1:
        return found[:, None]
    return found.flatten(1) if found.ndim == 4 and found.shape[2:] == (1, 1) else found


def _fitted(tensor: Tensor, positions: tuple[int, ...]) -> Tensor | None:
    """Return a tensor as (*positions, C), or None if its shape does not fit."""
    if tensor.ndim == 1 and tensor.shape == torch.Size(positions):
        return tensor[:, None]
    for axes in range(len(positions), 0, -1):
        if axes < len(positions) and positions[axes] != 1:
            return None
        head, rest = tensor.shape[:axes], tensor.shape[axes:]
        wide = [length for length in rest if length != 1]
        if rest and head == torch.Size(positions[:axes]) and len(wide) <= 1:
            return tensor if len(rest) == 1 else tensor.reshape(*head, wide[0] if wide else 1)
    return None
