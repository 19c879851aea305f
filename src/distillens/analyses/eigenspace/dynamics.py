"""Eigenspace dynamics of finished runs: teachers and students from their checkpoints.

Shapes: E checkpoints, N examples, C classes, K eigenvectors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distillens.analyses.eigenspace.layers import (
    NetworkCourse,
    alike,
    find_layer,
)
from distillens.analyses.finished import FinishedRun, FinishedStudent, finished_run
from distillens.data import Batches, Examples
from distillens.data.prepare import subset
from distillens.errors import MeasureError, ModelError, RunError
from distillens.kernel import EmpiricalNTK
from distillens.measures import coding_of, label_targets
from distillens.measures.eigenspace import (
    compare_pairs,
    draw_pairs,
    example_directions,
    gram_directions,
    input_directions,
    project_predictions,
    summarise_bias,
)
from distillens.measures.eigenspace.pairs import BOTTOM, TOP, Pair
from distillens.progress import Progress, silent
from distillens.results.base import SCHEMA
from distillens.results.eigenspace import BiasSummary, Eigenspace, PairBias, Projected, StudentBias
from distillens.runs.folder import difference, find_run
from distillens.runs.layout import NetworkFiles
from distillens.study.context import StudyContext
from distillens.study.networks import read_cell, weights_digest
from distillens.study.normalisations import Role
from distillens.study.provenance import own_version
from distillens.study.reading import read_recipe
from distillens.study.students import Student
from distillens.training import TrainingRecipe

Arrays = dict[str, NDArray[np.float64]]
Kernel = Literal["data", "ntk"]

SEEDS = ("seed", "seeds", "features_seed")
"""Keys of a recipe, at any depth, in which the runs may differ."""


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
    pairs = draw_pairs(asked.pairs, asked.pair_seed, top=asked.top, bottom=asked.bottom)
    runs = [finished_run(folder, trust_code=trust_code) for folder in folders]
    for run in runs:
        run.recipe.refuse_unavailable("eigenspace")
    _refuse_other_recipes(runs)
    found: list[_Measured] = []
    notes: list[str] = []
    with progress("eigenspace", len(runs)) as advance:
        for run in runs:
            found += _of_run(run, asked, pairs, notes)
            advance(1)
    _refuse_repeated([one.bias for one in found])
    result = Eigenspace(
        schema_version=SCHEMA,
        layer=found[0].layer,
        split=asked.split,
        examples=found[0].examples,
        pair_seed=asked.pair_seed,
        kernel=asked.kernel,
        summaries=tuple(_summaries([one.bias for one in found])),
        students=tuple(one.bias for one in found),
        notes=tuple(dict.fromkeys(notes)),
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
    arrays: Arrays


def _refuse_other_recipes(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs whose recipes differ in more than seeds.

    Raises
    ------
    RunError
        Two recipes differ; the key and both values are named. Or there is no run.
    """
    if not runs:
        raise RunError("no run was given; name at least one run folder")
    first, *others = ((run.opened.files.folder, _without_seeds(run)) for run in runs)
    for folder, recipe in others:
        if (found := difference(first[1], recipe)) is not None:
            key, here, there = found
            raise RunError(
                f"{first[0]} and {folder} are of different recipes: {key} is {here} and {there}; "
                "give runs that differ in seeds alone"
            )


def _without_seeds(run: FinishedRun) -> dict[str, Any]:
    """Return a recipe without its name and seeds, with the teacher as the run that trained it has it."""
    recipe = run.recipe
    if recipe.teacher.run is not None:
        other = find_run(Path(recipe.teacher.run))
        teacher = read_recipe(other.recipe, trust_code=run.context.trust_code).teacher
        recipe = recipe.model_copy(update={"teacher": teacher})

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(part) for key, part in value.items() if key not in SEEDS}
        return [kept(part) for part in value] if isinstance(value, list) else value

    return kept(recipe.model_dump(mode="json", exclude={"name"}))


