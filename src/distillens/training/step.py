"""One training step of one network, and the sums of an epoch, without reading values on the host.

Sums stay on the device, so the host never waits for an accelerator within an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillens.data.batches import Batch
from distillens.data.labels import IGNORED, class_labels, counting_mask
from distillens.errors import TrainingError
from distillens.forward.evaluation import (
    frozen_statistics,
    input_type,
    make_gradients_dense,
    own_inputs,
    train_mode,
)
from distillens.forward.sequences import run
from distillens.supervision.losses import predicted
from distillens.supervision.protocol import (
    Supervision,
    is_across_examples,
    loss_of,
    reads_layers,
    student_logits,
)
from distillens.training.processes import is_sharded
from distillens.training.recipe import TrainingRecipe
from distillens.training.trajectory import global_random_state, restore_global_random_state


class Tally:
    """The losses of an epoch's steps, and how many labels were predicted, in tensors that stay in place.

    Attributes
    ----------
    losses : Tensor
        (steps,) float32, in the order of the steps; those still to come hold a 0.
    right, seen : Tensor
        Scalars, int64: right predictions, and labels that count.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.losses = torch.zeros(steps, device=device)
        self.right, self.seen = (torch.zeros((), dtype=torch.int64, device=device) for _ in "ab")
        self._place = torch.zeros(1, dtype=torch.int64, device=device)

    def clear(self) -> None:
        """Begin an epoch."""
        for each in (self.losses, self.right, self.seen, self._place):
            each.zero_()

    def add(self, loss: Tensor, right: Tensor, seen: Tensor | int) -> None:
        """Add a step."""
        self.losses.index_copy_(0, self._place, loss.reshape(1).to(self.losses.dtype))
        self.right += right
        self.seen += seen
        self._place += 1


