"""The `supervisions` part of a recipe; read and checked without torch.

Each kind of supervision is a subclass of `SupervisionEntry` that is registered by its name. A recipe
finds it there by the key ``kind``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from distillens import supervision
from distillens.errors import nearest
from distillens.files.user_code import CodePart
from distillens.registry import Registry
from distillens.supervision.pace import TemperatureSchedule

if TYPE_CHECKING:
    from distillens.supervision import Setting, Supervision, Teacher, Teachers

Loss = Literal["cross-entropy", "squared-error"]
"""The form of the losses of a study."""

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Need = Literal["final teacher", "trajectory", "co-trained teacher", "previous student"]
"""Needs of a supervision.

The finished teacher; the checkpoints of its training; a fresh teacher that is trained together with
the student; the student of the generation before, of which the first is the baseline.
"""


class Part(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Schedules:
    """The epochs of a student and of its teacher, from which the teacher's checkpoints are counted.

    Parameters
    ----------
    student_epochs, student_steps
        Epochs of the student's training, and steps of one of them.
    kept
        The teacher's epochs whose weights are kept, without epoch 0.
    teacher_steps
        Steps of an epoch of the teacher.
    """

    student_epochs: int
    student_steps: int
    kept: tuple[int, ...]
    teacher_steps: int


class SupervisionEntry(Part):
    """Base of all kinds of supervision: an entry of a recipe's ``supervisions``.

    A kind declares its further keys as fields and implements `build`. It is found by recipes once it
    is registered; see `register_supervision`.
    """

    is_baseline: ClassVar[bool] = False
    """Whether its student is trained on the labels alone and is the baseline of comparisons.

    Complexity is measured along the baseline, and self-distillation starts from it.
    """

    kind: str
    name: str | None = Field(default=None, min_length=1, max_length=60)
    """Title in tables; by default made of the kind and its values."""
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Seeds of the recipe that it uses; None for all."""
    training: dict[str, Any] | None = None
    """Keys of the student's training with another value under this supervision.

    The study's recipe merges them with ``student.training`` and checks the result.
    """

    @property
    def title(self) -> str:
        """Title in tables."""
        return self.name or self.described()

    def described(self) -> str:
        """Return the title of an entry without a name; by default the kind."""
        return self.kind

    def needs(self) -> frozenset[Need]:
        """Return the needs that `build` has of the study; by default none."""
        return frozenset()

    def parts(self) -> tuple[SupervisionEntry, ...]:
        """Return the entries that it consists of; by default itself alone."""
        return (self,)

    def students(self) -> int:
        """Return how many students are trained one after the other, each taught by the one before."""
        return 1

    def teacher_epochs(self, schedules: Schedules) -> Callable[[int], Iterable[Hashable]]:
        """Return a function from a student's epoch to the teacher's epochs whose logits it reads.

        Plans count the teacher's logits by it. By default it is the last epoch if the finished
        teacher is needed, and none otherwise.
        """
        last = schedules.kept[-1:] if "final teacher" in self.needs() else ()
        return lambda epoch: last

    def build(self, setting: Setting, teachers: Teachers) -> Supervision:
        """Return the supervision.

        Parameters
        ----------
        setting
            Settings that the entries of a study share: form of the losses and the student's steps.
        teachers
            Source of the teachers that it needs.
        """
        raise NotImplementedError


SUPERVISIONS: Registry[type[SupervisionEntry]] = Registry(
    "supervision", package="distillens.supervision.kinds"
)
"""All kinds of supervision by their name."""

Kind = TypeVar("Kind", bound=type[SupervisionEntry])


def register_supervision(kind: str) -> Callable[[Kind], Kind]:
    """Return a decorator that makes a subclass of `SupervisionEntry` a kind that recipes can name.

    Examples
    --------
    >>> @register_supervision("labels-twice")
    ... class LabelsTwice(SupervisionEntry):
    ...     def build(self, setting, teachers):
    ...         from distillens.supervision import Mixed, OneHot
    ...         return Mixed(OneHot(setting.loss), OneHot(setting.loss), 0.5)
    """
    return SUPERVISIONS.register(kind)


