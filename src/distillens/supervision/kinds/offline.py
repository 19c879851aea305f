"""A teacher that does not change while the student is trained."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from distillens.errors import SupervisionError, listed
from distillens.supervision.recipe import (
    AverageRecipe,
    Need,
    Schedules,
    TaughtEntry,
    register_supervision,
)

if TYPE_CHECKING:
    from distillens.supervision.build import Setting, Teachers
    from distillens.supervision.protocol import Teacher


@register_supervision("offline")
class OfflineRecipe(TaughtEntry):
    """The finished teacher, an average of its last checkpoints, or an earlier checkpoint."""

    kind: Literal["offline"]
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
        from distillens.supervision.teachers.averaged import averaged_places

        if self.early_stop == "validation":
            return lambda epoch: ("validation",)
        kept = schedules.kept
        place = kept.index(self.early_stop or kept[-1])
        return lambda epoch: (kept[each] for each in averaged_places(place, self.average))

    def teacher(self, setting: Setting, teachers: Teachers) -> Teacher:
        from distillens.supervision.teachers.averaged import averaged
        from distillens.supervision.teachers.followed import as_teacher, epochs_of

        if "final teacher" in self.needs():
            return teachers.final()
        path = teachers.trajectory()
        epochs = epochs_of(path)
        epoch = epochs[-1] if self.early_stop is None else self.early_stop
        if epoch == "validation":
            epoch = teachers.lowest_validation_loss()
        if epoch not in epochs:
            raise SupervisionError(
                f"early_stop names the teacher's epoch {epoch}; it has checkpoints of the epochs "
                f"{listed(epochs)} (training.checkpoint_every of the teacher)"
            )
        return as_teacher(averaged(path, self.average)[epochs.index(epoch)].load())
