"""Select a learning rate for every supervision on the validation split.

τ² and the teacher's weight α scale a supervision's gradients, so a rate that suits one supervision may
not suit another. Each supervision, labels alone included, is therefore trained once in full with every
rate of ``tune.learning_rate`` and a seed that no student has. Test examples are not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distillens.errors import TrainingError
from distillens.files.atomic import write_atomically
from distillens.results.base import from_json, to_json
from distillens.results.training import Trial, TunedRate, Tuning
from distillens.runs.layout import Run
from distillens.study.context import StudyContext
from distillens.study.recipe import Recipe
from distillens.study.students import Spread, Student, one_by_one, train_missing
from distillens.study.teacher import StudyTeacher


def tune_students(
    context: StudyContext, teacher: StudyTeacher, spread: Spread = one_by_one
) -> StudyContext:
    """Return the context with the selected learning rate in each supervision's ``training``.

    Without ``tune`` it is returned as it is. Trials that a run holds already are not trained again.
    Their weights are deleted when all rates are selected; their numbers stay.

    Raises
    ------
    TrainingError
        A supervision diverged with every rate.
    """
    recipe = context.recipe
    if recipe.tune is None:
        return context
    # Self-distillation starts from the one-hot trial of the rate that was selected for labels.
    places = range(len(recipe.supervisions))
    later = [k for k in places if "previous student" in recipe.supervisions[k].needs()]
    trials: list[Trial] = []
    for group in ([k for k in places if k not in later], later):
        rates = recipe.tune.learning_rate
        students = [Student(k, recipe.tuning_seed, rate) for k in group for rate in rates]
        found = train_missing(context, teacher, students, spread)
        trials += [one for student in students if isinstance(one := found[student], Trial)]
        tuning = _select(recipe, trials)
        if context.main:
            write_atomically(context.run.tuning, to_json(tuning))
        context.accelerator.wait_for_everyone()
        context = replace(context, recipe=_with_rates(recipe, tuning))
    if context.main:
        folder = context.run.folder / "tuning"
        for path in (*folder.rglob("epoch-*.safetensors"), *folder.rglob("state.pt")):
            path.unlink()
    return context


def read_tuning(run: Run) -> Tuning | None:
    """Return the selection so far; None if nothing was selected."""
    if not run.tuning.is_file():
        return None
    return from_json(Tuning, run.tuning.read_bytes(), str(run.tuning))


def tuned(recipe: Recipe, run: Run) -> Recipe:
    """Return a run's recipe with the learning rates that were selected so far."""
    tuning = None if recipe.tune is None else read_tuning(run)
    return recipe if tuning is None else _with_rates(recipe, tuning)


def _select(recipe: Recipe, trials: Sequence[Trial]) -> Tuning:
    assert recipe.tune is not None
    grid = recipe.tune.learning_rate
    titles = {trial.supervision for trial in trials}
    chosen = []
    for entry in recipe.supervisions:
        if entry.title not in titles:
            continue
        mine = [trial for trial in trials if trial.supervision == entry.title]
        if all(trial.failure for trial in mine):
            raise TrainingError(
                f"{entry.title!r} diverged with every learning rate of tune {list(grid)}; "
                f"the smallest: {min(mine, key=lambda trial: trial.learning_rate).failure}"
            )
        rate = max(mine, key=_merit).learning_rate
        chosen.append(TunedRate(entry.title, rate, rate in (min(grid), max(grid))))
    return Tuning(recipe.tuning_seed, grid, tuple(chosen), tuple(trials))


def _merit(trial: Trial) -> tuple[float, float, float]:
    """Return the sort key of a trial: accuracy, then lower loss, then smaller rate."""
    accuracy, loss = trial.validation_accuracy, trial.validation_loss
    return (
        -math.inf if accuracy is None else accuracy,
        -math.inf if loss is None or math.isnan(loss) else -loss,
        -trial.learning_rate,
    )


def _with_rates(recipe: Recipe, tuning: Tuning) -> Recipe:
    rates = {one.supervision: one.learning_rate for one in tuning.chosen}

    def tuned_entry(entry: Any) -> Any:
        if entry.title not in rates:
            return entry
        training = {**(entry.training or {}), "learning_rate": rates[entry.title]}
        return entry.model_copy(update={"training": training})

    return recipe.model_copy(
        update={"supervisions": tuple(tuned_entry(entry) for entry in recipe.supervisions)}
    )
