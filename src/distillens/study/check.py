"""Check a recipe without carrying it out: everything that is wrong with it, and what it will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distillens.check_results import CheckedData, CheckedNetwork, RecipeCheck
from distillens.data import Examples
from distillens.errors import DistillensError
from distillens.models import ModelRecipe, count_parameters
from distillens.paths import user_path
from distillens.runs import Run, check_folder, slug
from distillens.study.carry_out import as_of_today
from distillens.study.estimate import estimate_run, seconds_per_step
from distillens.study.networks import Scene
from distillens.study.normalisations import Role, described
from distillens.study.reading import (
    missing_places,
    override_key,
    parse_recipe,
    read_content,
    recipe_problems,
)
from distillens.study.recipe import Recipe
from distillens.study.teacher import find_teacher
from distillens.training import TrainingRecipe, accelerator_for, accuracy

T = TypeVar("T")


@dataclass
class _Findings:
    """Problems and notes that have been found so far."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Return what work returns; None where it fails, which is a problem of the recipe."""
        try:
            return work()
        except DistillensError as error:
            problem = " ".join(str(error).split())
            if not any(problem in known for known in self.problems):
                self.problems.append(problem)
            return None


def check(
    recipe: str | Path | dict[str, Any],
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    trust_code: bool = False,
) -> RecipeCheck:
    """Check a recipe: read its data and networks, time a few steps, write and keep nothing.

    Parameters
    ----------
    recipe
        A YAML file, the name of a recipe that comes with distillens, or plain values.
    out
        The folder that the run would go to; by default ``runs/<name of the recipe>``.
    overrides
        ``key=value`` with dotted keys, as on the command line.
    trust_code
        Allow ``module:function`` models, which run code that the recipe names.

    Returns
    -------
    RecipeCheck
        All problems that were found, not only the first one. What depends on a part that has a
        problem is left out.

    Raises
    ------
    RecipeError
        The file is missing or is no YAML of keys.
    """
    if isinstance(recipe, dict):
        content = dict(recipe)
        for override in overrides:
            override_key(content, override)
    else:
        content, _ = read_content(recipe, overrides)
    found = _Findings(recipe_problems(content))
    name = str(content.get("name", recipe))
    if found.problems:
        return RecipeCheck(name, tuple(found.problems), ())
    parsed = found.attempt(lambda: parse_recipe(content, trust_code=trust_code))
    if parsed is None:
        return RecipeCheck(name, tuple(found.problems), ())
    found.problems += missing_places(parsed)
    folder = user_path(out) if out is not None else Path("runs") / slug(parsed.name)
    described = parsed.as_written_in(folder)
    found.attempt(lambda: check_folder(folder, described, as_of_today))
    return _check_scene(parsed, folder, trust_code, found)


def _check_scene(recipe: Recipe, folder: Path, trust_code: bool, found: _Findings) -> RecipeCheck:
    supervisions = tuple(
        (entry.title, len(recipe.seeds_of(entry))) for entry in recipe.supervisions
    )
    result = RecipeCheck(recipe.name, (), (), supervisions=supervisions)
    scene = found.attempt(
        lambda: Scene.of(recipe, Run(folder), accelerator_for(recipe.precision), trust_code)
    )
    if scene is not None:
        result = replace(result, data=_data(scene, found))
        trainings = [recipe.training_of(entry) for entry in recipe.supervisions]
        student = _trained(scene, "student", recipe.student.model, trainings, found)
        teacher = _teacher(scene, found)
        networks = tuple(network for network in (teacher, student) if network is not None)
        result = replace(result, networks=networks)
        if student is not None and student.seconds_per_step is not None and not found.problems:
            result = replace(result, estimate=_estimate(scene, networks, found))
    return replace(result, problems=tuple(found.problems), notes=tuple(found.notes))


