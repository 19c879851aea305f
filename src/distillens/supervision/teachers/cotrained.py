"""A teacher that is trained together with its student; no checkpoint is written or read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from distillens.data.batches import Batch
from distillens.errors import SupervisionError
from distillens.forward import evaluation
from distillens.forward.sequences import run
from distillens.supervision.losses import full_precision
from distillens.supervision.protocol import Supervision, student_logits, teacher_logits


@dataclass(eq=False, repr=False)
class CotrainedTeacher:
    """A module that takes a training step on each batch before the student sees its logits.

    With the teacher's own schedule this is online distillation in the limit of one checkpoint a
    step, at the price of training the teacher again for every student.

    Parameters
    ----------
    module
        The teacher, freshly initialised or pre-trained.
    optimizer
        Optimizer of its parameters.
    supervision
        Supervision of the teacher itself, usually one-hot.
    rate
        Learning rate: a number, or a function of the step.
    bfloat16
        Whether the teacher computes in bfloat16.

    Raises
    ------
    SupervisionError
        The module has no trainable parameters.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    supervision: Supervision
    rate: float | Callable[[int], float]
    _: KW_ONLY
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise SupervisionError(
                f"the teacher {type(self.module).__name__} has no trainable parameters; take "
                "FixedTeacher for a teacher that does not learn"
            )
        self._frozen = evaluation.frozen_statistics(self.module)

    def advance(self, batch: Batch, step: int) -> None:
        """Take the teacher's own step on the batch."""
        self.supervision.advance(batch, step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step) if callable(self.rate) else self.rate
        evaluation.train_mode(self.module, self._frozen)
        # The supervision of a student is also asked for a loss in contexts without gradients.
        with torch.enable_grad():
            with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=self.bfloat16):
                inputs = evaluation.own_inputs(batch.inputs, evaluation.input_type(self.module))
                output = run(self.module, inputs, batch.further)
            logits = student_logits(output, batch, self.supervision)
            batch = replace(batch, classes=logits.shape[-1])
            self.optimizer.zero_grad()
            # Weighed as the student's loss is, so that uneven shares make the mean of the whole batch.
            (self.supervision.loss(full_precision(logits), batch, step) * batch.weight).backward()
        evaluation.make_gradients_dense(self.module.parameters())
        self._average_gradients()
        self.optimizer.step()
        # Weights that the student shares must not bring the teacher's gradients to its step.
        self.optimizer.zero_grad()

    def logits(self, batch: Batch) -> Tensor:
        """Return the teacher's outputs after its step, in evaluation mode."""
        with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=self.bfloat16):
            output = evaluation.evaluate(self.module, batch.inputs, batch.further)
        return full_precision(teacher_logits(output, batch)).detach()

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimizer and the state of its own supervision."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "supervision": self.supervision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.supervision.load_state_dict(state["supervision"])

    def _average_gradients(self) -> None:
        # Each process saw its share of the batch; together they must take one and the same step.
        if not torch.distributed.is_initialized():
            return
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= torch.distributed.get_world_size()
