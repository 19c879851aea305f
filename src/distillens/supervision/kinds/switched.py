"""One supervision, then another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from distillens import supervision
from distillens.supervision.recipe import (
    AnySupervision,
    Need,
    SupervisionEntry,
    register_supervision,
)

if TYPE_CHECKING:
    from distillens.supervision import Setting, Switched, Teachers


@register_supervision("switched")
class SwitchedRecipe(SupervisionEntry):
    """One supervision, then another. ``at`` is a share of the training, ``window`` is in steps."""

    first: AnySupervision
    then: AnySupervision
    at: float = Field(gt=0, lt=1)
    window: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_training(self) -> SwitchedRecipe:
        for side in self.parts():
            if len(side.parts()) > 1 or "previous student" in side.needs():
                raise ValueError(
                    f"a supervision of kind {side.kind!r} cannot be a side of a switch"
                )
            if side.training:
                raise ValueError(
                    "both sides of a switch share one training; "
                    "set training on the switched supervision, not on first or then"
                )
        return self

    def described(self) -> str:
        return f"{self.first.title} → {self.then.title} at {self.at:g}"

    def parts(self) -> tuple[SupervisionEntry, ...]:
        return (self.first, self.then)

    def needs(self) -> frozenset[Need]:
        return self.first.needs() | self.then.needs()

    def step(self, steps: int) -> int:
        """Return the step at which the change begins, in a training of ``steps`` steps."""
        return math.ceil(round(self.at * steps, 6))

    def build(self, setting: Setting, teachers: Teachers) -> Switched:
        first, then = (side.build(setting, teachers) for side in self.parts())
        return supervision.Switched(first, then, self.step(setting.steps), self.window)
