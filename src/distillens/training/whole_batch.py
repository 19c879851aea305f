"""Gradients of a loss that compares the examples of a batch, one micro-batch at a time.

The logits of all micro-batches are computed first, without a graph. The loss of the whole batch gives
the gradient at these logits. Each micro-batch then runs again, with its graph, and the gradient goes
on from its logits (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup, 2021). Random numbers are sampled alike in both runs, and buffers such as the running statistics
of BatchNorm change once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillens.data.batches import Batch
from distillens.errors import TrainingError
from distillens.supervision.protocol import (
    Supervision,
    is_across_examples,
    loss_of,
    reads_layers,
)
from distillens.training.trajectory import global_random_state


@dataclass(frozen=True)
class WholeBatch:
    """The loss of a whole batch, and what its micro-batches need to run again.

    Attributes
    ----------
    loss : Tensor
        Scalar, without a graph.
    gradients : tuple of Tensor
        At the logits of each micro-batch.
    random : tuple of dict
        States of the random numbers before each micro-batch, and after the last.
    """

    loss: Tensor
    gradients: tuple[Tensor, ...]
    random: tuple[dict[str, Any], ...]


def check_parts(supervision: Supervision, accumulate: int, processes: int) -> None:
    """Refuse a loss that must see the whole batch where that cannot be arranged.

    Raises
    ------
    TrainingError
        The loss may compare the examples of a batch, and there are several processes, or it reads
        inner features and there are micro-batches.
    """
    if not is_across_examples(supervision):
        return
    declare = (
        "if it is a mean over examples, set across_examples = False on your loss function or "
        "supervision"
    )
    if processes > 1:
        raise TrainingError(
            f"the loss may compare the examples of a batch, but {processes} processes see only their "
            f"share of it; use one process, or, {declare}"
        )
    if accumulate > 1 and reads_layers(supervision):
        raise TrainingError(
            f"a loss on features that may compare the examples of a batch cannot be computed in "
            f"{accumulate} micro-batches; set accumulate to 1, or, {declare}"
        )


def whole_batch(
    model: nn.Module,
    logits_of_part: Callable[[Batch], Tensor],
    supervision: Supervision,
    batch: Batch,
    parts: Sequence[Batch],
    step: int,
) -> WholeBatch:
    """Return the loss of a batch and its gradient at the logits of the micro-batches."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rows: list[Tensor] = []
    random: list[dict[str, Any]] = []
    with torch.no_grad():
        for part in parts:
            random.append(global_random_state())
            rows.append(logits_of_part(part))
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
    logits = torch.cat(rows).requires_grad_()
    loss = loss_of(supervision, logits, batch, step) * batch.weight
    loss.backward()
    random.append(global_random_state())
    # A loss that does not depend on the logits, such as one of weight 0, has no gradient there.
    gradient = torch.zeros_like(logits) if logits.grad is None else logits.grad
    return WholeBatch(
        loss.detach(), tuple(gradient.split([len(row) for row in rows])), tuple(random)
    )