def _refuse_repeated(students: Sequence[StudentBias]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for one in students:
        # Two supervisions of a run may end with the same weights; one supervision's seeds may not.
        key = (one.student, one.digest)
        if key in seen:
            raise RunError(
                f"student {one.student!r}, seed {one.seed}, was given twice "
                f"({seen[key]} and {one.run}); the same network is no second seed"
            )
        seen[key] = one.run


def _of_run(
    run: FinishedRun, task: EigenspaceTask, pairs: tuple[Pair, ...], notes: list[str]
) -> list[_Measured]:
    context, teacher = run.context, run.teacher
    if teacher.training is None or teacher.model is None:
        raise RunError(
            f"the teacher of {context.run.folder} is known by its last weights or logits alone; "
            "eigenspace dynamics need one that was trained by a run (teacher.training, teacher.run)"
        )
    examples = _examples(context, task)
    courses: dict[Path, NetworkCourse] = {}

    def course(files: NetworkFiles, training: TrainingRecipe, who: str) -> NetworkCourse:
        if files.folder not in courses:
            kept = training.kept_epochs
            missing = sorted(set(kept) - set(files.epochs()))
            if missing:
                raise RunError(
                    f"{files.folder} lacks {len(missing)} checkpoint(s), first "
                    f"{files.weights(missing[0]).name}; run its recipe again in another folder"
                )
            digest = weights_digest(files, kept[-1], read_cell(files).weights_digest)
            # The teacher of a self-distilled student is a student itself.
            role: Role = "teacher" if files.folder == teacher.files.folder else "student"
            model = teacher.model if role == "teacher" else run.recipe.student.model
            assert model is not None
            layer = find_layer(context.build(model, 0, role), task.layer, who)
            courses[files.folder] = NetworkCourse(
                context, files, model, kept, layer, examples, task.bottom[1], digest, role
            )
        return courses[files.folder]

    measured = []
    for student in _students(run, task, notes):
        training = run.recipe.training_of(student.entry)
        mine = course(student.files, training, "student")
        theirs = course(*_teacher_of(run, student), "teacher")
        measured.append(_compare(task, pairs, student, theirs, mine))
    return measured


def _compare(
    task: EigenspaceTask,
    pairs: tuple[Pair, ...],
    student: FinishedStudent,
    theirs: NetworkCourse,
    mine: NetworkCourse,
) -> _Measured:
    shared = not theirs.moved and alike(theirs.inputs.rows_MD, mine.inputs.rows_MD)
    if not (shared or theirs.moved or mine.moved):
        raise ModelError(
            f"layer {theirs.layer!r} of the teacher and {mine.layer!r} of the student are given "
            "different inputs, which do not change in training; their eigenvectors cannot be compared"
        )
    of_teacher = theirs.directions
    of_student = of_teacher if shared else mine.directions
    teacher_course, student_course = theirs.course(of_teacher), mine.course(of_student)
    compared: list[PairBias] = []
    arrays: Arrays = {"eigenvalues": of_teacher.eigenvalues_K}
    if not shared:
        arrays["student_eigenvalues"] = of_student.eigenvalues_K
    for projected, components in teacher_course.items():
        compared += compare_pairs(components, student_course[projected], pairs, projected)
        arrays[f"teacher_{projected}"] = components
        arrays[f"student_{projected}"] = student_course[projected]
    arrays |= _prediction_arrays(task.kernel, theirs, mine)
    bias = StudentBias(
        run=str(theirs.context.run.folder),
        teacher_seed=read_cell(theirs.files).seed,
        student=student.entry.title,
        seed=student.id.seed,
        axes="shared" if shared else "own",
        teacher_epochs=theirs.kept[-1],
        student_epochs=mine.kept[-1],
        dimensions=theirs.inputs.rows_MD.shape[1],
        decomposition=of_teacher.decomposition,
        residual=max(of_teacher.residual, of_student.residual),
        pairs=tuple(compared),
        teacher_digest=theirs.digest,
        digest=mine.digest,
    )
    layer = theirs.layer if theirs.layer == mine.layer else f"{theirs.layer} / {mine.layer}"
    return _Measured(bias, layer, len(theirs.examples), arrays)


def _prediction_arrays(kernel: Kernel, theirs: NetworkCourse, mine: NetworkCourse) -> Arrays:
    examples, outputs = theirs.examples, theirs.context.outputs
    if kernel == "ntk":
        ntk = EmpiricalNTK(theirs.network(0), outputs="trace", dtype=torch.float64, alone=True)
        batches = Batches(
            examples, len(examples), normalisation=theirs.normalisation, seed=None,
            device=theirs.context.accelerator.device,
        )  # fmt: skip
        gram = ntk.gram(next(batches.epoch(0)).inputs)
        directions = gram_directions(gram.values.cpu().numpy(), theirs.count)
    elif theirs.inputs.rows_MD.shape == theirs.inputs.examples_NF.shape:
        directions = example_directions(theirs.inputs.rows_MD, theirs.directions)
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


def _students(run: FinishedRun, task: EigenspaceTask, notes: list[str]) -> list[FinishedStudent]:
    chosen = []
    for one in run.chosen(task.student):
        if len(one.entry.parts()) == 1 and "co-trained teacher" in one.entry.needs():
            notes.append(f"{one.entry.title}: left out, its teacher left no checkpoints")
        else:
            chosen.append(one)
    if not chosen:
        folder = run.opened.files.folder
        raise RunError(f"{folder} has no student whose teacher left checkpoints")
    return chosen


def _teacher_of(run: FinishedRun, student: FinishedStudent) -> tuple[NetworkFiles, TrainingRecipe]:
    """Return the teacher and its training: for self-distillation the generation before, or the first."""
    one = Student(student.id.supervision, student.id.seed)
    origin = one.origin(run.recipe)
    if origin is None:
        assert run.teacher.training is not None
        return run.teacher.files, run.teacher.training
    generations = list(one.networks(run.context).values())
    if len(generations) > 1:
        return generations[-2], one.training(run.recipe)
    return origin.files(run.context), origin.training(run.recipe)


def _summaries(students: Sequence[StudentBias]) -> list[BiasSummary]:
    kinds: tuple[Projected, ...] = ("weights", "change")
    return [
        summarise_bias(
            title,
            projected,
            [(one.teacher_digest, one.pairs) for one in students if one.student == title],
        )
        for title in dict.fromkeys(one.student for one in students)
        for projected in kinds
    ]
