"""A finished run with its data and teacher: the input of analyses of its students.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from distillens.errors import MeasureError
from distillens.files.tables import Rows
from distillens.measures.confidence.outputs import OutputKind
from distillens.models import ModelRecipe
from distillens.progress import Progress, silent
from distillens.results.training import Cell, NetworkId, StudyResult
from distillens.runs.folder import latest_recipe
from distillens.runs.layout import NetworkFiles
from distillens.runs.open import OpenRun
from distillens.study.context import StudyContext
from distillens.study.reading import read_recipe
from distillens.study.recipe import Recipe
from distillens.study.teacher import StudyTeacher, prepare_teacher
from distillens.training import accelerator_for

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class FinishedStudent:
    """A trained student: its identity, its entry in the recipe, its files and its numbers."""

    id: NetworkId
    entry: Any
    files: NetworkFiles
    cell: Cell


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run. Labels are the true ones, also where networks were trained on wrong ones."""

    opened: OpenRun
    context: StudyContext
    teacher: StudyTeacher
    students: tuple[FinishedStudent, ...]
    """In the order of the recipe, all seeds of a supervision together."""

    @classmethod
    def of(cls, opened: OpenRun, context: StudyContext, teacher: StudyTeacher) -> FinishedRun:
        """Return an opened run with the data and the teacher that are loaded already."""
        entries = context.recipe.supervisions
        students = tuple(
            FinishedStudent(one, entries[one.supervision], opened.network(one), opened.cell(one))
            for one in opened.students()
        )
        return cls(opened, context, teacher, students)

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.context.recipe

    @property
    def result(self) -> StudyResult:
        """Results of the training."""
        return self.opened.result

    def chosen(
        self, supervision: str | None = None, seed: int | None = None
    ) -> tuple[FinishedStudent, ...]:
        """Return the students of a supervision and a seed; None selects all.

        Raises
        ------
        RecipeError
            There is no such student.
        """
        wanted = set(self.opened.students(supervision, seed))
        return tuple(one for one in self.students if one.id in wanted)

    @property
    def student_kind(self) -> OutputKind:
        """Kind of the students' outputs: probabilities if trained with squared error, else logits."""
        return "logits" if self.recipe.loss == "cross-entropy" else "probabilities"

    def given_labels(self, split: str) -> NDArray[np.int64]:
        """Return the labels that networks were trained or tested on, (N,)."""
        return self.context.task.labels(self.context, split)[0]

    def true_labels(self, split: str) -> NDArray[np.int64]:
        """Return the labels before the recipe's noise, (N,)."""
        labels_N = self.given_labels(split)
        if split == "train" and self.context.splits.changed:
            before = {change.index: change.before for change in self.context.splits.changed}
            indices = self.context.splits.train.indices.tolist()
            pairs = zip(indices, labels_N.tolist(), strict=True)
            return np.array([before.get(index, label) for index, label in pairs])
        return labels_N

    def outputs(self, student: FinishedStudent) -> dict[str, NDArray]:
        """Return a student's outputs by split, of the kind `student_kind`, (N, C)."""
        context, files = self.context, student.files

        def network() -> nn.Module:
            return context.load(self.recipe.student.model, files, student.cell.epochs)

        return {
            split: as_outputs(
                context.task.logits(context, files, network, split), self.student_kind
            )
            for split in SPLITS
        }

    def one_hot(self, student: FinishedStudent) -> FinishedStudent | None:
        """Return the one-hot student of the same seed, unless it is this one or there is none."""
        entry = next((one.entry for one in self.students if one.entry.is_baseline), None)
        same = (
            one
            for one in self.students
            if one.entry is entry and one.cell.seed == student.cell.seed and one is not student
        )
        return next(same, None)

    def roles(
        self, student: FinishedStudent, other_teacher: dict[str, NDArray] | None = None
    ) -> dict[str, dict[str, Any] | None]:
        """Return a student's arrays as `distillens.measures.confidence.audit_with_points` takes them."""
        reference = self.one_hot(student)
        roles: dict[str, dict[str, NDArray] | None] = {
            "teacher": {split: self.teacher.logits(split) for split in SPLITS},
            "student": self.outputs(student),
            "labels": {split: self.true_labels(split) for split in SPLITS},
            "given labels": {split: self.given_labels(split) for split in SPLITS}
            if self.context.splits.changed
            else None,
            "one-hot student": None if reference is None else self.outputs(reference),
            "other teacher": other_teacher,
        }
        index = {split: self.context.task.labels(self.context, split)[1] for split in SPLITS}
        return {
            role: one and {split: Rows(values, index[split]) for split, values in one.items()}
            for role, one in roles.items()
        }

    def kinds(self) -> dict[str, str]:
        """Return the kind of outputs of each role."""
        student = self.student_kind
        return {
            "teacher": "logits", "other teacher": "logits", "student": student,
            "one-hot student": student,
        }  # fmt: skip

    def notes(self) -> tuple[str, ...]:
        """Return notes on the preparation of the audited arrays."""
        notes = list(self.context.task.audit_notes)
        if self.context.splits.changed:
            notes.append(
                f"{len(self.context.splits.changed):,} training labels were changed on purpose; "
                "predictions are judged by the true labels, and accuracies on the given labels are named"
            )
        if self.student_kind == "probabilities":
            notes.append(
                "students were trained with squared error: their outputs were clipped to [0, 1] and "
                "divided by their sum"
            )
        return tuple(notes)


def finished_run(
    folder: Path,
    *,
    data_path: Path | None = None,
    trust_code: bool = False,
    progress: Progress = silent,
) -> FinishedRun:
    """Open a finished run and load its data, from ``data_path`` where they have been moved.

    Raises
    ------
    RunError
        The folder is no run, networks are open, or its data are not those of the recipe any more.
    """
    opened = OpenRun.open(folder)
    moved = [] if data_path is None else [f"data.path={data_path}"]
    recipe = read_recipe(latest_recipe(opened.files), moved, trust_code=trust_code)
    accelerator = accelerator_for(recipe.precision)
    context = StudyContext.of(recipe, opened.files, accelerator, trust_code, progress)
    opened.check_data(context.splits.fingerprint, "at data.path")
    return FinishedRun.of(opened, context, prepare_teacher(context))


def described(model: ModelRecipe | None) -> str:
    """Return a model's name with its arguments: "lenet5 (width 8)"; None is known by its logits."""
    if model is None:
        return "given logits"
    given = ", ".join(f"{key} {value}" for key, value in model.arguments.items())
    return f"{model.name} ({given})" if given else model.name


def as_outputs(outputs_NC: NDArray, kind: OutputKind) -> NDArray:
    """Return a network's outputs as logits or probabilities.

    A network trained with squared error estimates probabilities, or with one output 2p − 1; what
    lies outside [0, 1] is clipped, and rows are divided by their sum.

    Raises
    ------
    MeasureError
        A row has no positive output.
    """
    if kind == "logits":
        return outputs_NC
    if outputs_NC.shape[1] == 1:
        return np.clip((1 + outputs_NC) / 2, 0, 1)
    p_NC = np.clip(outputs_NC.astype(np.float64), 0, 1)
    total_N1 = p_NC.sum(axis=1, keepdims=True)
    if not (total_N1 > 0).all():
        raise MeasureError(
            f"row {int(np.argmin(total_N1))} has no positive output, so it stands for no "
            "probabilities; such a student cannot be audited"
        )
    return p_NC / total_N1
