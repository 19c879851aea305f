"""The directions in output space that a kernel is taken of: combinations of a network's outputs.

Directions are not stored as a matrix: for 32,000 outputs the identity alone would take 4 GiB.

Shapes: B examples, O outputs of the network, C combinations of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import index
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from distillens.errors import KernelError, nearest

OutputForm = Literal["sum", "class-diagonal", "trace", "full"]
Outputs = int | tuple[int, int] | OutputForm
"""c: one logit. (a, b): logit a minus logit b. "sum": the sum of the logits. "class-diagonal": a kernel
for each logit. "trace": the mean of these kernels. "full": all pairs of logits."""


@dataclass(frozen=True)
class Directions:
    """C combinations of O outputs: consecutive outputs, a difference of two, or the sum."""

    form: Literal["outputs", "difference", "sum"]
    first: int
    """The first output, or the minuend."""
    second: int
    """The output after the last one, or the subtrahend."""
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return self.second - self.first if self.form == "outputs" else 1

    def part(self, start: int, stop: int) -> Directions:
        """Return some of the combinations."""
        if self.form != "outputs" or (start, stop) == (0, len(self)):
            return self
        return replace(self, first=self.first + start, second=self.first + stop)

    def each(self) -> Iterator[Directions]:
        """Yield each combination alone."""
        return (self.part(c, c + 1) for c in range(len(self)))

    def of(self, outputs_BO: Tensor) -> Tensor:
        """Return the combinations of outputs, (B, C)."""
        if self.form == "sum":
            return outputs_BO.sum(dim=1, keepdim=True)
        if self.form == "difference":
            return (outputs_BO[:, self.first] - outputs_BO[:, self.second])[:, None]
        if len(self) == outputs_BO.shape[1]:
            return outputs_BO
        return outputs_BO[:, self.first : self.second]


def checked_outputs(outputs: Any) -> Outputs:
    """Return the outputs of a kernel, with integers of numpy or torch converted to Python's.

    Raises
    ------
    KernelError
        The argument is neither a form, nor one logit, nor two different logits.
    """
    if isinstance(outputs, str):
        if outputs not in get_args(OutputForm):
            raise KernelError(
                f"unknown outputs {outputs!r}{nearest(outputs, get_args(OutputForm))}, "
                "or the number of a logit, or two of them"
            )
        return cast(Outputs, outputs)
    try:
        if not isinstance(outputs, (tuple, list)):
            return index(outputs)
        first, second = (index(each) for each in outputs)
        if first != second:
            return first, second
    except (TypeError, ValueError):
        pass
    raise KernelError(
        f"outputs are {outputs!r}; give one logit, two for their difference, or one of "
        f"{', '.join(get_args(OutputForm))}"
    )


def directions(
    outputs: Outputs, count: int, dtype: torch.dtype, device: torch.device
) -> Directions:
    """Return the combinations of a network's ``count`` outputs that a kernel is taken of.

    Raises
    ------
    KernelError
        The network has no such output, or the form is unknown.
    """
    outputs = checked_outputs(outputs)
    if isinstance(outputs, str):
        return Directions("sum" if outputs == "sum" else "outputs", 0, count, dtype, device)
    for number in (outputs,) if isinstance(outputs, int) else outputs:
        if not 0 <= number < count:
            raise KernelError(f"no output {number}; the model has outputs 0 to {count - 1}")
    if isinstance(outputs, int):
        return Directions("outputs", outputs, outputs + 1, dtype, device)
    return Directions("difference", *outputs, dtype, device)


def gram_shape(outputs: Outputs, count: int, rows: int, columns: int) -> tuple[int, ...]:
    """Return the shape of a Gram of ``count`` outputs."""
    if outputs == "full":
        return rows * count, columns * count
    return (count, rows, columns) if outputs == "class-diagonal" else (rows, columns)


def require_finite(finite: bool | Tensor) -> None:
    """Raise KernelError unless a Gram is finite.

    Raises
    ------
    KernelError
        It is not.
    """
    if not finite:
        raise KernelError(
            "the Gram is not finite although weights and inputs are; "
            "look for an operation without a derivative, such as sqrt at 0"
        )