def _data(scene: Scene, found: _Findings) -> CheckedData:
    splits = scene.splits
    names = splits.train.classes
    train, test = (_counts(part, len(names)) for part in (splits.train, splits.test))
    for split, counts in (("training", train), ("test", test)):
        if missing := [name for name, count in zip(names, counts, strict=True) if not count]:
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            found.notes.append(
                f"the {split} split has no example of {len(missing)} classes: {shown}"
            )
    if shared := _shared(splits.train, splits.test):
        found.notes.append(f"{shared:,} test examples are also training examples, bit for bit")
    return CheckedData(
        source=scene.recipe.data.source,
        path=scene.recipe.data.path,
        train=len(splits.train),
        validation=len(splits.validation) if splits.validation else 0,
        test=len(splits.test),
        classes=names,
        train_counts=train,
        test_counts=test,
        input_shape=splits.train.input_shape,
        normalisation=described(scene.scales),
    )


def _counts(examples: Examples, classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(examples.labels.numpy(), minlength=classes).tolist())


def _shared(train: Examples, test: Examples) -> int:
    """Return how many test inputs equal a training input."""
    seen = {row.tobytes() for row in train.inputs.numpy()}
    return sum(row.tobytes() in seen for row in test.inputs.numpy())


def _trained(
    scene: Scene,
    role: Role,
    model: ModelRecipe,
    trainings: Sequence[TrainingRecipe],
    found: _Findings,
) -> CheckedNetwork | None:
    network = found.attempt(lambda: scene.build(model, 0, role))
    if network is None:
        return None
    training = trainings[0] if role == "teacher" else scene.recipe.student.training
    examples = len(scene.splits.train)
    sizes = {each.batch_size for each in trainings if examples % each.batch_size == 1}
    if sizes and any(isinstance(module, _BatchNorm) for module in network.modules()):
        found.problems.append(
            f"the last batch of the {role}'s epochs has one example, which BatchNorm cannot train "
            f"on; change the batch_size {min(sizes)} of its training or data.train_size"
        )
        seconds = None
    else:
        seconds = found.attempt(lambda: seconds_per_step(scene, model, training, role))
    return CheckedNetwork(
        role=role,
        model=model.name,
        parameters=count_parameters(network),
        origin="trained here",
        epochs=training.epochs,
        seconds_per_step=seconds,
    )


def _teacher(scene: Scene, found: _Findings) -> CheckedNetwork | None:
    recipe = scene.recipe.teacher
    if recipe.training is not None and recipe.model is not None:
        return _trained(scene, "teacher", recipe.model, [recipe.training], found)
    known = len(found.problems)
    given = found.attempt(lambda: find_teacher(scene))
    if given is None or len(found.problems) > known:
        return None
    found.notes += [given.note] if given.note else []
    shares = {
        split: accuracy(given.logits[split], getattr(scene.splits, split).labels.numpy())[0]
        for split in ("train", "validation")
        if split in given.logits
    }
    return CheckedNetwork(
        role="teacher",
        model=recipe.model.name if recipe.model is not None else "known by its logits",
        parameters=given.parameters,
        origin=str(recipe.checkpoint.path if recipe.checkpoint is not None else recipe.logits),
        epochs=0,
        seconds_per_step=None,
        accuracies=tuple(shares.items()),
    )


def _estimate(scene: Scene, networks: tuple[CheckedNetwork, ...], found: _Findings) -> Any:
    steps = {network.role: network.seconds_per_step for network in networks}
    teacher: nn.Module | None = None
    if scene.recipe.teacher.model is not None:
        teacher = scene.build(scene.recipe.teacher.model, 0, "teacher")
    student = steps["student"]
    assert student is not None
    estimate = found.attempt(lambda: estimate_run(scene, steps.get("teacher"), student, teacher))
    if estimate is not None and estimate.checkpoints + estimate.cache > estimate.free_disk:
        found.problems.append(
            f"the run needs {(estimate.checkpoints + estimate.cache) / 1e9:.1f} GB of disk space "
            f"and {estimate.free_disk / 1e9:.1f} GB are free; choose another --out, fewer epochs "
            "or seeds, or a smaller cache_gigabytes"
        )
    return estimate
