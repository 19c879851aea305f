"""A teacher that is trained together with the student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from distillens.supervision.recipe import Need, TaughtEntry, register_supervision

if TYPE_CHECKING:
    from distillens.supervision.build import Setting, Teachers
    from distillens.supervision.protocol import Teacher


@register_supervision("co-trained")
class CotrainedRecipe(TaughtEntry):
    """A fresh teacher that takes its steps on the student's batches.

    It is built and trained by the recipe's ``teacher.model`` and ``teacher.training``.
    """

    kind: Literal["co-trained"]

    def described(self) -> str:
        return self.described_with("co-trained")

    def needs(self) -> frozenset[Need]:
        return frozenset({"co-trained teacher"})

    def teacher(self, setting: Setting, teachers: Teachers) -> Teacher:
        return teachers.cotrained()
