"""The part of checking a recipe that needs its data and networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.nn.modules.batchnorm import _BatchNorm

from distillens.data import Examples
from distillens.models import ModelRecipe, count_parameters
from distillens.results.check import CheckedData, CheckedNetwork, RecipeCheck, RunEstimate
from distillens.runs.layout import Run
from distillens.study.context import StudyContext
from distillens.study.normalisations import Role, described
from distillens.study.planning.check import Findings
from distillens.study.planning.disk import bytes_there, planned_networks
from distillens.study.planning.estimate import disk_problem, estimate_run, seconds_per_step
from distillens.study.recipe import Recipe
from distillens.study.teacher import find_teacher
from distillens.training import TrainingRecipe, accelerator_for, accuracy


def check_networks(recipe: Recipe, folder: Path, trust_code: bool, found: Findings) -> RecipeCheck:
    """Load the data, build the networks and time training steps; add problems to those found."""
    supervisions = tuple(
        (entry.title, len(recipe.seeds_of(entry))) for entry in recipe.supervisions
    )
    result = RecipeCheck(recipe.name, (), (), supervisions=supervisions)
    context = found.attempt(
        lambda: StudyContext.of(recipe, Run(folder), accelerator_for(recipe.precision), trust_code)
    )
    if context is not None:
        result = replace(result, data=_data(context, found))
        trainings = [recipe.training_of(entry) for entry in recipe.supervisions]
        student = _trained(context, "student", recipe.student.model, trainings, found)
        teacher = _teacher(context, found)
        networks = tuple(network for network in (teacher, student) if network is not None)
        result = replace(result, networks=networks)
        if student is not None and not found.problems:
            steps: dict[Role, float] = {"student": student.seconds_per_step or 0.0}
            if teacher is not None:
                steps["teacher"] = teacher.seconds_per_step or 0.0
            result = replace(result, estimate=_estimate(context, steps, found))
    return replace(result, problems=tuple(found.problems), notes=tuple(found.notes))


def _data(context: StudyContext, found: Findings) -> CheckedData:
    splits = context.splits
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
        source=context.recipe.data.source,
        path=context.recipe.data.path,
        train=len(splits.train),
        validation=len(splits.validation) if splits.validation else 0,
        test=len(splits.test),
        classes=names,
        train_counts=train,
        test_counts=test,
        input_shape=splits.train.input_shape,
        normalisation=described(context.scales),
    )


def _counts(examples: Examples, classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(examples.labels.numpy(), minlength=classes).tolist())


def _shared(train: Examples, test: Examples) -> int:
    """Return how many test inputs equal a training input."""
    seen = {row.tobytes() for row in train.inputs.numpy()}
    return sum(row.tobytes() in seen for row in test.inputs.numpy())


def _trained(
    context: StudyContext,
    role: Role,
    model: ModelRecipe,
    trainings: Sequence[TrainingRecipe],
    found: Findings,
) -> CheckedNetwork | None:
    network = found.attempt(lambda: context.build(model, 0, role))
    if network is None:
        return None
    training = trainings[0] if role == "teacher" else context.recipe.student.training
    examples = len(context.splits.train)
    sizes = {each.batch_size for each in trainings if examples % each.batch_size == 1}
    if sizes and any(isinstance(module, _BatchNorm) for module in network.modules()):
        found.problems.append(
            f"the last batch of the {role}'s epochs has one example, which BatchNorm cannot train "
            f"on; change the batch_size {min(sizes)} of its training or data.train_size"
        )
        seconds = None
    else:
        seconds = found.attempt(lambda: seconds_per_step(context, model, training, role))
    return CheckedNetwork(
        role=role,
        model=model.name,
        parameters=count_parameters(network),
        origin="trained here",
        epochs=training.epochs,
        seconds_per_step=seconds,
    )


def _teacher(context: StudyContext, found: Findings) -> CheckedNetwork | None:
    recipe = context.recipe.teacher
    if recipe.training is not None and recipe.model is not None:
        return _trained(context, "teacher", recipe.model, [recipe.training], found)
    known = len(found.problems)
    given = found.attempt(lambda: find_teacher(context))
    if given is None or len(found.problems) > known:
        return None
    found.notes += [given.note] if given.note else []
    shares = {
        split: accuracy(given.logits[split], getattr(context.splits, split).labels.numpy())[0]
        for split in ("train", "validation")
        if split in given.logits
    }
    return CheckedNetwork(
        role="teacher",
        model=recipe.model.name if recipe.model is not None else "known by its logits",
        parameters=given.parameters,
        origin=str(recipe.checkpoint.path if recipe.checkpoint is not None else recipe.logits),
        accuracies=tuple(shares.items()),
    )


def _estimate(
    context: StudyContext, steps: dict[Role, float], found: Findings
) -> RunEstimate | None:
    made = found.attempt(lambda: estimate_run(context, planned_networks(context), steps))
    if made is None:
        return None
    estimate, _ = made
    if problem := disk_problem(estimate, bytes_there(context.run.folder)):
        found.problems.append(problem)
    return estimate
