"""The `training` part of a recipe, and the learning rate as a function of the step."""

from __future__ import annotations

import bisect
import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["float32", "bfloat16"]
"""Data type of the computations in training; weights stay in float32."""

Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]
"""An experiment tracker that Accelerate can write to."""


class Schedule(BaseModel):
    """The learning rate after a linear warm-up.

    ``step`` multiplies it by ``factor`` at every milestone; milestones are shares of the training
    (0.375 of 256 epochs = epoch 96). ``cosine`` decreases it to zero. ``warmup`` is in epochs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["constant", "step", "cosine"] = "step"
    milestones: tuple[float, ...] = (0.375, 0.75, 0.875)
    factor: float = Field(default=0.1, gt=0, le=1)
    warmup: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _milestones_increase(self) -> Schedule:
        shares = self.milestones
        if list(shares) != sorted(shares) or any(not 0 < share < 1 for share in shares):
            raise ValueError(f"milestones must increase between 0 and 1, got {list(shares)}")
        return self

    def factor_at(self, step: int, steps_per_epoch: int, total: int) -> float:
        """Return the learning rate at a step as a share of its peak."""
        warmup = round(self.warmup * steps_per_epoch)
        if step < warmup:
            return (step + 1) / warmup
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        # The first step at or after each share; rounded before, so that 0.1 of 30 is 3 and not 4.
        places = [math.ceil(round(share * total, 6)) for share in self.milestones]
        passed = bisect.bisect_right(places, step)
        return self.factor**passed


class TrainingRecipe(BaseModel):
    """Settings of the training of a network.

    ``sgd`` is stochastic gradient descent with Nesterov momentum. ``adam`` and ``adamw`` have torch's
    β₁ = 0.9, β₂ = 0.999 and ε = 1e-8; ``momentum`` does not concern them. ``weight_decay`` is added to
    the gradient, for ``adamw`` taken off the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Schedule = Schedule()
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Largest Euclidean norm of the gradient of all parameters together, to which a longer gradient is
    scaled before weight decay is added; None scales nothing."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches per step; they change memory use, not the result (except BatchNorm's statistics)."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints whose weights are kept, in addition to epoch 0 and the last one."""
    deterministic: bool = False
    """Use only implementations that give the same bits whenever they are run. On a GPU, a training that
    was interrupted otherwise ends with weights that agree to rounding; on a CPU, bits agree anyway."""
    compile: bool = False
    """Train through `torch.compile`: pays on a GPU and for many epochs, not on a CPU in bfloat16."""

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        """The epochs whose weights are kept: 0, every multiple of ``checkpoint_every``, the last."""
        return tuple(sorted({*range(0, self.epochs, self.checkpoint_every), self.epochs}))

    def keeps(self, epoch: int) -> bool:
        """Return whether the weights of an epoch are kept."""
        return epoch % self.checkpoint_every == 0 or epoch == self.epochs

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> TrainingRecipe:
        # A resolved recipe contains the default; only another value was set by the user.
        if self.optimizer != "sgd" and self.momentum != 0.9:
            raise ValueError(
                f"momentum {self.momentum:g} belongs to optimizer sgd; {self.optimizer} has its own, "
                "leave it out"
            )
        return self
