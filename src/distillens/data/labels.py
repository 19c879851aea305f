"""Class labels in the one form that losses read, whatever form a loader gives them.

Shapes: B examples, T positions, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillens.errors import DataError

IGNORED = -100
"""The label of an example or position that does not count, as in torch and transformers."""

SUPPORTED = (
    "supported are integer class labels of shape (B,), or (B, T) for sequences, with logits of "
    "shape (B, C) or (B, T, C); multi-label, soft, regression and dense targets are not"
)


def class_labels(labels: Any) -> Tensor:
    """Return integer class labels as an int64 tensor of the same shape.

    Parameters
    ----------
    labels
        A tensor, array or list of integers of any width, or of booleans.

    Raises
    ------
    DataError
        The labels are floating-point or complex numbers, or no numbers at all.
    """
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"labels are a {type(labels).__name__} of no numbers; {SUPPORTED}"
        ) from None
    if found.is_floating_point() or found.is_complex():
        raise DataError(
            f"labels are {str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}; "
            f"{SUPPORTED}; convert class numbers with labels.long()"
        )
    return found.long()


def counting_mask(labels: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return which labels count: the mask if there is one, else those that are not -100.

    The result is None if all labels count. On a GPU that is not looked up, because the host would
    have to wait for the answer; the mask is then always returned.

    Raises
    ------
    DataError
        The mask holds floating-point numbers.
    """
    if mask is not None:
        return boolean_mask(mask)
    counts = labels != IGNORED
    return None if labels.device.type == "cpu" and bool(counts.all()) else counts


def boolean_mask(mask: Tensor) -> Tensor:
    """Return a mask of integers 0 and 1 as booleans.

    Raises
    ------
    DataError
        It holds floating-point numbers, which would be weights.
    """
    if mask.is_floating_point() or mask.is_complex():
        raise DataError(
            f"the mask is {str(mask.dtype).removeprefix('torch.')}; a mask states which positions "
            "count and is not a weight: convert it with mask.bool()"
        )
    return mask if mask.dtype == torch.bool else mask != 0


def fit_to_logits(
    labels: Tensor, mask: Tensor | None, logits: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return labels and mask with exactly the shape of the logits without the class axis.

    Trailing axes of length 1, as of labels (B, 1) for logits (B, C), are dropped.

    Raises
    ------
    DataError
        The labels are no integers, or labels or mask have another shape.
    """
    labels = _fitted(class_labels(labels), logits, "labels", SUPPORTED)
    return labels, None if mask is None else fit_mask(mask, logits)


def fit_mask(mask: Tensor, logits: Tensor) -> Tensor:
    """Return a boolean mask with exactly the shape of the logits without the class axis.

    Raises
    ------
    DataError
        The mask holds floating-point numbers or has another shape.
    """
    return _fitted(boolean_mask(mask), logits, "masks", "give it the shape of the labels")


def outside(value: int, classes: int) -> DataError:
    """Return the error about a label that is not one of the classes; one output means two classes."""
    last = max(classes, 2) - 1
    why = "one output, which is for labels 0 and 1" if classes == 1 else f"{classes} classes"
    return DataError(
        f"a label is {value}, outside 0 to {last}: the logits have {why}; mark examples that do not "
        f"count with the label {IGNORED} or with a mask"
    )


def _fitted(values: Tensor, logits: Tensor, what: str, advice: str) -> Tensor:
    """Return values with the shape of the logits without the class axis."""
    positions = logits.shape[:-1]
    if values.shape == positions:
        return values
    axes = len(positions)
    if values.shape[:axes] != positions or any(length != 1 for length in values.shape[axes:]):
        raise DataError(
            f"{what} of shape {tuple(values.shape)} do not fit logits of shape {tuple(logits.shape)}; "
            f"{advice}"
        )
    return values.reshape(positions)
