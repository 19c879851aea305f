"""From an entry of a recipe to a supervision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

from torch import Tensor

from distillens.errors import DistillensError, RecipeError, SupervisionError
from distillens.files.user_code import import_named
from distillens.supervision.compared import decoupled, dist
from distillens.supervision.pace import TemperatureSchedule
from distillens.supervision.protocol import Supervision, Teacher, checked_loss, is_across_examples
from distillens.supervision.recipe import Loss, LossRecipe, SupervisionEntry, TaughtEntry
from distillens.supervision.teachers.followed import TeacherCheckpoint
from distillens.supervision.values import Distillation, Mixed, OneHot, TeacherLoss


class Teachers(Protocol):
    """The source of an entry's teachers, which are created on demand."""

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
        """Return a fresh teacher that is trained together with the student."""
        ...

    def previous_generation(self) -> Teacher:
        """Return the student of the generation before, finished."""
        ...


@dataclass(frozen=True)
class Setting:
    """Settings that entries share: form of the losses, the student's steps, trusted code."""

    loss: Loss
    steps: int
    trust_code: bool = False


def build_supervision(entry: SupervisionEntry, setting: Setting, teachers: Teachers) -> Supervision:
    """Build the supervision of an entry of a recipe.

    Raises
    ------
    SupervisionError
        The teacher has no such checkpoint.
    RecipeError
        A user-defined loss is not trusted or cannot be imported.
    """
    return entry.build(setting, teachers)


def taught(entry: TaughtEntry, teacher: Teacher, setting: Setting) -> Supervision:
    """Return the distillation of a teacher, mixed with the labels if ``alpha`` is below 1."""
    loss = setting.loss if entry.loss is None else _named_loss(entry.loss, setting.trust_code)
    distilled = Distillation(teacher, _temperature(entry.temperature, setting.steps), loss)
    if entry.alpha == 1:
        return distilled
    return Mixed(OneHot(setting.loss), distilled, entry.alpha)


def _temperature(value: float | TemperatureSchedule, steps: int) -> float | Callable[[int], float]:
    if isinstance(value, TemperatureSchedule):
        return lambda step: value.at(step / max(1, steps - 1))
    return value


def _named_loss(recipe: LossRecipe, trust_code: bool) -> TeacherLoss:
    if recipe.is_custom:
        function = _import(recipe, trust_code)
        loss = partial(_custom, recipe.name, function)
        capturable = bool(getattr(function, "capturable", False))
        vars(loss).update(across_examples=is_across_examples(function), capturable=capturable)
        return loss
    first, second = recipe.weights or ((1.0, 8.0) if recipe.name == "dkd" else (1.0, 1.0))

    def named(
        logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float, mask: Tensor | None
    ) -> Tensor:
        if recipe.name == "dkd":
            return decoupled(
                logits, teacher, labels, temperature,
                target_weight=first, other_weight=second, mask=mask,
            )  # fmt: skip
        return dist(
            logits, teacher, temperature, inter_weight=first, intra_weight=second, mask=mask
        )

    vars(named).update(across_examples=recipe.name == "dist", capturable=True)
    return named


def _custom(
    name: str,
    function: Callable[..., Tensor],
    logits: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    mask: Tensor | None,
) -> Tensor:
    """Call a user-defined loss on the positions that count."""
    if mask is not None:
        logits, teacher, labels = logits[mask], teacher[mask], labels[mask]
    try:
        return checked_loss(function(logits, teacher, labels), f"loss {name!r}")
    except DistillensError:
        raise
    # User code may raise any exception.
    except Exception as error:
        text = " ".join(str(error).split())[:240]
        raise SupervisionError(
            f"loss {name!r} stops with {type(error).__name__}: {text}"
        ) from error


def check_losses(entry: Any, *, trust_code: bool) -> None:
    """Refuse, before anything runs, a loss that may not be run.

    Raises
    ------
    RecipeError
        As :func:`build_supervision`.
    """
    loss = getattr(entry, "loss", None)
    if loss is not None and loss.is_custom:
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
