"""How far each student of a study is from its teacher, on train and test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from distillens.measures import deviation
from distillens.results.confidence import Deviation
from distillens.study.networks import Scene, network_logits, write_arrays
from distillens.study.teacher import StudyTeacher


def measure_deviations(scene: Scene, teacher: StudyTeacher) -> list[Deviation]:
    """Compare every student with the teacher, on train and test."""
    recipe, run = scene.recipe, scene.run
    student_kind = "logits" if recipe.loss == "cross-entropy" else "probabilities"
    found = []
    jobs = [
        (place, entry, seed, split)
        for place, entry in enumerate(recipe.supervisions)
        for seed in recipe.seeds_of(entry)
        for split in ("train", "test")
    ]
    with scene.progress("deviation from the teacher", len(jobs)) as advance:
        for place, entry, seed, split in jobs:
            logits = network_logits(run.student(place, entry.title, seed))[split]
            result, points = deviation(
                teacher.logits(split),
                _as_probabilities(logits, student_kind),
                getattr(scene.splits, split).labels.numpy(),
                student=entry.title,
                seed=seed,
                split=split,
                student_kind=student_kind,
            )
            path = run.points(place, entry.title, seed, split)
            write_arrays(
                path,
                {
                    "x": points.x_N.astype(np.float32),
                    "y": points.y_N.astype(np.float32),
                    "who": points.who_N,
                },
            )
            found.append(replace(result, points=run.relative(path)))
            advance(1)
    return found


def _as_probabilities(outputs_NC: np.ndarray, kind: str) -> np.ndarray:
    """Return outputs as the deviation reads them.

    A network trained with squared error gives probabilities, or with one output 2p − 1; what lies
    outside [0, 1] is clipped, and counted, by the measure.
    """
    if kind == "probabilities" and outputs_NC.shape[1] == 1:
        return (1 + outputs_NC) / 2
    return outputs_NC
