"""Run a recipe, from data to results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distillens.analyses.finished import FinishedRun
from distillens.analyses.measure import measure
from distillens.data import Splits
from distillens.errors import RunError
from distillens.files.atomic import write_atomically
from distillens.progress import Progress, silent
from distillens.results.training import StudyResult
from distillens.runs.folder import check_folder, latest_recipe, locked, open_run
from distillens.runs.layout import Run, run_folder, slug
from distillens.runs.open import OpenRun, check_fingerprint, read_training
from distillens.runs.read import read_data
from distillens.study.context import StudyContext
from distillens.study.given_teacher import GivenTeacher
from distillens.study.normalisations import InputScale
from distillens.study.outcome import Outcome
from distillens.study.provenance import now
from distillens.study.reading import as_of_today, parse_recipe, read_recipe
from distillens.study.recipe import Recipe
from distillens.study.students import Spread, on_this_device, train_students
from distillens.study.teacher import StudyTeacher, find_teacher, prepare_teacher
from distillens.study.tuning import tune_students
from distillens.training import accelerator_for, check_accelerator, start_trackers


def run(
    recipe: Recipe | dict[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    overrides: tuple[str, ...] | list[str] = (),
    trust_code: bool = False,
    progress: Progress = silent,
    spread: Spread = on_this_device,
) -> StudyResult:
    """Run a recipe and return its results.

    An interrupted run resumes and ends with the same weights.

    Parameters
    ----------
    recipe
        A recipe, its plain values, a YAML file or the name of a recipe of the package.
    out
        The run folder; by default ``runs/<name of the recipe>``.
    overrides
        ``key=value`` with dotted keys, as on the command line; for files and names only.
    trust_code
        Allow ``module:function`` models, which run code that the recipe names.
    progress
        Progress display.
    spread
        Function that trains the students. By default they are trained in this process: on a GPU
        those of one seed at the same time, otherwise one by one. See
        `distillens.integrations.ray.ray_workers`.

    Raises
    ------
    DistillensError
        A subclass of it: the recipe, the data, a teacher or the folder cannot be used as given, or
        a training diverged.
    """
    if isinstance(recipe, (str, Path)):
        recipe = read_recipe(recipe, overrides, trust_code=trust_code)
    elif overrides:
        raise RunError("overrides change a recipe that is read from a file; change the values")
    if not isinstance(recipe, Recipe):
        recipe = parse_recipe(recipe, trust_code=trust_code)
    folder = run_folder(out, recipe.name)
    accelerator = accelerator_for(recipe.precision)
    trainings = (recipe.teacher.training, *map(recipe.training_of, recipe.supervisions))
    # Reported before the teacher is trained, even if it concerns the student only.
    check_accelerator(accelerator, compiled=any(t is not None and t.compile for t in trainings))
    described = recipe.as_written_in(folder)
    if accelerator.is_main_process:
        check_folder(folder, described, as_of_today)
    # The folder is created after everything that the recipe names was found, so a failed start leaves
    # nothing in the way of the corrected recipe.
    run_files = Run(folder)
    context = StudyContext.of(recipe, run_files, accelerator, trust_code, progress)
    context.build(recipe.student.model, 0)
    given = find_teacher(context)
    # Under a launcher, one process opens, locks and writes; the others only train.
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        _train(replace(context, progress=silent), run_files, given, spread)
        return OpenRun.open(folder).result
    with locked(run_files):
        stage = open_run(folder, described, as_of_today)
        accelerator.wait_for_everyone()
        teacher = _train(context, stage, given, spread)
        opened = OpenRun.open(folder)
        whole = _joined(recipe, run_files, stage, trust_code)
        finished = FinishedRun.of(opened, replace(context, recipe=whole), teacher)
        # An analysis whose record the run has is not repeated.
        if recipe.deviation:
            measure(finished, "confidence")
        if recipe.complexity is not None:
            measure(finished, "complexity", recipe.complexity)
    return opened.result


def _joined(recipe: Recipe, run: Run, stage: Run, trust_code: bool) -> Recipe:
    """Return the recipe with everything that was added to the run since."""
    latest = latest_recipe(run)
    if latest == stage.recipe:
        return recipe
    asked = {"complexity": recipe.complexity, "deviation": recipe.deviation}
    return read_recipe(latest, trust_code=trust_code).model_copy(update=asked)


def _train(
    context: StudyContext, stage: Run, given: GivenTeacher | None, spread: Spread
) -> StudyTeacher:
    """Train the networks that are not trained yet, and write results if there were any."""
    began = now()
    recipe, run, accelerator = context.recipe, context.run, context.accelerator
    if context.main:
        _bind_data(run, context.splits, context.scales)
    start_trackers(accelerator, recipe.trackers, run.trackers, slug(recipe.name))
    teacher = prepare_teacher(context, given)
    context = tune_students(context, teacher, spread)
    earlier = read_training(stage) if stage.results.is_file() else None
    finished = earlier is not None and not earlier.open_cells
    outcome = Outcome(context, stage, teacher, began, earlier and earlier.provenance)
    # Written after every network, so that an interrupted run shows its results so far. The results of
    # a finished training are never written again.
    write = outcome.write if context.main and not finished else lambda students: None
    write(train_students(context, teacher, write, spread))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return replace(teacher, context=context)


def _bind_data(run: Run, splits: Splits, scales: Mapping[str, InputScale]) -> None:
    described = {
        "fingerprint": splits.fingerprint,
        "train": len(splits.train),
        "validation": len(splits.validation) if splits.validation else 0,
        "test": len(splits.test),
        "classes": list(splits.train.classes),
        "input_shape": list(splits.train.input_shape),
        "input_type": str(splits.train.inputs.dtype).removeprefix("torch."),
        "vocabularies": list(splits.train.vocabularies),
        "normalisation": scales["data"].record,
        "teacher_normalisation": scales["teacher"].record,
        "student_normalisation": scales["student"].record,
        "changed_labels": [asdict(change) for change in splits.changed],
    }
    if run.data.is_file():
        check_fingerprint(run, splits.fingerprint, "of this recipe")
        # A run of an earlier version gets what it lacks: export needs the normalisation.
        if read_data(run).keys() >= described.keys():
            return
    for place, tokenizer in enumerate(splits.tokenizers):
        write_atomically(run.tokenizer(place), tokenizer)
    write_atomically(run.data, json.dumps(described, indent=1) + "\n")
