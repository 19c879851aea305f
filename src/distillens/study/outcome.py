"""Write the results of a study, also of an unfinished one."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from numpy.typing import NDArray

from distillens.files.atomic import write_atomically
from distillens.measures.statistics.intervals import LEVEL
from distillens.models import measure_cost
from distillens.results.base import from_json, to_json
from distillens.results.training import (
    TEACHER,
    Cell,
    NetworkCost,
    NetworkId,
    Provenance,
    Row,
    StudyResult,
    Tuning,
)
from distillens.runs.folder import more_seeds, read_recipe_values
from distillens.runs.layout import Run
from distillens.runs.read import stored_arrays
from distillens.study.context import StudyContext
from distillens.study.networks import read_epochs
from distillens.study.normalisations import described
from distillens.study.provenance import now, provenance
from distillens.study.recipe import Recipe
from distillens.study.students import Student
from distillens.study.task import Outcomes
from distillens.study.teacher import StudyTeacher
from distillens.study.tuning import read_tuning
from distillens.supervision import LogitCache


@dataclass(frozen=True)
class Outcome:
    """Writes a study's results, whole or with open cells."""

    context: StudyContext
    stage: Run
    """The run, or the addition to it, whose ``results.json`` is written."""
    teacher: StudyTeacher
    began: datetime
    earlier: Provenance | None = None
    """Provenance of the run's results before this process."""
    known: dict[NetworkId, NDArray] = field(default_factory=dict)
    """Outcomes of networks on the test examples; see `distillens.study.task.Task.outcomes`."""

    def write(self, students: Sequence[Sequence[Cell]]) -> StudyResult:
        """Write and return the results so far; networks that are not trained yet are named as open."""
        recipe, splits, cell = self.context.recipe, self.context.splits, self.teacher.cell
        tuning = read_tuning(self.context.run) if recipe.tune is not None else None
        result = StudyResult(
            schema_version=StudyResult.SCHEMA_VERSION,
            name=recipe.name,
            description=recipe.description,
            loss=recipe.loss,
            classes=self.context.classes,
            train_examples=len(splits.train),
            validation_examples=len(splits.validation) if splits.validation else 0,
            test_examples=len(splits.test),
            changed_labels=len(splits.changed),
            rows=rows(recipe, cell, students, self._outcomes, self._level),
            cells=(cell, *(cell for cells in students for cell in cells)),
            provenance=self._provenance(splits.fingerprint, cell.weights_digest),
            notes=(*self._notes(), *tuning_notes(tuning)),
            costs=network_costs(self.context, self.teacher),
            open_cells=tuple(self._open(students)),
            tuning=tuning,
        )
        write_atomically(self.stage.results, to_json(result))
        return result

    @property
    def _level(self) -> float:
        """The level of intervals over seeds; see `level_after`."""
        stages = self.context.run.stages()
        recipes = [read_recipe_values(one) for one in stages[: stages.index(self.stage) + 1]]
        return level_after(more_seeds(before, after) for before, after in pairwise(recipes))

    def _outcomes(self, cell: Cell) -> NDArray:
        if cell.id not in self.known:
            context, task = self.context, self.context.task
            student = Student(cell.position, cell.seed)
            files = self.teacher.files if cell.id.is_teacher else student.files(context)
            stored = stored_arrays(task.file(files), files)["test"]
            self.known[cell.id] = task.outcomes(stored, context.splits.test)
        return self.known[cell.id]

    def _provenance(self, fingerprint: str, teacher: str) -> Provenance:
        seconds = (now() - self.began).total_seconds()
        made = provenance(self.began, seconds, fingerprint, teacher)
        made = replace(made, normalisation=described(self.context.scales))
        if self.earlier is None:
            return made
        # A resumed run keeps the start of its first process and sums the seconds of all processes.
        return replace(made, started=self.earlier.started, seconds=seconds + self.earlier.seconds)

    def _open(self, students: Sequence[Sequence[Cell]]) -> list[str]:
        recipe = self.context.recipe
        return [
            f"{entry.title}, seed {seed}"
            for entry, cells in zip(recipe.supervisions, students, strict=True)
            for seed in recipe.seeds_of(entry)
            if seed not in {cell.seed for cell in cells}
        ]

    def _notes(self) -> list[str]:
        recipe = self.context.recipe
        notes = ["accuracies are those of the last epoch; nothing was chosen by test labels"]
        notes += self.context.task.notes
        if self.teacher.model is None and recipe.data.augmentation.changes:
            notes.append(
                "the teacher is known by its logits on the original pictures; students saw "
                "augmented ones with the same logits"
            )
        if self.teacher.files.loading.is_file():
            notes.append(self.teacher.files.loading.read_text(encoding="utf-8").strip())
        if self.teacher.training is not None and len(recipe.seeds) > 1:
            notes.append("all seeds of the students share one teacher")
        if self.context.top_k is not None:
            cache = LogitCache(
                self.teacher.cache_folder,
                self.context.batches(recipe.student.training, 0, "teacher"),
                recipe.precision,
                top_k=self.context.top_k,
            )
            if shares := cache.left_out():
                notes.append(
                    f"of the teacher's logits the {self.context.top_k} largest were kept; the mass "
                    f"left out is {100 * shares[0]:.3g} % in the mean, {100 * shares[1]:.3g} % at most"
                )
        if not any(entry.is_baseline for entry in recipe.supervisions):
            notes.append(
                "no student is trained on labels alone, so there is no gain, and supervision "
                "complexity, which is measured along that student, is left out"
            )
        if self.teacher.training is None and recipe.complexity is not None:
            notes.append(
                "no trajectory of the teacher is known, so complexity has no online teacher"
            )
        return notes + self._device_notes()

    def _device_notes(self) -> list[str]:
        """Return what kept an accelerator idle, with the networks in whose training it did."""
        networks = {"the teacher": self.teacher.files}
        for place, entry in enumerate(self.context.recipe.supervisions):
            for seed in self.context.recipe.seeds_of(entry):
                networks |= Student(place, seed).networks(self.context)
        found: dict[str, list[str]] = {}
        for title, files in networks.items():
            notes = dict.fromkeys(note for record in read_epochs(files) for note in record.notes)
            for note in notes:
                found.setdefault(note, []).append(title)
        return [f"training of {', '.join(titles)}: {note}" for note, titles in found.items()]