def _by_kind(value: Any, handler: Callable[[Any], SupervisionEntry]) -> SupervisionEntry:
    """Validate an entry by the class of its kind; errors have the kind in their location."""
    if not isinstance(value, dict):
        return handler(value)
    kind, known = value.get("kind"), SUPERVISIONS.names()
    if not isinstance(kind, str) or kind not in known:
        problem = "kind is missing" if kind is None else f"no kind {kind!r}"
        hint = nearest("" if kind is None else str(kind), known)
        raise ValueError(f"{problem}{hint}")
    entry = SUPERVISIONS.get(kind)
    try:
        return entry.model_validate(value)
    except ValidationError as error:
        raise moved(error, (kind,)) from None


AnySupervision = SerializeAsAny[Annotated[SupervisionEntry, WrapValidator(_by_kind)]]
"""An entry of any registered kind."""


def moved(error: ValidationError, place: tuple[int | str, ...]) -> ValidationError:
    """Return a validation error of a part with its locations counted from the whole."""
    lines = [
        InitErrorDetails(
            type=line["type"],
            loc=(*place, *line["loc"]),
            input=line["input"],
            ctx=line.get("ctx", {}),
        )
        for line in error.errors()
    ]
    return ValidationError.from_exception_data(error.title, lines)


class LossRecipe(Part, CodePart):
    """Another loss to the teacher than the recipe's.

    ``dkd`` and ``dist`` with their two weights, or ``module:function``, called with (student logits,
    teacher logits, labels); see `distillens.supervision.compared`.
    """

    name: str
    weights: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _known(self) -> LossRecipe:
        if self.name not in ("dkd", "dist") and not self.is_custom:
            raise ValueError(f"no loss {self.name!r}; known: dkd, dist, or module:function")
        if self.weights is not None and self.is_custom:
            raise ValueError("weights belong to dkd and dist; a function of yours has its own")
        return self


class OneOf(Part):
    """A part of which exactly one key is given."""

    @model_validator(mode="after")
    def _one(self) -> OneOf:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError(f"give either {' or '.join(type(self).model_fields)}")
        return self


class AverageRecipe(OneOf):
    """Average the teacher over the checkpoints up to the one it is at: the last k, or decaying."""

    last: int | None = Field(default=None, ge=1)
    decay: float | None = Field(default=None, gt=0, lt=1)

    def __str__(self) -> str:
        return f"last {self.last}" if self.last else f"decay={self.decay:g}"


class TaughtEntry(SupervisionEntry):
    """Base of the kinds in which the student fits the logits of a teacher."""

    temperature: Temperature | TemperatureSchedule = 1.0
    alpha: float = Field(default=1.0, ge=0, le=1)
    """Weight of the teacher; the labels have the rest."""
    loss: LossRecipe | None = None

    @model_validator(mode="after")
    def _custom_loss_has_no_temperature(self) -> TaughtEntry:
        if self.loss is not None and self.loss.is_custom and self.temperature != 1:
            raise ValueError(
                f"loss {self.loss.name!r} is called without a temperature; "
                "leave temperature out and use yours inside"
            )
        return self

    def teacher(self, setting: Setting, teachers: Teachers) -> Teacher:
        """Return the teacher whose logits are fitted."""
        raise NotImplementedError

    def described(self) -> str:
        return self.described_with(self.kind)

    def build(self, setting: Setting, teachers: Teachers) -> Supervision:
        """Return a distillation of the teacher, mixed with the labels if ``alpha`` is below 1."""
        return supervision.taught(self, self.teacher(setting, teachers), setting)

    def described_with(self, kind: str, *more: object) -> str:
        """Return a title of the kind, the values of this class and ``more`` that is not empty."""
        parts = [kind, f"τ={self.temperature:g}", *map(str, filter(None, more))]
        if self.alpha != 1:
            parts.append(f"α={self.alpha:g}")
        if self.loss is not None:
            parts.append(self.loss.name.rpartition(":")[2])
        return " ".join(parts)


def parts_of(entry: SupervisionEntry) -> tuple[SupervisionEntry, ...]:
    """Return the entries that an entry consists of: both sides of a switch, or the entry itself."""
    return entry.parts()
