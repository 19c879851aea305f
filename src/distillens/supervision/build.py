"""From an entry of a recipe to a supervision."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from distillens.errors import DistillensError, RecipeError, SupervisionError, listed
from distillens.files.user_code import import_named
from distillens.supervision.compared import decoupled, dist
from distillens.supervision.pace import TemperatureSchedule, pace_of
from distillens.supervision.protocol import Supervision, Teacher, is_across_examples
from distillens.supervision.recipe import (
    AverageRecipe,
    CotrainedRecipe,
    Loss,
    LossRecipe,
    OfflineRecipe,
    OneHotRecipe,
    OnlineRecipe,
    PeriodRecipe,
    SelfRecipe,
    SwitchedRecipe,
)
from distillens.supervision.teachers.averaged import AveragedTeacher, decaying_weights
from distillens.supervision.teachers.followed import OnlineTeacher, TeacherCheckpoint, as_teacher
from distillens.supervision.values import Distillation, Mixed, OneHot, Switched, TeacherLoss

NEGLIGIBLE = 1e-3
"""Weights of a decaying average below this share of the newest one are left out."""


class Teachers(Protocol):
    """Where an entry's teachers come from; each is made only when an entry asks for it."""

    def final(self) -> Teacher:
        """Return the finished teacher."""
        ...

    def trajectory(self) -> Sequence[TeacherCheckpoint]:
        """Return the teacher's checkpoints in order: those of the epochs that were kept."""
        ...

    def lowest_validation_loss(self) -> int:
        """Return the epoch, from 1, at which the teacher's validation loss was lowest."""
        ...

    def cotrained(self) -> Teacher:
        """Return a teacher that will learn beside the student."""
        ...

    def previous_generation(self) -> Teacher:
        """Return the student of the generation before, finished."""
        ...


@dataclass(frozen=True)
class Setting:
    """What entries share: the form of the losses, the student's steps, whose code may run."""

    loss: Loss
    steps: int
    trust_code: bool = False


def build_supervision(entry: Any, setting: Setting, teachers: Teachers) -> Supervision:
    """Build what an entry of a recipe says.

    Raises
    ------
    SupervisionError
        The teacher has no such checkpoint.
    RecipeError
        A loss of the recipe's author is not trusted or cannot be imported.
    """
    if isinstance(entry, SwitchedRecipe):
        first = build_supervision(entry.first, setting, teachers)
        then = build_supervision(entry.then, setting, teachers)
        return Switched(first, then, entry.step(setting.steps), entry.window)
    if isinstance(entry, OneHotRecipe):
        return OneHot(setting.loss, entry.smoothing)
    taught = Distillation(
        _teacher(entry, setting, teachers),
        _temperature(entry.temperature, setting.steps),
        setting.loss if entry.loss is None else _named_loss(entry.loss, setting.trust_code),
    )
    if entry.alpha == 1:
        return taught
    return Mixed(OneHot(setting.loss), taught, entry.alpha)


def _teacher(entry: Any, setting: Setting, teachers: Teachers) -> Teacher:
    if isinstance(entry, CotrainedRecipe):
        return teachers.cotrained()
    if isinstance(entry, SelfRecipe):
        return teachers.previous_generation()
    if isinstance(entry, OnlineRecipe):
        path = _averaged(teachers.trajectory(), entry.average)
        return OnlineTeacher(periodic(path, entry.period), setting.steps, pace=pace_of(entry.pace))
    assert isinstance(entry, OfflineRecipe)
    if entry.early_stop is None and entry.average is None:
        return teachers.final()
    path = list(teachers.trajectory())
    epochs = _epochs(path)
    epoch = epochs[-1] if entry.early_stop is None else entry.early_stop
    if epoch == "validation":
        epoch = teachers.lowest_validation_loss()
    if epoch not in epochs:
        raise SupervisionError(
            f"early_stop names the teacher's epoch {epoch}; it has checkpoints of the epochs "
            f"{listed(epochs)} (training.checkpoint_every of the teacher)"
        )
    return as_teacher(_averaged(path, entry.average)[epochs.index(epoch)].load())


def _epochs(path: Sequence[TeacherCheckpoint]) -> list[int]:
    return [place if point.epoch is None else point.epoch for place, point in enumerate(path, 1)]


