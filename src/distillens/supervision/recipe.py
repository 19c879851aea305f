"""The `supervisions` part of a recipe, and how an entry becomes a supervision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from distillens.supervision.losses import Loss
from distillens.supervision.protocol import Supervision, Teacher
from distillens.supervision.values import Distillation, Mixed, OneHot


class _Named(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(default=None, min_length=1, max_length=60)


class OneHotRecipe(_Named):
    """The dataset labels."""

    kind: Literal["one-hot"]

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.name or "no KD"


class _Taught(_Named):
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    alpha: float = Field(default=1.0, ge=0, le=1)

    def _title(self, kind: str) -> str:
        mixed = "" if self.alpha == 1 else f" α={self.alpha:g}"
        return self.name or f"{kind} τ={self.temperature:g}{mixed}"


class OfflineRecipe(_Taught):
    """The finished teacher at a temperature, mixed with the labels where alpha is below 1."""

    kind: Literal["offline"]

    @property
    def title(self) -> str:
        """What tables call it."""
        return self._title("offline")


class OnlineRecipe(_Taught):
    """The teacher's checkpoints in the order in which it learned (Algorithm 1)."""

    kind: Literal["online"]

    @property
    def title(self) -> str:
        """What tables call it."""
        return self._title("online")


SupervisionRecipe = Annotated[
    OneHotRecipe | OfflineRecipe | OnlineRecipe, Field(discriminator="kind")
]


def build_supervision(
    recipe: OneHotRecipe | OfflineRecipe | OnlineRecipe,
    loss: Loss,
    offline: Callable[[], Teacher],
    online: Callable[[], Teacher],
) -> Supervision:
    """Build what an entry of a recipe says.

    Parameters
    ----------
    recipe
        The entry.
    loss
        Which form the losses have.
    offline, online
        Make the finished and the online teacher; called only where the entry asks for one.
    """
    if isinstance(recipe, OneHotRecipe):
        return OneHot(loss)
    teacher = offline() if isinstance(recipe, OfflineRecipe) else online()
    taught = Distillation(teacher, recipe.temperature, loss)
    if recipe.alpha == 1:
        return taught
    return Mixed(OneHot(loss), taught, recipe.alpha)