@dataclass(frozen=True)
class WholeBatch:
    """The loss of a batch whose examples are compared, and what its micro-batches need to run again.

    The logits of all micro-batches are computed first, without a graph. The loss of the whole batch
    gives the gradient at these logits. Each micro-batch then runs again, with its graph, and the
    gradient goes on from its logits (Gao et al., Scaling Deep Contrastive Learning Batch Size under
    Memory Limited Setup, 2021). Random numbers are sampled alike in both runs, and buffers such as the
    running statistics of BatchNorm change once.

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


class TrainingStep:
    """A network, its supervision and its optimizer: `update` does one step on one batch.

    Parameters
    ----------
    model
        Wrapped by Accelerate, and compiled if that is asked for.
    supervision
        Supervision that it fits.
    optimizer
        Prepared by Accelerate.
    recipe
        Learning rate, micro-batches and so on.
    accelerator
        Accelerate's `Accelerator`.
    steps
        Number of batches of an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        supervision: Supervision,
        optimizer: Any,
        recipe: TrainingRecipe,
        accelerator: Accelerator,
        steps: int,
    ) -> None:
        self.model, self.supervision, self.optimizer = model, supervision, optimizer
        self.recipe, self.accelerator, self.steps = recipe, accelerator, steps
        self.tally = Tally(steps, accelerator.device)
        self.classes: int | None = None
        """Number of classes, known after the first step."""
        self.rate = -1.0
        """Learning rate of the last step; negative before the first."""
        self.labels: list[list[tuple[Tensor, Tensor | None]]] = []
        """Labels and masks of each step since the last check, if their range is not known."""
        self.label_span: tuple[int, int] | None = None
        """The lowest and the highest label, if they are known."""
        self._across_examples = is_across_examples(supervision)
        self._frozen = frozen_statistics(model)
        self._input_type = input_type(model)
        self._parameters = [each for group in optimizer.param_groups for each in group["params"]]

    def begin_epoch(self) -> None:
        """Put the network into training mode and forget the sums of the epoch before."""
        train_mode(self.model, self._frozen)
        # A hook, for example, may have left gradients.
        self.forget_gradients()
        self.tally.clear()
        self.labels.clear()

    def __call__(self, batch: Batch, step: int) -> None:
        """Take a step of the whole training, counted from 0."""
        batch = self.known(batch).to(self.accelerator.device)
        self.supervision.advance(batch, step)
        self.set_rate(step)
        self.update(batch, step)

    def set_rate(self, step: int) -> None:
        """Set the learning rate of a step; one in a tensor is changed in place."""
        total = self.recipe.epochs * self.steps
        before = self.rate
        self.rate = self.recipe.learning_rate * self.recipe.schedule.factor_at(
            step, self.steps, total
        )
        for group in self.optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = self.rate
            elif self.rate != before:
                group["lr"].fill_(self.rate)

    def update(self, batch: Batch, step: int) -> None:
        """Compute the loss of a batch, update the weights, and add the step to the tally.

        The batch is one that :meth:`known` returned.
        """
        self.tally.add(*self._backward(batch, step))
        make_gradients_dense(self._parameters)
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_norm)
        self.optimizer.step()
        self.forget_gradients()

    def known(self, batch: Batch) -> Batch:
        """Return a batch with int64 labels, a boolean mask, and the number of classes if it is known."""
        classes = batch.classes or self.classes
        if batch.known_labels is not None:
            return batch if batch.classes == classes else replace(batch, classes=classes)
        labels, mask = class_labels(batch.labels), batch.mask
        # Labels on a GPU are not inspected, because the host would wait when their batch is split.
        if mask is not None or labels.device.type == "cpu":
            mask = counting_mask(labels, mask)
        return replace(batch, labels=labels, mask=mask, classes=classes)

    def _backward(self, batch: Batch, step: int) -> tuple[Tensor, Tensor, Tensor | int]:
        """Add up a step's gradients.

        Returns
        -------
        The loss, the number of right predictions, and the number of labels that count.
        """
        parts = list(batch.split(self.recipe.accumulate))
        together = None
        if self._across_examples and len(parts) > 1:
            together = whole_batch(self.model, self._logits, self.supervision, batch, parts, step)
        losses: list[Tensor] = []
        hits: list[Tensor] = []
        seen: Tensor | int = 0
        unknown: list[tuple[Tensor, Tensor | None]] = []
        for number, part in enumerate(parts, 1):
            if together is not None:
                restore_global_random_state(together.random[number - 1])
            with self.accelerator.no_sync(self.model) if number < len(parts) else nullcontext():
                logits = self._logits(part)
                if together is None:
                    weighed = loss_of(self.supervision, logits, part, step) * part.weight
                    losses.append(weighed.detach())
                else:
                    weighed = (logits * together.gradients[number - 1]).sum()
                self._differentiate(weighed)
            part = part.fitted(logits)
            hits.append(part.counted(predicted(logits.detach()) == part.labels))
            seen = seen + (part.labels.numel() if part.mask is None else part.mask.sum())
            if (known := part.known_labels) is not None:
                self.label_span = (known.lowest, known.highest)
            else:
                unknown.append((part.labels, part.mask))
        self.labels.append(unknown)
        if together is not None:
            restore_global_random_state(together.random[-1])
            return together.loss, sum(hits[1:], hits[0]), seen
        return sum(losses[1:], losses[0]), sum(hits[1:], hits[0]), seen

    def _differentiate(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise TrainingError(
                "the loss does not depend on any trainable parameter; the model's forward may detach "
                "its output or run under torch.no_grad()"
            )
        if self.accelerator.scaler is None:
            # What Accelerate would call, after looking for an optional package in every step.
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def forget_gradients(self) -> None:
        """Drop the gradients of all parameters."""
        # Accelerate's zero_grad inspects a signature in every call.
        for parameter in self._parameters:
            parameter.grad = None

    def _logits(self, part: Batch) -> Tensor:
        logits = student_logits(self._output(part), part, self.supervision)
        # A network that returns a tuple is not asked again which element holds the logits.
        self.classes = logits.shape[-1]
        return logits

    def _output(self, part: Batch) -> Any:
        # A network that modifies its inputs must not change what the teacher sees, or the data.
        inputs = own_inputs(part.inputs, self._input_type)
        try:
            # Accelerate wraps the forward of other networks in this.
            sharded = is_sharded(self.accelerator)
            with self.accelerator.autocast() if sharded else nullcontext():
                return run(self.model, inputs, part.further)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                f"a batch of {len(part)} example(s) is too small for BatchNorm; choose a batch_size "
                "that leaves more than one example for the last batch"
            ) from None


def label_extremes(labels: Tensor, mask: Tensor | None) -> tuple[int, int]:
    """Return the lowest and the highest label that counts; the host waits for them."""
    left_out = labels == IGNORED if mask is None else ~mask
    lowest, highest = labels.masked_fill(left_out, 0).aminmax()
    return int(lowest), int(highest)


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
