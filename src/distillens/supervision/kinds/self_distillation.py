"""A finished student that teaches the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from distillens.supervision.recipe import Need, TaughtEntry, register_supervision

if TYPE_CHECKING:
    from distillens.supervision.build import Setting, Teachers
    from distillens.supervision.protocol import Teacher


@register_supervision("self-distillation")
class SelfRecipe(TaughtEntry):
    """Self-distillation: the finished one-hot student teaches the next one, and so on."""

    kind: Literal["self-distillation"]
    generations: int = Field(default=1, ge=1, le=20)

    def described(self) -> str:
        more = f"generation {self.generations}" if self.generations > 1 else ""
        return self.described_with("self", more)

    def needs(self) -> frozenset[Need]:
        return frozenset({"previous student"})

    def students(self) -> int:
        return self.generations

    def teacher(self, setting: Setting, teachers: Teachers) -> Teacher:
        return teachers.previous_generation()
