"""Eigenspace dynamics of finished runs: teachers and students from their checkpoints.

Shapes: E checkpoints, N examples, C classes, K eigenvectors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distillens.analyses.eigenspace.layers import find_layer
from distillens.analyses.eigenspace.repetitions import check_comparable
from distillens.analyses.eigenspace.trajectory import NetworkCourse, alike, check_checkpoints
from distillens.data import Batches, Examples
from distillens.data.prepare import subset
from distillens.errors import MeasureError, ModelError, RunError, nearest
from distillens.kernel import EmpiricalNTK
from distillens.measures import (
    coding_of,
    label_targets,
)
from distillens.measures.eigenspace import (
    Directions,
    compare_pairs,
    draw_pairs,
    example_directions,
    gram_directions,
    input_directions,
    project_predictions,
    summarise_bias,
)
from distillens.measures.eigenspace.pairs import BOTTOM, TOP, Pair
from distillens.models import ModelRecipe
from distillens.progress import Progress, silent
from distillens.results.base import SCHEMA
from distillens.results.eigenspace import BiasSummary, Eigenspace, PairBias, Projected, StudentBias
from distillens.runs.folder import find_run, latest_recipe
from distillens.runs.layout import NetworkFiles
from distillens.runs.open import OpenRun
from distillens.study.context import StudyContext
from distillens.study.networks import read_cell, weights_digest
from distillens.study.normalisations import Role
from distillens.study.provenance import own_version
from distillens.study.reading import read_recipe
from distillens.study.recipe import Recipe
from distillens.study.students import Student
from distillens.study.teacher import StudyTeacher, prepare_teacher
from distillens.training import TrainingRecipe, accelerator_for

Arrays = dict[str, NDArray[np.float64]]
Kernel = Literal["data", "ntk"]


@dataclass(frozen=True)
class EigenspaceTask:
    """Settings of the measurement; pairs are sampled by `draw_pairs`."""

    student: str | None = None
    """Title of a supervision; by default all of them."""
    layer: str | None = None
    """By default the first trained Linear or Conv2d of each network."""
    split: Literal["train", "validation", "test"] = "train"
    examples: int | None = None
    """A sample of the split, classes in proportion; by default all of it."""
    pairs: int = 15
    pair_seed: int = 0
    top: int = TOP
    bottom: tuple[int, int] = BOTTOM
    kernel: Kernel = "data"
    """Predictions are shown on the eigenvectors of XXᵀ, X being the layer's inputs in the teacher, or
    of the teacher's tangent kernel (the mean over outputs) at its initialisation."""

    def sampled_pairs(self) -> tuple[Pair, ...]:
        """Return the pairs."""
        return draw_pairs(self.pairs, self.pair_seed, top=self.top, bottom=self.bottom)


def measure_eigenspace(
    folders: Sequence[Path],
    task: EigenspaceTask | None = None,
    *,
    trust_code: bool = False,
    progress: Progress = silent,
) -> tuple[Eigenspace, Arrays]:
    """Measure the students of finished runs against their teachers.

    Parameters
    ----------
    folders
        Run folders of one recipe, which may differ in seeds alone: teachers of several seeds are
        what an interval needs.
    task
        Settings of the measurement.
    trust_code, progress
        As for `distillens.run`.

    Returns
    -------
    The result, and arrays: for student number i of the result, ``s<i>_teacher_weights`` and so on;
    the epochs of their first axis are ``s<i>_teacher_epochs`` and ``s<i>_student_epochs``.

    Raises
    ------
    DistillensError
        A subclass of it: a run is not finished, left no checkpoints or is of another recipe; the layer,
        the split or the student does not exist; there are too few examples for the pairs.
    """
    began = time.perf_counter()
    asked = task or EigenspaceTask()
    pairs = asked.sampled_pairs()
    contexts = [_context(folder, trust_code) for folder in folders]
    check_comparable(
        [(str(context.run.folder), _with_its_teacher(context)) for context in contexts]
    )
    found: list[_Measured] = []
    with progress("eigenspace", len(contexts)) as advance:
        for context in contexts:
            found += _of_run(context, asked, pairs)
            advance(1)
    _refuse_repeated(found)
    result = Eigenspace(
        schema_version=SCHEMA,
        layer=found[0].layer,
        split=asked.split,
        examples=found[0].examples,
        pair_seed=asked.pair_seed,
        kernel=asked.kernel,
        summaries=tuple(_summaries(found)),
        students=tuple(one.bias for one in found),
        notes=tuple(dict.fromkeys(note for one in found for note in one.notes)),
        version=own_version(),
        seconds=time.perf_counter() - began,
    )
    arrays = {
        f"s{place:03d}_{name}": array
        for place, one in enumerate(found)
        for name, array in one.arrays.items()
    }
    return result, arrays


