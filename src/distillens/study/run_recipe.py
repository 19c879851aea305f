"""Carry out a recipe, from data to results."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distillens.analyses import confidence
from distillens.analyses.complexity import curves_path, measure_complexity
from distillens.analyses.finished import FinishedRun
from distillens.data import Splits
from distillens.errors import RunError
from distillens.files.atomic import write_atomically
from distillens.files.paths import user_path
from distillens.progress import Progress, silent
from distillens.results.base import from_json, to_json
from distillens.results.complexity import ComplexityCurves
from distillens.results.training import Provenance, StudyResult
from distillens.runs.folder import check_folder, locked, open_run
from distillens.runs.layout import Run, slug
from distillens.runs.read import read_data, read_result
from distillens.study.given_teacher import GivenTeacher
from distillens.study.networks import Scene
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
    """Carry out a recipe and return what was found out.

    A run that was interrupted goes on where it was and ends with the same weights.

    Parameters
    ----------
    recipe
        A recipe, its plain values, a YAML file or the name of a shipped recipe.
    out
        The run folder; by default ``runs/<name of the recipe>``.
    overrides
        ``key=value`` with dotted keys, as on the command line; for files and names only.
    trust_code
        Allow ``module:function`` models, which run code that the recipe names.
    progress
        Where to show how far it is.
    spread
        Who trains the students; by default this process: on a GPU those of one seed at the same time,
        otherwise one by one. See `distillens.integrations.ray.ray_workers`.

    Raises
    ------
    DistillensError
        One of its kinds: the recipe, the data, a teacher or the folder cannot be used as given, or
        a training diverged.
    """
    if isinstance(recipe, (str, Path)):
        recipe = read_recipe(recipe, overrides, trust_code=trust_code)
    elif overrides:
        raise RunError("overrides change a recipe that is read from a file; change the values")
    if not isinstance(recipe, Recipe):
        recipe = parse_recipe(recipe, trust_code=trust_code)
    folder = user_path(out) if out is not None else Path("runs") / slug(recipe.name)
    accelerator = accelerator_for(recipe.precision)
    trainings = (recipe.teacher.training, *map(recipe.training_of, recipe.supervisions))
    # Said before the teacher is trained, though only the student may be meant.
    check_accelerator(accelerator, compiled=any(t is not None and t.compile for t in trainings))
    described = recipe.as_written_in(folder)
    run_files = Run(folder)
    if accelerator.is_main_process:
        check_folder(folder, described, as_of_today)
    # The folder is made when all that the recipe names is there, so that a start which failed leaves
    # nothing in the way of the corrected recipe.
    scene = Scene.of(recipe, run_files, accelerator, trust_code, progress)
    scene.build(recipe.student.model, 0)
    given = find_teacher(scene)
    # Under a launcher one process opens, locks and writes; the others train beside it.
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return _carry_out(replace(scene, progress=silent), given, spread)
    with locked(run_files):
        open_run(folder, described, as_of_today)
        accelerator.wait_for_everyone()
        return _carry_out(scene, given, spread)


def _carry_out(scene: Scene, given: GivenTeacher | None, spread: Spread) -> StudyResult:
    began, clock = now(), time.perf_counter()
    recipe, run, accelerator = scene.recipe, scene.run, scene.accelerator
    if scene.main:
        _bind_data(run, scene.splits, scene.scales)
    start_trackers(accelerator, recipe.trackers, run.trackers, slug(recipe.name))
    teacher = prepare_teacher(scene, given)
    scene = tune_students(scene, teacher, spread)
    outcome = Outcome(scene, teacher, began, clock, _earlier(run))
    # Written after every network, so that a run which is cut short shows what is there.
    write = outcome.write if scene.main else _nothing
    students = train_students(scene, teacher, write, spread)
    if scene.main:
        if recipe.deviation:
            finished = FinishedRun.of(scene, outcome.result(students), teacher)
            measured = confidence.measure(finished, progress=scene.progress)
            confidence.write_confidence(run, *measured)
        outcome.write(students, _complexity(scene, teacher))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return read_result(run)


def _earlier(run: Run) -> Provenance | None:
    return read_result(run).provenance if run.results.is_file() else None


def _nothing(students: object) -> None:
    """What a process that does not write does after a network."""


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
        before = read_data(run)
        if before["fingerprint"] != splits.fingerprint:
            raise RunError(
                f"{run.folder} was made from other data: fingerprint "
                f"{str(before.get('fingerprint'))[:12]} there, {splits.fingerprint[:12]} here; "
                "choose another --out"
            )
        # A run of an earlier version gets what it lacks: export needs the normalisation.
        if before.keys() >= described.keys():
            return
    for place, tokenizer in enumerate(splits.tokenizers):
        write_atomically(run.tokenizer(place), tokenizer)
    write_atomically(run.data, json.dumps(described, indent=1) + "\n")


def _complexity(scene: Scene, teacher: StudyTeacher) -> list[ComplexityCurves]:
    asked = scene.recipe.complexity
    if asked is None:
        return []
    path = curves_path(scene.run, asked)
    if not path.is_file():
        write_atomically(path, to_json(measure_complexity(scene, teacher, asked)))
    return [from_json(ComplexityCurves, path.read_bytes(), str(path))]