def level_after(additions: Iterable[bool]) -> float:
    """Return the level of intervals over seeds after additions to a run.

    Seeds are usually added after results have been seen. The k-th addition of seeds therefore shows
    intervals of level 1 − 0.05/2ᵏ: the probabilities that one of them misses sum to at most 0.05, so
    with probability 0.95 every interval that is shown after an addition covers the true value, however
    it was decided to add seeds. Without an addition of seeds the level is 0.95.

    Parameters
    ----------
    additions
        For each addition whether a supervision that the run had before got further seeds.
    """
    count = sum(additions)
    return LEVEL if count == 0 else 1 - (1 - LEVEL) / 2**count


def tuning_notes(tuning: Tuning | None) -> list[str]:
    """Return notes on the selection of learning rates."""
    if tuning is None:
        return []
    grid = ", ".join(f"{rate:g}" for rate in sorted(tuning.grid))
    edge = [f"{one.supervision} ({one.learning_rate:g})" for one in tuning.chosen if one.at_edge]
    notes = []
    if edge:
        notes.append(
            f"the selected learning rate is at the edge of the grid {grid} for {', '.join(edge)}; "
            "a rate beyond the grid may be better"
        )
    notes += [
        f"{trial.supervision} diverged with learning rate {trial.learning_rate:g}: {trial.failure}"
        for trial in tuning.trials
        if trial.failure
    ]
    return notes


def rows(
    recipe: Recipe,
    teacher: Cell,
    students: Sequence[Sequence[Cell]],
    outcomes: Outcomes,
    level: float = LEVEL,
) -> tuple[Row, ...]:
    """Return the teacher's row and one for each supervision that has a network, in the recipe's order.

    ``level`` is that of all intervals, 0.95 = 95 %.

    Gains are against the first one-hot supervision, paired by seed and by test example, over the
    seeds that both have.
    """
    task = recipe.task()
    baseline = next((k for k, e in enumerate(recipe.supervisions) if e.is_baseline), None)

    def row(position: int, name: str, kind: str, cells: Sequence[Cell], **more: Any) -> Row:
        accuracies = [cell.test_accuracy for cell in cells]
        return Row(
            position=position,
            name=name,
            kind=kind,
            seeds=tuple(cell.seed for cell in cells),
            accuracy=task.accuracy_estimate(cells, outcomes, level),
            deviation=statistics.stdev(accuracies) if len(cells) > 1 else None,
            train_accuracy=statistics.fmean(cell.train_accuracy for cell in cells),
            parameters=cells[0].parameters,
            seconds=statistics.fmean(cell.seconds for cell in cells),
            loss=task.loss_estimate(cells, outcomes, level),
            **more,
        )

    found = [row(TEACHER, "teacher", "teacher", [teacher], gain=None)]
    for place, (entry, cells) in enumerate(zip(recipe.supervisions, students, strict=True)):
        if not cells:
            continue
        gain = None
        if baseline is not None and baseline != place:
            known = {cell.seed: cell for cell in students[baseline]}
            paired = [cell for cell in cells if cell.seed in known]
            others = [known[cell.seed] for cell in paired]
            gain = task.gain(paired, others, outcomes, level) if paired else None
        merged = recipe.training_of(entry).model_dump(mode="json")
        # A rate that tune selected is a result, not a part of the recipe.
        selected = ("learning_rate",) if recipe.tune is not None else ()
        found.append(
            row(
                place,
                entry.title,
                entry.kind,
                cells,
                gain=gain,
                learning_rate=merged["learning_rate"],
                training={key: merged[key] for key in entry.training or {} if key not in selected},
            )
        )
    return tuple(found)


def network_costs(context: StudyContext, teacher: StudyTeacher) -> tuple[NetworkCost, ...]:
    """Return the cost of the teacher, where its network is known, and of the student."""
    train, models = context.splits.train, {"student": context.recipe.student.model}
    if teacher.model is not None:
        models = {"teacher": teacher.model, **models}
    costs = []
    for network, model in models.items():
        path = context.run.cost(network)
        if not path.is_file():
            cost = measure_cost(
                context.build(model, 0, "teacher" if network == "teacher" else "student"),
                train.input_shape,
                device=context.accelerator.device,
                vocabularies=train.vocabularies,
            )
            write_atomically(path, to_json(NetworkCost(network, model.name, cost)))
        costs.append(from_json(NetworkCost, path.read_bytes(), str(path)))
    return tuple(costs)