def periodic(
    path: Sequence[TeacherCheckpoint], period: PeriodRecipe | None
) -> list[TeacherCheckpoint]:
    """Keep the checkpoints at whole periods, and the last."""
    if period is None:
        return list(path)
    epochs = _epochs(path)
    per_epoch = path[0].step // epochs[0]
    steps = period.steps or (period.epochs or 1) * per_epoch
    wanted = set(range(steps, path[-1].step, steps))
    if steps % per_epoch or wanted - {point.step for point in path}:
        given = f"{period.epochs} epochs" if period.epochs else f"{steps} steps"
        raise SupervisionError(
            f"a period of {given} does not fit the teacher's checkpoints, which are of the epochs "
            f"{listed(epochs)} ({per_epoch} steps an epoch); use a multiple of {path[0].step} steps, "
            "or a smaller training.checkpoint_every of the teacher"
        )
    return [point for point in path if point.step in wanted or point is path[-1]]


def averaged_places(last: int, average: AverageRecipe | None) -> range:
    """Return the places of the checkpoints that a teacher at a place averages; itself without one."""
    if average is None:
        return range(last, last + 1)
    count = average.last or 1 + math.floor(math.log(NEGLIGIBLE) / math.log(average.decay or 0.5))
    return range(max(0, last + 1 - count), last + 1)


def _averaged(
    path: Sequence[TeacherCheckpoint], average: AverageRecipe | None
) -> list[TeacherCheckpoint]:
    """Return checkpoints each of which averages those up to itself."""
    if average is None:
        return list(path)

    def mean(last: int) -> Teacher:
        used = [path[place] for place in averaged_places(last, average)]
        weights = (
            [1.0] * len(used)
            if average.decay is None
            else decaying_weights(len(used), average.decay)
        )
        return AveragedTeacher([point.load() for point in used], weights)

    return [
        TeacherCheckpoint(point.step, lambda place=place: mean(place), point.epoch)
        for place, point in enumerate(path)
    ]


def _temperature(value: float | TemperatureSchedule, steps: int) -> float | Callable[[int], float]:
    if isinstance(value, TemperatureSchedule):
        return lambda step: value.at(step / max(1, steps - 1))
    return value


def _named_loss(recipe: LossRecipe, trust_code: bool) -> TeacherLoss:
    if recipe.name == "dkd":
        target, other = recipe.weights or (1.0, 8.0)
        return _NamedLoss(
            lambda f, g, labels, temperature, mask: decoupled(
                f, g, labels, temperature, target_weight=target, other_weight=other, mask=mask
            ),
            across_examples=False,
            capturable=True,
        )
    if recipe.name == "dist":
        inter, intra = recipe.weights or (1.0, 1.0)
        return _NamedLoss(
            lambda f, g, labels, temperature, mask: dist(
                f, g, temperature, inter_weight=inter, intra_weight=intra, mask=mask
            ),
            across_examples=True,
            capturable=True,
        )
    function = _import(recipe, trust_code)

    def custom(
        logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float, mask: Tensor | None
    ) -> Tensor:
        if mask is not None:
            # The function is not told of positions that do not count.
            logits, teacher, labels = logits[mask], teacher[mask], labels[mask]
        try:
            value = function(logits, teacher, labels)
        except DistillensError:
            raise
        # Code of the user's own may end in any way.
        except Exception as error:
            text = " ".join(str(error).split())[:240]
            raise SupervisionError(
                f"loss {recipe.name!r} stops with {type(error).__name__}: {text}"
            ) from error
        if not isinstance(value, Tensor) or value.ndim:
            raise SupervisionError(
                f"loss {recipe.name!r} must return a scalar tensor, got {value!r:.80}"
            )
        return value

    return _NamedLoss(
        custom,
        across_examples=is_across_examples(function),
        capturable=bool(getattr(function, "capturable", False)),
    )


@dataclass(frozen=True)
class _NamedLoss:
    function: TeacherLoss
    across_examples: bool
    capturable: bool

    def __call__(
        self,
        logits: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float,
        mask: Tensor | None,
    ) -> Tensor:
        return self.function(logits, teacher, labels, temperature, mask)


def check_losses(entry: Any, *, trust_code: bool) -> None:
    """Refuse, before anything runs, a loss that may not be run.

    Raises
    ------
    RecipeError
        As :func:`build_supervision`.
    """
    loss = getattr(entry, "loss", None)
    if loss is not None and ":" in loss.name:
        _import(loss, trust_code)


def _import(loss: LossRecipe, trust_code: bool) -> Callable[..., Tensor]:
    found = import_named(loss.name, "loss", trusted=trust_code, folder=loss.code_folder)
    if not callable(found):
        raise RecipeError(f"loss {loss.name!r} is a {type(found).__name__}, not a function")
    try:
        inspect.signature(found).bind("student", "teacher", "labels")
    except TypeError as error:
        raise RecipeError(
            f"loss {loss.name!r} cannot be called with student logits, teacher logits and labels: "
            f"{error}"
        ) from None
    # Some callables of compiled libraries have no signature.
    except ValueError:
        pass
    return cast(Callable[..., Tensor], found)