@dataclass(frozen=True, eq=False)
class _Measured:
    bias: StudentBias
    layer: str
    examples: int
    teacher: str
    """Digest of its teacher, which identifies the teacher."""
    digest: str
    arrays: Arrays
    notes: tuple[str, ...]


def _context(folder: Path, trust_code: bool) -> StudyContext:
    run = OpenRun.open(folder)
    recipe = read_recipe(latest_recipe(run.files), trust_code=trust_code)
    recipe.refuse_unavailable("eigenspace")
    context = StudyContext.of(recipe, run.files, accelerator_for(recipe.precision), trust_code)
    run.check_data(context.splits.fingerprint, "at data.path")
    return context


def _with_its_teacher(context: StudyContext) -> Recipe:
    """Return the recipe with the teacher as it was trained, also where another run did that."""
    recipe = context.recipe
    if recipe.teacher.run is None:
        return recipe
    other = find_run(Path(recipe.teacher.run))
    teacher = read_recipe(other.recipe, trust_code=context.trust_code).teacher
    return recipe.model_copy(update={"teacher": teacher})


def _refuse_repeated(found: list[_Measured]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for one in found:
        # Two supervisions of a run may end with the same weights; one supervision's seeds may not.
        key = (one.bias.student, one.digest)
        if key in seen:
            raise RunError(
                f"student {one.bias.student!r}, seed {one.bias.seed}, was given twice "
                f"({seen[key]} and {one.bias.run}); the same network is no second seed"
            )
        seen[key] = one.bias.run


def _of_run(
    context: StudyContext, task: EigenspaceTask, pairs: tuple[Pair, ...]
) -> list[_Measured]:
    teacher = prepare_teacher(context)
    if teacher.training is None or teacher.model is None:
        raise RunError(
            f"the teacher of {context.run.folder} is known by its last weights or logits alone; "
            "eigenspace dynamics need one that was trained by a run (teacher.training, teacher.run)"
        )
    examples = _examples(context, task)
    students, notes = _students(context, task)
    sides: dict[Path, NetworkCourse] = {}
    count = task.bottom[1]

    def side(
        files: NetworkFiles, model: ModelRecipe, training: TrainingRecipe, who: str
    ) -> NetworkCourse:
        if files.folder not in sides:
            kept = training.kept_epochs
            check_checkpoints(files, kept)
            digest = weights_digest(files, kept[-1], read_cell(files).weights_digest)
            # The teacher of a self-distilled student is a student itself.
            role: Role = "teacher" if files.folder == teacher.files.folder else "student"
            layer = find_layer(context.build(model, 0, role), task.layer, who)
            # The run's teacher is trained with cross-entropy, whatever the students' loss.
            squared = context.recipe.loss == "squared-error" and role == "student"
            sides[files.folder] = NetworkCourse(
                context, files, model, kept, layer, examples, count, digest, squared, role
            )
        return sides[files.folder]

    measured = []
    axes: dict[Path, Directions] = {}
    for student in students:
        mine = side(
            student.files(context), context.recipe.student.model,
            student.training(context.recipe), "student",
        )  # fmt: skip
        theirs = side(*_teacher_of(context, teacher, student), "teacher")
        measured.append(_compare(context, task, pairs, student, theirs, mine, axes, notes))
    return measured


def _compare(
    context: StudyContext,
    task: EigenspaceTask,
    pairs: tuple[Pair, ...],
    student: Student,
    theirs: NetworkCourse,
    mine: NetworkCourse,
    axes: dict[Path, Directions],
    notes: tuple[str, ...],
) -> _Measured:
    shared = not theirs.moved and alike(theirs.inputs.rows_MD, mine.inputs.rows_MD)
    if not (shared or theirs.moved or mine.moved):
        raise ModelError(
            f"layer {theirs.layer!r} of the teacher and {mine.layer!r} of the student are given "
            "different inputs, which do not change in training; their eigenvectors cannot be compared"
        )

    def directions(one: NetworkCourse) -> Directions:
        if one.files.folder not in axes:
            axes[one.files.folder] = one.directions()
        return axes[one.files.folder]

    of_teacher = directions(theirs)
    of_student = of_teacher if shared else directions(mine)
    teacher_course, student_course = theirs.course(of_teacher), mine.course(of_student)
    compared: list[PairBias] = []
    arrays: Arrays = {"eigenvalues": of_teacher.eigenvalues_K}
    if not shared:
        arrays["student_eigenvalues"] = of_student.eigenvalues_K
    for projected, course in teacher_course.items():
        compared += compare_pairs(course, student_course[projected], pairs, projected)
        arrays[f"teacher_{projected}"] = course
        arrays[f"student_{projected}"] = student_course[projected]
    arrays |= _prediction_arrays(context, task, theirs, mine, of_teacher)
    recipe = context.recipe
    bias = StudentBias(
        run=str(context.run.folder),
        teacher_seed=read_cell(theirs.files).seed,
        student=recipe.supervisions[student.place].title,
        seed=student.seed,
        axes="shared" if shared else "own",
        teacher_epochs=theirs.epochs,
        student_epochs=mine.epochs,
        dimensions=theirs.inputs.rows_MD.shape[1],
        decomposition=of_teacher.decomposition,
        residual=max(of_teacher.residual, of_student.residual),
        pairs=tuple(compared),
        teacher_digest=theirs.digest,
        digest=mine.digest,
    )
    layer = theirs.layer if theirs.layer == mine.layer else f"{theirs.layer} / {mine.layer}"
    return _Measured(bias, layer, len(theirs.examples), theirs.digest, mine.digest, arrays, notes)


def _prediction_arrays(
    context: StudyContext,
    task: EigenspaceTask,
    theirs: NetworkCourse,
    mine: NetworkCourse,
    of_inputs: Directions,
) -> Arrays:
    examples, outputs = theirs.examples, context.outputs
    if task.kernel == "ntk":
        network = theirs.network(0)
        kernel = EmpiricalNTK(network, outputs="trace", dtype=torch.float64, alone=True)
        batches = Batches(
            examples, len(examples), normalisation=theirs.normalisation, seed=None,
            device=context.accelerator.device,
        )  # fmt: skip
        gram = kernel.gram(next(batches.epoch(0)).inputs)
        directions = gram_directions(gram.values.cpu().numpy(), theirs.count)
    elif theirs.inputs.rows_MD.shape == theirs.inputs.examples_NF.shape:
        directions = example_directions(theirs.inputs.rows_MD, of_inputs)
    else:
        x = theirs.inputs.examples_NF
        directions = example_directions(x, input_directions(x, theirs.count))
    targets = label_targets(examples.labels.numpy(), max(2, outputs), coding_of(outputs))
    found: Arrays = {"kernel_eigenvalues": directions.eigenvalues_K}
    for who, one in (("teacher", theirs), ("student", mine)):
        found[f"{who}_epochs"] = np.array(one.kept, dtype=np.float64)
        course = project_predictions(one.predictions, directions, targets)
        found[f"{who}_learnt"] = course.learnt_EK
        found[f"{who}_prediction_sizes"] = course.size_EK
        found["target_sizes"] = course.target_K
    return found


def _examples(context: StudyContext, task: EigenspaceTask) -> Examples:
    whole: Examples | None = getattr(context.splits, task.split)
    if whole is None:
        raise MeasureError(f"{context.run.folder} has no {task.split} split; name train or test")
    if task.examples is None:
        return whole
    if not 1 <= task.examples <= len(whole):
        raise MeasureError(
            f"{task.examples} examples were asked for; the {task.split} split has {len(whole)}"
        )
    return subset(whole, task.examples, 0, "examples")


def _students(context: StudyContext, task: EigenspaceTask) -> tuple[list[Student], tuple[str, ...]]:
    recipe = context.recipe
    titles = [entry.title for entry in recipe.supervisions]
    if task.student is not None and task.student not in titles:
        raise RunError(
            f"{context.run.folder} has no student {task.student!r}{nearest(task.student, titles)}"
        )
    chosen, notes = [], []
    for place, entry in enumerate(recipe.supervisions):
        if task.student not in (None, entry.title):
            continue
        if len(entry.parts()) == 1 and "co-trained teacher" in entry.needs():
            notes.append(f"{entry.title}: left out, its teacher left no checkpoints")
            continue
        chosen += [Student(place, seed) for seed in recipe.seeds_of(entry)]
    if not chosen:
        raise RunError(f"{context.run.folder} has no student whose teacher left checkpoints")
    return chosen, tuple(notes)


def _teacher_of(
    context: StudyContext, teacher: StudyTeacher, student: Student
) -> tuple[NetworkFiles, ModelRecipe, TrainingRecipe]:
    """Return the teacher and its training: for self-distillation the generation before, or the first."""
    recipe = context.recipe
    origin = student.origin(recipe)
    if origin is None:
        assert teacher.model is not None and teacher.training is not None  # noqa: PT018
        return teacher.files, teacher.model, teacher.training
    generations = list(student.networks(context).values())
    if len(generations) > 1:
        return generations[-2], recipe.student.model, student.training(recipe)
    return origin.files(context), recipe.student.model, origin.training(recipe)


def _summaries(found: list[_Measured]) -> list[BiasSummary]:
    kinds: tuple[Projected, ...] = ("weights", "change")
    return [
        summarise_bias(
            title,
            projected,
            [(one.teacher, one.bias.pairs) for one in found if one.bias.student == title],
        )
        for title in dict.fromkeys(one.bias.student for one in found)
        for projected in kinds
    ]
