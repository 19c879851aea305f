"""The kinds of supervision that distillens has: labels, teachers, and one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from distillens import supervision
from distillens.errors import SupervisionError, listed
from distillens.supervision.pace import pace_of
from distillens.supervision.recipe import (
    AnySupervision,
    AverageRecipe,
    Need,
    OneOf,
    Schedules,
    SupervisionEntry,
    TaughtEntry,
    register_supervision,
)

if TYPE_CHECKING:
    from distillens.supervision import OneHot, OnlineTeacher, Setting, Switched, Teacher, Teachers


@register_supervision("one-hot")
class OneHotRecipe(SupervisionEntry):
    """The labels of the data set, smoothed if asked."""

    is_baseline: ClassVar[bool] = True

    smoothing: float = Field(default=0.0, ge=0, le=1)

    def described(self) -> str:
        return f"smoothed ε={self.smoothing:g}" if self.smoothing else "no KD"

    def build(self, setting: Setting, teachers: Teachers) -> OneHot:
        return supervision.OneHot(setting.loss, self.smoothing)


@register_supervision("offline")
class OfflineRecipe(TaughtEntry):
    """The finished teacher, an average of its last checkpoints, or an earlier checkpoint."""

    average: AverageRecipe | None = None
    early_stop: Annotated[int, Field(ge=1)] | Literal["validation"] | None = None
    """The teacher's epoch, or the one with the lowest validation loss."""

    def described(self) -> str:
        stop = f"stop={self.early_stop}" if self.early_stop is not None else ""
        return self.described_with("offline", stop, self.average)

    def needs(self) -> frozenset[Need]:
        finished = self.early_stop is None and self.average is None
        return frozenset({"final teacher" if finished else "trajectory"})

    def teacher_epochs(self, schedules: Schedules) -> Callable[[int], Iterable[Hashable]]:
        if self.early_stop == "validation":
            return lambda epoch: ("validation",)
        kept = schedules.kept
        place = kept.index(self.early_stop or kept[-1])
        return lambda epoch: (
            kept[each] for each in supervision.averaged_places(place, self.average)
        )

    def teacher(self, setting: Setting, teachers: Teachers) -> Teacher:
        if "final teacher" in self.needs():
            return teachers.final()
        path = teachers.trajectory()
        epochs = supervision.epochs_of(path)
        epoch = epochs[-1] if self.early_stop is None else self.early_stop
        if epoch == "validation":
            epoch = teachers.lowest_validation_loss()
        if epoch not in epochs:
            raise SupervisionError(
                f"early_stop names the teacher's epoch {epoch}; it has checkpoints of the epochs "
                f"{listed(epochs)} (training.checkpoint_every of the teacher)"
            )
        return supervision.as_teacher(
            supervision.averaged(path, self.average)[epochs.index(epoch)].load()
        )


class PeriodRecipe(OneOf):
    """Period of the online teacher's checkpoints, in the teacher's epochs or steps."""

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)

    def __str__(self) -> str:
        return f"{self.epochs} epochs" if self.epochs else f"{self.steps} steps"


@register_supervision("online")
class OnlineRecipe(TaughtEntry):
    """The teacher's checkpoints in the order in which it learned (Algorithm 1)."""

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

    def described(self) -> str:
        pace = f"pace={self.pace:g}" if isinstance(self.pace, float) else "paced"
        period = "" if self.period in (None, PeriodRecipe(epochs=1)) else f"every {self.period}"
        return self.described_with("online", "" if self.pace == 1 else pace, period, self.average)

    def needs(self) -> frozenset[Need]:
        return frozenset({"trajectory"})

    def teacher_epochs(self, schedules: Schedules) -> Callable[[int], Iterable[Hashable]]:
        def never() -> Any:
            raise AssertionError("a checkpoint that is only counted is not loaded")

        kept, steps = schedules.kept, schedules.student_steps
        every = [supervision.TeacherCheckpoint(e * schedules.teacher_steps, never, e) for e in kept]
        path = supervision.periodic(every, self.period)
        teacher = supervision.OnlineTeacher(
            path, schedules.student_epochs * steps, pace=pace_of(self.pace)
        )

        def followed(epoch: int) -> Iterable[int]:
            first, last = teacher.place(epoch * steps), teacher.place((epoch + 1) * steps - 1)
            for point in path[first : last + 1]:
                assert point.epoch is not None
                for place in supervision.averaged_places(kept.index(point.epoch), self.average):
                    yield kept[place]

        return followed

    def teacher(self, setting: Setting, teachers: Teachers) -> OnlineTeacher:
        path = supervision.averaged(teachers.trajectory(), self.average)
        return supervision.OnlineTeacher(
            supervision.periodic(path, self.period), setting.steps, pace=pace_of(self.pace)
        )


@register_supervision("co-trained")
class CotrainedRecipe(TaughtEntry):
    """A fresh teacher that takes its steps on the student's batches.

    It is built and trained by the recipe's ``teacher.model`` and ``teacher.training``.
    """

    def needs(self) -> frozenset[Need]:
        return frozenset({"co-trained teacher"})

    def teacher(self, setting: Setting, teachers: Teachers) -> Teacher:
        return teachers.cotrained()


@register_supervision("self-distillation")
class SelfRecipe(TaughtEntry):
    """Self-distillation: the finished one-hot student teaches the next one, and so on."""

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
