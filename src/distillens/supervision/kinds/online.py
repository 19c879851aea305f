"""A teacher whose checkpoints the student follows in the order in which the teacher learned."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from distillens.errors import SupervisionError
from distillens.supervision.pace import pace_of
from distillens.supervision.recipe import (
    AverageRecipe,
    Need,
    Part,
    Schedules,
    TaughtEntry,
    register_supervision,
)

if TYPE_CHECKING:
    from distillens.supervision.build import Setting, Teachers
    from distillens.supervision.teachers.followed import OnlineTeacher


class PeriodRecipe(Part):
    """How often the online teacher moves on: in the teacher's epochs or steps."""

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one(self) -> PeriodRecipe:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a period needs either epochs or steps")
        return self

    def __str__(self) -> str:
        return f"{self.epochs} epochs" if self.epochs else f"{self.steps} steps"


@register_supervision("online")
class OnlineRecipe(TaughtEntry):
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

    def described(self) -> str:
        pace = f"pace={self.pace:g}" if isinstance(self.pace, float) else "paced"
        period = "" if self.period in (None, PeriodRecipe(epochs=1)) else f"every {self.period}"
        return self.described_with("online", "" if self.pace == 1 else pace, period, self.average)

    def needs(self) -> frozenset[Need]:
        return frozenset({"trajectory"})

    def teacher_epochs(self, schedules: Schedules) -> Callable[[int], Iterable[Hashable]]:
        from distillens.supervision.teachers.averaged import averaged_places
        from distillens.supervision.teachers.followed import (
            OnlineTeacher,
            TeacherCheckpoint,
            periodic,
        )

        def never() -> Any:
            raise AssertionError("a checkpoint that is only counted is not loaded")

        kept, steps = schedules.kept, schedules.student_steps
        every = [TeacherCheckpoint(e * schedules.teacher_steps, never, e) for e in kept]
        path = periodic(every, self.period)
        teacher = OnlineTeacher(path, schedules.student_epochs * steps, pace=pace_of(self.pace))

        def followed(epoch: int) -> Iterable[int]:
            first, last = teacher.place(epoch * steps), teacher.place((epoch + 1) * steps - 1)
            for point in path[first : last + 1]:
                assert point.epoch is not None
                for place in averaged_places(kept.index(point.epoch), self.average):
                    yield kept[place]

        return followed

    def teacher(self, setting: Setting, teachers: Teachers) -> OnlineTeacher:
        from distillens.supervision.teachers.averaged import averaged
        from distillens.supervision.teachers.followed import OnlineTeacher, periodic

        path = averaged(teachers.trajectory(), self.average)
        return OnlineTeacher(periodic(path, self.period), setting.steps, pace=pace_of(self.pace))
