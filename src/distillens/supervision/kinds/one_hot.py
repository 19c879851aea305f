"""The labels of the data set, without a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from distillens import supervision
from distillens.supervision.recipe import SupervisionEntry, register_supervision

if TYPE_CHECKING:
    from distillens.supervision import OneHot, Setting, Teachers


@register_supervision("one-hot")
class OneHotRecipe(SupervisionEntry):
    """The labels of the data set, smoothed if asked."""

    is_baseline: ClassVar[bool] = True

    smoothing: float = Field(default=0.0, ge=0, le=1)

    def described(self) -> str:
        return f"smoothed ε={self.smoothing:g}" if self.smoothing else "no KD"

    def build(self, setting: Setting, teachers: Teachers) -> OneHot:
        return supervision.OneHot(setting.loss, self.smoothing)
