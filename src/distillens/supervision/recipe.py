"""The `supervisions` part of a recipe: each kind with its own keys."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from distillens.errors import SupervisionError
from distillens.supervision.pace import TemperatureSchedule, pace_of

Loss = Literal["cross-entropy", "squared-error"]
"""The form of the losses of a study."""

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Entry(_Part):
    name: str | None = Field(default=None, min_length=1, max_length=60)
    """What tables call it; by default made of the kind and its values."""
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Which of the recipe's seeds; None for all."""
    training: dict[str, Any] | None = None
    """Keys of the student's training with another value under this supervision.

    The study's recipe merges them with ``student.training`` and checks the result.
    """

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.name or self._described()

    def _described(self) -> str:
        raise NotImplementedError


class LossRecipe(_Part):
    """Another loss to the teacher than the recipe's.

    ``dkd`` and ``dist`` with their two weights, or ``module:function``, called with (student logits,
    teacher logits, labels); see `distillens.supervision.compared`.
    """

    name: str
    weights: tuple[float, float] | None = None
    _code_folder: Path | None = PrivateAttr(default=None)

    @property
    def is_custom(self) -> bool:
        """Whether the name is a ``module:function``, code that belongs to the recipe."""
        return ":" in self.name

    @property
    def code_folder(self) -> Path | None:
        """Where ``module:function`` is looked for before Python's path; no part of the recipe."""
        return self._code_folder

    def look_in(self, folder: Path | None) -> None:
        """Set `code_folder`."""
        self._code_folder = folder

    @model_validator(mode="after")
    def _known(self) -> LossRecipe:
        if self.name not in ("dkd", "dist") and ":" not in self.name:
            raise ValueError(f"no loss {self.name!r}; known: dkd, dist, or module:function")
        if self.weights is not None and ":" in self.name:
            raise ValueError("weights belong to dkd and dist; a function of yours has its own")
        return self


class AverageRecipe(_Part):
    """Average the teacher over the checkpoints up to the one it is at: the last k, or decaying."""

    last: int | None = Field(default=None, ge=1)
    decay: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one(self) -> AverageRecipe:
        if (self.last is None) == (self.decay is None):
            raise ValueError("an average needs either last or decay")
        return self


class PeriodRecipe(_Part):
    """How often the online teacher moves on: in the teacher's epochs or steps."""

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one(self) -> PeriodRecipe:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a period needs either epochs or steps")
        return self


class OneHotRecipe(_Entry):
    """The dataset labels, smoothed if asked."""

    kind: Literal["one-hot"]
    smoothing: float = Field(default=0.0, ge=0, le=1)

    def _described(self) -> str:
        return f"smoothed ε={self.smoothing:g}" if self.smoothing else "no KD"


class _Taught(_Entry):
    temperature: Temperature | TemperatureSchedule = 1.0
    alpha: float = Field(default=1.0, ge=0, le=1)
    """Weight of the teacher; the labels have the rest."""
    loss: LossRecipe | None = None

    @model_validator(mode="after")
    def _temperature_is_passed_on(self) -> _Taught:
        if self.loss is not None and ":" in self.loss.name and self.temperature != 1:
            raise ValueError(
                f"loss {self.loss.name!r} is called without a temperature; "
                "leave temperature out and use yours inside"
            )
        return self

    def _with(self, kind: str, *more: str) -> str:
        parts = [kind, f"τ={self.temperature:g}", *more]
        if self.alpha != 1:
            parts.append(f"α={self.alpha:g}")
        if self.loss is not None:
            parts.append(self.loss.name.rpartition(":")[2])
        return " ".join(part for part in parts if part)


class OfflineRecipe(_Taught):
    """The finished teacher, an average of its last checkpoints, or one from earlier."""

    kind: Literal["offline"]
    average: AverageRecipe | None = None
    early_stop: Annotated[int, Field(ge=1)] | Literal["validation"] | None = None
    """The teacher's epoch, or the one with the lowest validation loss."""

    def _described(self) -> str:
        stop = f"stop={self.early_stop}" if self.early_stop is not None else ""
        return self._with("offline", stop, _average_words(self.average))


class OnlineRecipe(_Taught):
    """The teacher's checkpoints in the order in which it learned (Algorithm 1)."""

    kind: Literal["online"]
    pace: float | tuple[tuple[float, float], ...] = 1.0
    period: PeriodRecipe | None = None
    """None: every checkpoint that the teacher has."""
    average: AverageRecipe | None = None

    @model_validator(mode="after")
    def _pace_is_one(self) -> OnlineRecipe:
        try:
            pace_of(self.pace)
        except SupervisionError as error:
            raise ValueError(str(error)) from None
        return self

    def _described(self) -> str:
        pace = (
            ""
            if self.pace == 1
            else f"pace={self.pace:g}"
            if isinstance(self.pace, float)
            else "paced"
        )
        period = ""
        if self.period is not None and self.period != PeriodRecipe(epochs=1):
            number = self.period.epochs or self.period.steps
            period = f"every {number} {'epochs' if self.period.epochs else 'steps'}"
        return self._with("online", pace, period, _average_words(self.average))


class CotrainedRecipe(_Taught):
    """A teacher that learns beside the student, by the recipe's teacher.model and teacher.training."""

    kind: Literal["co-trained"]

    def _described(self) -> str:
        return self._with("co-trained")


class SelfRecipe(_Taught):
    """Self-distillation: the finished one-hot student teaches the next one, and so on."""

    kind: Literal["self-distillation"]
    generations: int = Field(default=1, ge=1, le=20)

    def _described(self) -> str:
        return self._with("self", f"generation {self.generations}" if self.generations > 1 else "")


class SwitchedRecipe(_Entry):
    """One supervision, then another. ``at`` is a share of the training, ``window`` is in steps."""

    kind: Literal["switched"]
    first: SimpleRecipe
    then: SimpleRecipe
    at: float = Field(gt=0, lt=1)
    window: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_training(self) -> SwitchedRecipe:
        if self.first.training or self.then.training:
            raise ValueError(
                "both sides of a switch share one training; "
                "set training on the switched supervision, not on first or then"
            )
        return self

    def step(self, steps: int) -> int:
        """Return the step of a training of so many at which the change begins."""
        return math.ceil(round(self.at * steps, 6))

    def _described(self) -> str:
        return f"{self.first.title} → {self.then.title} at {self.at:g}"


def _average_words(average: AverageRecipe | None) -> str:
    if average is None:
        return ""
    return f"last {average.last}" if average.last else f"decay={average.decay:g}"


SimpleRecipe = Annotated[
    OneHotRecipe | OfflineRecipe | OnlineRecipe | CotrainedRecipe, Field(discriminator="kind")
]
SupervisionRecipe = Annotated[
    OneHotRecipe | OfflineRecipe | OnlineRecipe | CotrainedRecipe | SelfRecipe | SwitchedRecipe,
    Field(discriminator="kind"),
]
SwitchedRecipe.model_rebuild()

KINDS = ("one-hot", "offline", "online", "co-trained", "self-distillation", "switched")


def parts_of(entry: Any) -> list[Any]:
    """Return the simple entries of an entry: both sides of a switch, or the entry itself."""
    return [entry.first, entry.then] if isinstance(entry, SwitchedRecipe) else [entry]
