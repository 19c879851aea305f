"""Carry out a recipe, from data to results."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distillens.atomic import write_atomically
from distillens.data import Normalisation, Splits, load_splits
from distillens.errors import RunError
from distillens.progress import Progress, silent
from distillens.results import SCHEMA, ComplexityCurves, StudyResult, from_json, to_json
from distillens.runs import Run, locked, open_run, read_json, slug
from distillens.study.analyses import measure_complexity, measure_deviations
from distillens.study.networks import Scene
from distillens.study.provenance import now, provenance
from distillens.study.reading import parse_recipe, read_recipe
from distillens.study.recipe import Recipe
from distillens.study.students import train_students
from distillens.study.summary import rows
from distillens.study.teacher import StudyTeacher, prepare_teacher
from distillens.training import accelerator_for


def run(
    recipe: Recipe | dict[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    overrides: tuple[str, ...] | list[str] = (),
    trust_code: bool = False,
    progress: Progress = silent,
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
    folder = Path(out) if out is not None else Path("runs") / slug(recipe.name)
    opened = open_run(folder, recipe.model_dump(mode="json"), _as_now)
    with locked(opened):
        return _carry_out(recipe, opened, trust_code, progress)


def _carry_out(recipe: Recipe, run: Run, trust_code: bool, progress: Progress) -> StudyResult:
    began, clock = now(), time.perf_counter()
    splits = load_splits(recipe.data)
    _bind_data(run, splits)
    scene = Scene(
        recipe=recipe,
        run=run,
        splits=splits,
        normalisation=Normalisation.of(splits.train),
        accelerator=accelerator_for(recipe.precision),
        progress=progress,
        trust_code=trust_code,
    )
    # A student that cannot be built is found out before the teacher is trained.
    scene.build(recipe.student.model, 0)
    teacher = prepare_teacher(scene)
    students = train_students(scene, teacher)
    curves = _complexity(scene, teacher)
    deviations = measure_deviations(scene, teacher) if recipe.deviation else []
    result = StudyResult(
        schema_version=SCHEMA,
        name=recipe.name,
        description=recipe.description,
        loss=recipe.loss,
        classes=len(splits.train.classes),
        train_examples=len(splits.train),
        validation_examples=len(splits.validation) if splits.validation else 0,
        test_examples=len(splits.test),
        changed_labels=len(splits.changed),
        rows=rows(recipe, teacher.cell, students),
        cells=(teacher.cell, *(cell for cells in students for cell in cells)),
        complexity=tuple(curves),
        deviations=tuple(deviations),
        provenance=provenance(
            began,
            time.perf_counter() - clock,
            splits.fingerprint,
            teacher.cell.weights_digest,
        ),
        notes=tuple(_notes(recipe, teacher)),
    )
    write_atomically(run.results, to_json(result))
    return result


def _as_now(content: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe that a run holds with the keys that have come since, at their defaults."""
    try:
        return Recipe.model_validate(content).model_dump(mode="json")
    except ValidationError:
        # Not readable any more: compared as it is, which names the key that differs.
        return content


def _bind_data(run: Run, splits: Splits) -> None:
    described = {
        "fingerprint": splits.fingerprint,
        "train": len(splits.train),
        "validation": len(splits.validation) if splits.validation else 0,
        "test": len(splits.test),
        "classes": list(splits.train.classes),
        "input_shape": list(splits.train.input_shape),
        "changed_labels": [asdict(change) for change in splits.changed],
    }
    if run.data.is_file():
        before = read_json(run.data).get("fingerprint")
        if before != splits.fingerprint:
            raise RunError(
                f"{run.folder} was made from other data: fingerprint {str(before)[:12]} there, "
                f"{splits.fingerprint[:12]} here; choose another --out"
            )
        return
    write_atomically(run.data, json.dumps(described, indent=1) + "\n")


def _complexity(scene: Scene, teacher: StudyTeacher) -> list[ComplexityCurves]:
    asked, path = scene.recipe.complexity, scene.run.complexity
    if asked is None:
        return []
    if not path.is_file():
        write_atomically(path, to_json(measure_complexity(scene, teacher, asked)))
    return [from_json(ComplexityCurves, path.read_bytes(), str(path))]


def _notes(recipe: Recipe, teacher: StudyTeacher) -> list[str]:
    notes = ["accuracies are those of the last epoch; nothing was chosen by test labels"]
    if recipe.teacher.logits is not None and recipe.data.augmentation.changes:
        notes.append(
            "the teacher is known by its logits on the original pictures; students saw augmented "
            "ones with the same logits"
        )
    if teacher.training is not None and len(recipe.seeds) > 1:
        notes.append("all seeds of the students share one teacher")
    if teacher.training is None and recipe.complexity is not None:
        notes.append("no trajectory of the teacher is known, so complexity has no online teacher")
    return notes
