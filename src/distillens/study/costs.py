"""What a study's networks cost where they are used, measured once and kept."""

from __future__ import annotations

from distillens.files.atomic import write_atomically
from distillens.models import ModelRecipe, measure_cost
from distillens.results.base import from_json, to_json
from distillens.results.training import NetworkCost
from distillens.study.networks import StudyContext
from distillens.study.teacher import StudyTeacher


def network_costs(context: StudyContext, teacher: StudyTeacher) -> tuple[NetworkCost, ...]:
    """Return the cost of the teacher, where its network is known, and of the student."""
    student = _cost(context, "student", context.recipe.student.model)
    if teacher.model is None:
        return (student,)
    return (_cost(context, "teacher", teacher.model), student)


def _cost(context: StudyContext, network: str, model: ModelRecipe) -> NetworkCost:
    path = context.run.cost(network)
    if not path.is_file():
        train = context.splits.train
        cost = measure_cost(
            context.build(model, 0, "teacher" if network == "teacher" else "student"),
            train.input_shape,
            device=context.accelerator.device,
            vocabularies=train.vocabularies,
        )
        write_atomically(path, to_json(NetworkCost(network, model.name, cost)))
    return from_json(NetworkCost, path.read_bytes(), str(path))
