"""The recipe: all settings of a study."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from distillens.data.recipe import AnyNormalisation, DataRecipe
from distillens.errors import RecipeError, listed
from distillens.files.paths import UserPath
from distillens.models.registry import ModelRecipe
from distillens.registry import Registry
from distillens.supervision.recipe import (
    SUPERVISIONS,
    AnySupervision,
    Loss,
    LossRecipe,
    SupervisionEntry,
    moved,
    parts_of,
)
from distillens.training.recipe import Precision, Tracker, TrainingRecipe

if TYPE_CHECKING:
    from distillens.study.task import Task

MAX_SEED = 2**32 - 1

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointRecipe(_Part):
    """Weights in a file, and where in the file if that is ambiguous.

    ``key`` is the dotted place of the state dict, such as ``state_dict_ema``; ``strip`` is a prefix
    that is removed from its names, such as ``teacher.``. Both are found out where only one state dict
    fits the model (see `distillens.models.load_weights`).
    """

    path: UserPath = Field(min_length=1)
    key: str | None = None
    strip: str | None = None


class TeacherRecipe(_Part):
    """The teacher: trained here, taken from another run, read from a checkpoint, or given as logits.

    ``model`` and ``training`` train one on the labels with cross-entropy; ``run`` takes the one that
    another run trained on the same data; ``model`` and ``checkpoint`` read one (``checkpoint`` is a
    path to safetensors or to a file of ``torch.save``, or ``{path, key, strip}``).

    ``logits`` is for a teacher of which only the outputs are known: an npz or safetensors file with
    the arrays ``train``, ``test`` and, if there is one, ``validation``, or a mapping from these names
    to npy, npz, csv, parquet or safetensors files (``FILE`` or ``FILE::KEY``). Rows are looked up by
    an index where the file has one (``train_index``, or a column ``index``); otherwise there is a row
    for every example of the source, or for every example in use.

    ``allow_weak`` accepts a given teacher that is no better than always answering the most
    frequent class. ``normalisation`` is that of its inputs, by default the data's.
    """

    model: ModelRecipe | None = None
    training: TrainingRecipe | None = None
    checkpoint: CheckpointRecipe | None = None
    logits: UserPath | dict[Literal["train", "validation", "test"], UserPath] | None = None
    run: UserPath | None = None
    normalisation: AnyNormalisation | None = None
    allow_weak: bool = False
    seed: Seed = 1000

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _a_path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> TeacherRecipe:
        given = [
            name for name in ("training", "checkpoint", "logits", "run") if getattr(self, name)
        ]
        if len(given) != 1:
            raise ValueError(
                "a teacher needs exactly one of training, checkpoint, logits and run, "
                f"got {' and '.join(given) or 'none'}"
            )
        if (given[0] in ("training", "checkpoint")) != (self.model is not None):
            raise ValueError(
                "a teacher with training or a checkpoint needs a model; "
                "one given as logits or by its run has none"
            )
        if isinstance(self.logits, dict) and not {"train", "test"} <= set(self.logits):
            raise ValueError(
                f"teacher.logits names the splits {sorted(self.logits)}; it needs train and test"
            )
        if self.allow_weak and given[0] in ("training", "run"):
            raise ValueError(
                "allow_weak concerns a teacher given as a checkpoint or as logits; leave it out"
            )
        if self.normalisation is not None and self.model is None:
            raise ValueError(
                f"a teacher given by its {given[0]} takes no normalisation; leave it out"
            )
        return self

    @property
    def given_files(self) -> dict[str, Path]:
        """The files of a given teacher, by their keys in the recipe."""
        if self.checkpoint is not None:
            places = {"teacher.checkpoint": self.checkpoint.path}
        elif isinstance(self.logits, str):
            places = {"teacher.logits": self.logits}
        else:
            places = {f"teacher.logits.{split}": at for split, at in (self.logits or {}).items()}
        return {key: Path(place.partition("::")[0]) for key, place in places.items()}


class StudentRecipe(_Part):
    """The student and how it is trained; a supervision may override keys of ``training``.

    ``normalisation`` is that of its inputs, by default the data's.
    """

    model: ModelRecipe
    training: TrainingRecipe
    normalisation: AnyNormalisation | None = None


class ComplexityRecipe(_Part):
    """Supervision complexity along the training of the one-hot student of the first seed.

    ``epochs`` lists the checkpoints (None: about eight, denser at the start). ``form`` selects the
    kernel of several logits. The final teacher is measured at each of the ``temperatures``, at the
    last of the epochs. ``ridge`` is added to the diagonal as a share of its mean.
    """

    examples: int = Field(default=256, ge=2)
    split: Literal["test", "train", "validation"] = "test"
    epochs: tuple[int, ...] | None = None
    form: Literal["class-diagonal", "trace", "full"] = "class-diagonal"
    temperature: Positive = 1.0
    temperatures: tuple[Positive, ...] = ()
    ridge: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    random_draws: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)


class TuneRecipe(_Part):
    """Learning rates from which the validation split selects one for each supervision."""

    learning_rate: tuple[Positive, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _rates_differ(self) -> TuneRecipe:
        if len(set(self.learning_rate)) < len(self.learning_rate):
            raise ValueError(f"learning rates must differ, got {list(self.learning_rate)}")
        return self


class Recipe(_Part):
    """A study: one teacher, one student, several supervisions and seeds.

    Networks classify examples. Studies of another task are subclasses, which recipes name by the key
    ``kind``; see `RECIPES`.
    """

    unavailable: ClassVar[Mapping[str, str]] = {}
    """What a kind of recipe does not offer, by name, with a sentence that says so."""

    name: str = Field(min_length=1, max_length=80)
    description: str = ""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    loss: Loss = "cross-entropy"
    """The form of the students' losses."""
    precision: Precision = "float32"
    """Data type of the computations in training; weights stay in float32."""
    trackers: tuple[Tracker, ...] = ()
    """Experiment trackers, through Accelerate; JSON lines are always written."""
    cache_gigabytes: float = Field(default=20.0, gt=0, le=1e6, allow_inf_nan=False)
    """Disk space for teacher logits; the least recently used are deleted first."""
    cache_on_disk: bool = False
    """Write teacher logits to disk even if they are in the memory of an accelerator."""
    cache_top_k: int | None = Field(default=None, ge=1)
    """Keep only the k largest teacher logits of an example; the mass left out is reported."""
    data: DataRecipe
    teacher: TeacherRecipe
    student: StudentRecipe
    supervisions: tuple[AnySupervision, ...] = Field(min_length=1)
    tune: TuneRecipe | None = None
    """Select the learning rate of each supervision on the validation split."""
    complexity: ComplexityRecipe | None = ComplexityRecipe()
    deviation: bool = True
    code: str | None = Field(default=None, min_length=1)
    """Folder of the modules that ``module:function`` names; by default that of the recipe."""

    @model_validator(mode="after")
    def _find_code(self) -> Recipe:
        for part in self.custom_parts() if self.code else ():
            part.look_in(Path(self.code or "."))
        return self

    @model_validator(mode="before")
    @classmethod
    def _complexity_where_it_can_be(cls, values: Any) -> Any:
        """Measure complexity by default only where a student is trained on labels alone."""
        entries = values.get("supervisions") if isinstance(values, dict) else None
        if not isinstance(entries, (list, tuple)) or "complexity" in values:
            return values
        kinds = [entry.get("kind") for entry in entries if isinstance(entry, dict)]
        baselines = (kind for kind in SUPERVISIONS.names() if SUPERVISIONS.get(kind).is_baseline)
        return (
            values if any(kind in kinds for kind in baselines) else {**values, "complexity": None}
        )

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        titles = Counter(entry.title for entry in self.supervisions)
        for title, count in titles.items():
            if count > 1:
                raise ValueError(f"two supervisions are called {title!r}; give one another name")
        if "teacher" in titles:
            raise ValueError(
                "a supervision is called 'teacher', which is the teacher's own name in tables; "
                "give it another name"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        for entry in self.supervisions:
            if extra := sorted(set(entry.seeds or ()) - set(self.seeds)):
                raise ValueError(f"{entry.title!r} names seed {extra[0]}, which seeds lacks")
        self._check_trainings()
        self._check_self_distillation()
        self._check_trajectories()
        labelled = next((one for one in self.supervisions if one.is_baseline), None)
        if self.complexity is not None and labelled is None:
            raise ValueError(
                "complexity is measured along the one-hot student; "
                "add a supervision of kind one-hot or set complexity to null"
            )
        kept = self.training_of(labelled).kept_epochs
        for epoch in (self.complexity.epochs or ()) if self.complexity else ():
            if epoch not in kept:
                raise ValueError(
                    f"complexity.epochs names {epoch}; training.checkpoint_every of the one-hot "
                    f"student keeps the weights of the epochs {listed(kept)}"
                )
        if self.complexity is not None and self.complexity.split == "validation":
            self._need_validation("complexity is measured")
        return self

    def task(self) -> Task:
        """Return what the networks predict."""
        # Imports torch, which a recipe is read without.
        from distillens.study.task import Task

        return Task()

    @classmethod
    def refuse_unavailable(cls, what: str) -> None:
        """Refuse an analysis or another part of distillens that is not there for this kind of recipe.

        Raises
        ------
        RecipeError
            It is one of `unavailable`.
        """
        if what in cls.unavailable:
            raise RecipeError(cls.unavailable[what])

    @property
    def cache_bytes(self) -> int:
        """Disk space for teacher logits, in bytes."""
        return round(self.cache_gigabytes * 1e9)

    def custom_parts(self) -> Iterator[ModelRecipe | LossRecipe]:
        """Yield the models and losses that are user code."""
        parts: list[Any] = [self.teacher.model, self.student.model]
        parts += [getattr(p, "loss", None) for each in self.supervisions for p in parts_of(each)]
        for part in parts:
            if isinstance(part, (ModelRecipe, LossRecipe)) and part.is_custom:
                yield part

    def as_written_in(self, folder: Path) -> dict[str, Any]:
        """Return plain values for a file in a folder, from which ``code`` is counted."""
        content = self.model_dump(mode="json")
        if self.code is not None:
            content["code"] = os.path.relpath(self.code, folder.resolve())
        return content

    def seeds_of(self, entry: SupervisionEntry) -> tuple[int, ...]:
        """Return the seeds of a supervision, in the recipe's order."""
        return tuple(seed for seed in self.seeds if entry.seeds is None or seed in entry.seeds)

    def training_of(self, entry: SupervisionEntry | None) -> TrainingRecipe:
        """Return how the student of a supervision is trained.

        Keys of ``entry.training`` replace those of ``student.training``, within ``schedule`` key by
        key. None as the entry gives the student's own training.
        """
        change = None if entry is None else entry.training
        return self.student.training if not change else _merged(self.student.training, change)

    @property
    def tuning_seed(self) -> int:
        """The seed of the trainings that select a learning rate; it is none of ``seeds``."""
        candidates = (max(self.seeds) + 1, *range(len(self.seeds) + 1))
        return next(one for one in candidates if one <= MAX_SEED and one not in self.seeds)

    def _check_trainings(self) -> None:
        for place, entry in enumerate(self.supervisions):
            try:
                self.training_of(entry)
            except ValidationError as error:
                raise moved(error, ("supervisions", place, "training")) from None
            if self.tune is not None and "learning_rate" in (entry.training or {}):
                raise ValueError(
                    f"{entry.title!r} sets training.learning_rate, which tune selects; "
                    "leave one of the two out"
                )
        if self.tune is not None:
            self._need_validation("tune selects learning rates")

    def _need_validation(self, what: str) -> None:
        if not self.data.validation_size:
            raise ValueError(
                f"{what} on the validation split, but data.validation_size is 0; set it to the number "
                "of training examples to validate on"
            )

    def _check_self_distillation(self) -> None:
        labelled = {
            seed
            for entry in self.supervisions
            if entry.is_baseline
            for seed in self.seeds_of(entry)
        }
        for entry in self.supervisions:
            if "previous student" not in entry.needs():
                continue
            if self.loss == "squared-error":
                raise ValueError(
                    f"{entry.kind} needs students that give logits; use loss cross-entropy"
                )
            if set(self.seeds_of(entry)) - labelled:
                raise ValueError(
                    f"{entry.kind} starts from the one-hot student of the same seed; "
                    "add a supervision of kind one-hot with these seeds"
                )

    def _check_trajectories(self) -> None:
        known = self.teacher.training is not None or self.teacher.run is not None
        for entry in (part for whole in self.supervisions for part in parts_of(whole)):
            if entry.needs() & {"trajectory", "co-trained teacher"} and not known:
                raise ValueError(
                    f"{entry.title!r} needs the checkpoints of a teacher trained here; "
                    "give teacher.training or teacher.run, or leave it out"
                )
            trained = self.teacher.training
            if trained is not None and (problem := trajectory_problem(entry, trained)):
                raise ValueError(problem)
            if getattr(entry, "early_stop", None) == "validation":
                self._need_validation(f"{entry.title!r} selects a checkpoint of the teacher")


RECIPES: Registry[type[Recipe]] = Registry(
    "kind of recipe", package="distillens.study.language_models.recipe"
)
"""The kinds of recipes that have the key ``kind``, by its value."""


def trajectory_problem(entry: SupervisionEntry, training: TrainingRecipe) -> str:
    """Return why an entry cannot have the teacher's checkpoints that it names; empty if it can.

    ``entry`` is no switch but one of its sides (see `distillens.supervision.recipe.parts_of`);
    ``training`` is the teacher's. A period in steps is checked when the steps of an epoch are known.
    """
    stop, kept = getattr(entry, "early_stop", None), training.kept_epochs
    if isinstance(stop, int) and stop > training.epochs:
        return f"{entry.title!r} stops at the teacher's epoch {stop}; it has {training.epochs}"
    every = (
        f"the teacher's checkpoint_every of {training.checkpoint_every} keeps the weights of the "
        f"epochs {listed(kept)}"
    )
    if isinstance(stop, int) and stop not in kept:
        return f"{entry.title!r} stops at the teacher's epoch {stop}, but {every}"
    period = getattr(entry, "period", None)
    epochs = None if period is None else period.epochs
    if epochs and set(range(epochs, training.epochs, epochs)) - set(kept):
        return (
            f"{entry.title!r} takes a checkpoint of the teacher every {epochs} epochs, but {every}; "
            f"use a period of a multiple of {training.checkpoint_every} epochs"
        )
    return ""


def _merged(training: TrainingRecipe, change: Mapping[str, Any]) -> TrainingRecipe:
    values = training.model_dump()
    if change.get("optimizer", "sgd") != "sgd":
        # Adam and AdamW have coefficients of their own, so the student's momentum is left out.
        del values["momentum"]
    schedule = change.get("schedule")
    if isinstance(schedule, dict):
        change = {**change, "schedule": {**values["schedule"], **schedule}}
    return TrainingRecipe.model_validate({**values, **change})
