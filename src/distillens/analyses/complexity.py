"""Supervision complexity of four target sets along the training of a study's one-hot student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from distillens.analyses.finished import FinishedRun, FinishedStudent
from distillens.analyses.gram_profile import Decomposed, compare_kernels, decompose, profile
from distillens.analyses.registry import Analysis, Measured, register_analysis
from distillens.data import Batches, Examples
from distillens.data.prepare import subset
from distillens.errors import KernelError, RecipeError
from distillens.kernel import EmpiricalNTK, Plan
from distillens.linalg import eigen_summary
from distillens.measures import (
    CODING_WORDS,
    ComplexityMeter,
    coding_of,
    factorise_gram,
    gradient_residual,
    label_targets,
    prediction_targets,
    random_label_targets,
    teacher_targets,
)
from distillens.measures.complexity.targets import Coding
from distillens.results.complexity import (
    ComplexityCurves,
    ComplexityPoint,
    ComplexityValue,
    KernelForm,
    Spectrum,
    TemperaturePoint,
)
from distillens.runs.layout import NetworkFiles
from distillens.study.context import StudyContext
from distillens.study.recipe import ComplexityRecipe
from distillens.study.teacher import StudyTeacher
from distillens.training import predict


def complexity_epochs(asked: tuple[int, ...] | None, kept: Sequence[int]) -> list[int]:
    """Return the epochs at which complexity is measured: as asked, or denser at the start.

    ``kept`` are the epochs whose weights exist, in order; others are replaced by the nearest of them.
    """
    if asked is not None:
        return sorted(set(asked))
    shares = (0, 0.01, 0.03, 0.08, 0.2, 0.4, 0.65, 1)
    wanted = (1, *(round(share * kept[-1]) for share in shares))
    return sorted({min(kept, key=lambda epoch: abs(epoch - each)) for each in wanted})


@dataclass(frozen=True, eq=False)
class _TargetSet:
    """Targets, coded, with the temperature and the teacher's epoch that they come from."""

    name: str
    values: np.ndarray
    temperature: float
    teacher_epoch: int | None


class _Along:
    """What is measured along the training of one student: examples, epochs and kernels."""

    def __init__(
        self, context: StudyContext, recipe: ComplexityRecipe, entry: Any, files: NetworkFiles
    ) -> None:
        self.context, self.recipe, self.files = context, recipe, files
        self.training = context.recipe.training_of(entry)
        whole: Examples = getattr(context.splits, recipe.split)
        size = min(recipe.examples, len(whole))
        self.examples = subset(whole, size, recipe.seed, "complexity.examples")
        self.rows = np.searchsorted(whole.indices.numpy(), self.examples.indices.numpy())
        normalisation = context.normalisation_of("student")
        batches = Batches(self.examples, size, normalisation=normalisation, seed=None)
        self.inputs = next(batches.epoch(0)).inputs
        self.epochs = complexity_epochs(recipe.epochs, self.training.kept_epochs)
        self.coding: Coding = coding_of(context.outputs)
        self.form: KernelForm = "binary" if self.coding == "binary" else recipe.form

    def network(self, epoch: int) -> nn.Module:
        """Return the student after an epoch."""
        return self.context.load(self.context.recipe.student.model, self.files, epoch)

    def kernel(self, network: nn.Module) -> EmpiricalNTK:
        """Return the kernel in float64: along a training it becomes too ill-conditioned for less."""
        outputs = 0 if self.form == "binary" else self.form
        return EmpiricalNTK(network, outputs=outputs, dtype=torch.float64, alone=True)

    def target_sets(self, teacher: StudyTeacher, epoch: int) -> list[_TargetSet]:
        """Return the target sets at an epoch of the student, except random labels."""
        temperature = self.recipe.temperature
        labels = label_targets(
            self.examples.labels.numpy(), len(self.examples.classes), self.coding
        )
        final = teacher_targets(self.final_logits(teacher), temperature, self.coding)
        found = [
            _TargetSet("labels", labels, 1.0, None),
            _TargetSet("final teacher", final, temperature, teacher.epochs),
        ]
        if teacher.epochs is not None:
            followed = teacher.epoch_followed(epoch, self.training.epochs)
            device = self.context.accelerator.device
            normalisation = self.context.normalisation_of("teacher")
            online = predict(teacher.at(followed), self.examples, normalisation, device=device)
            targets = teacher_targets(online, temperature, self.coding)
            found.append(_TargetSet("online teacher", targets, temperature, followed))
        return found

    def final_logits(self, teacher: StudyTeacher) -> np.ndarray:
        """Return the logits of the final teacher."""
        return teacher.logits(self.recipe.split)[self.rows]

    def points(
        self, epoch: int, meter: ComplexityMeter, outputs: np.ndarray, sets: list[_TargetSet]
    ) -> list[ComplexityPoint]:
        """Return the complexity of each target set, and the mean of random labels."""
        predictions = prediction_targets(outputs)
        by_cross_entropy = self.context.recipe.loss == "cross-entropy"

        def point(each: _TargetSet) -> ComplexityPoint:
            gradient = None
            if by_cross_entropy:
                gradient = gradient_residual(meter, each.values, outputs, each.temperature)
            value = meter.measure(each.values, predictions)
            return ComplexityPoint(epoch, each.name, value, gradient, each.teacher_epoch)

        rng = np.random.default_rng(self.recipe.seed)
        size, classes = len(self.examples), len(self.examples.classes)
        draws = [
            random_label_targets(size, classes, rng, self.coding)
            for _ in range(self.recipe.random_draws)
        ]
        random = _mean([point(_TargetSet("random labels", draw, 1.0, None)) for draw in draws])
        labels, *teachers = [point(each) for each in sets]
        return [labels, random, *teachers]

    def at_the_end(
        self,
        teacher: StudyTeacher,
        meter: ComplexityMeter,
        outputs: np.ndarray,
        decomposed: Decomposed | None,
        notes: list[str],
    ) -> dict[str, Any]:
        """Return the fields of `ComplexityCurves` that are measured at the last epoch only."""
        epoch = self.epochs[-1]
        logits, predictions = self.final_logits(teacher), prediction_targets(outputs)
        found: dict[str, Any] = {
            "temperatures": tuple(
                TemperaturePoint(
                    epoch,
                    each,
                    meter.measure(teacher_targets(logits, each, self.coding), predictions),
                )
                for each in self.recipe.temperatures
            )
        }
        if decomposed is None:
            notes.append(f"epoch {epoch}: no spectrum, references and bounds: the Gram is zero")
        else:
            classes_N = self.examples.labels.numpy()
            doubts = (_ON_TRAINING,) if self.recipe.split == "train" else ()
            found["profile"] = profile(decomposed, meter, "labels", classes_N, epoch, doubts)
        network = teacher.network()
        if network is not None:
            try:
                found["teacher_kernel"] = compare_kernels(
                    self.network(epoch),
                    self.context.on_student_inputs(network),
                    self.inputs,
                    0 if self.form == "binary" else None,
                    self.context.progress,
                )
            except KernelError as error:
                notes.append(f"the teacher's kernel was not compared: {error}")
        return found


_ON_TRAINING = (
    "bounds on training examples are not proved: the kernel is that of a network which was "
    "trained on them"
)


def _spectrum(epoch: int, gram: np.ndarray, decomposed: Decomposed | None) -> Spectrum:
    """Return the spectrum, reusing eigenvalues that are known already."""
    if decomposed is None:
        return Spectrum(epoch, **asdict(eigen_summary(gram)))
    known = decomposed.spectrum
    return Spectrum(
        epoch,
        trace=float(np.trace(gram, axis1=-2, axis2=-1).sum()),
        smallest=float(known.eigenvalues_K[-1]),
        largest=float(known.eigenvalues_K[0]),
        condition=known.condition,
        effective_rank=known.effective_rank,
    )


def _mean(points: list[ComplexityPoint]) -> ComplexityPoint:
    """Return the point whose values are means over draws (the worst of the residuals)."""

    def mean(values: list[float | None]) -> Any:
        return None if values[0] is None else float(np.mean(values))  # type: ignore[arg-type]

    values = [asdict(point.value) for point in points]
    averaged: dict[str, Any] = {key: mean([value[key] for value in values]) for key in values[0]}
    averaged["ridge"] = values[0]["ridge"]
    averaged["residual"] = max(value["residual"] for value in values)
    gradient = mean([point.gradient for point in points])
    return replace(points[0], value=ComplexityValue(**averaged), gradient=gradient)


def choose_student(
    run: FinishedRun, supervision: str | None, seed: int | None
) -> tuple[FinishedStudent, ...]:
    """Return the student along whose training complexity is measured: one that learned from labels.

    Raises
    ------
    RecipeError
        There is no such student.
    """
    found = [one for one in run.chosen(supervision, seed) if one.entry.is_baseline]
    if not found:
        asked = "" if supervision is None else f" {supervision!r}"
        raise RecipeError(
            f"complexity is measured along a student that was trained on labels alone, and the run has "
            f"no such student{asked}"
        )
    return (found[0],)


def measure_complexity(
    run: FinishedRun, students: Sequence[FinishedStudent], recipe: ComplexityRecipe
) -> Measured:
    """Measure four target sets against a student's kernel over its training."""
    context, teacher = run.context, run.teacher
    (student,) = students
    along = _Along(context, recipe, student.entry, student.files)
    last, size = along.epochs[-1], len(along.examples)
    points: list[ComplexityPoint] = []
    spectra: list[Spectrum] = []
    notes: list[str] = []
    at_the_end: dict[str, Any] = {}
    title = f"complexity ({size} {recipe.split} examples)"
    with context.progress(title, len(along.epochs)) as advance:
        for epoch in along.epochs:
            kernel = along.kernel(along.network(epoch))
            found = kernel.gram(along.inputs)
            gram = found.values.cpu().numpy()
            notes += [f"epoch {epoch}: {note}" for note in found.notes]
            sets = along.target_sets(teacher, epoch)
            decomposed = None
            if epoch == last:
                fixed = {one.name: one.values for one in sets if one.name != "online teacher"}
                decomposed = decompose(gram, along.form, fixed)
            spectra.append(_spectrum(epoch, gram, decomposed))
            mean_diagonal = spectra[-1].trace / gram[..., 0].size
            meter = factorise_gram(gram, along.form, recipe.ridge * mean_diagonal)
            if meter.singular:
                notes.append(f"epoch {epoch}: {meter.singular}")
            outputs = kernel.outputs_of(along.inputs).cpu().numpy()
            points += along.points(epoch, meter, outputs, sets)
            if epoch == last:
                at_the_end = along.at_the_end(teacher, meter, outputs, decomposed, notes)
            advance(1)
    return Measured(
        ComplexityCurves(
            student=student.entry.title,
            seed=student.cell.seed,
            split=recipe.split,
            examples=size,
            form=along.form,
            coding=CODING_WORDS[along.coding],
            temperature=recipe.temperature,
            random_draws=recipe.random_draws,
            points=tuple(points),
            spectra=tuple(spectra),
            notes=tuple(notes),
            **at_the_end,
        )
    )


def plan_complexity(
    run: FinishedRun, students: Sequence[FinishedStudent], recipe: ComplexityRecipe
) -> str:
    """Return the plan of one Gram and how many Grams there are, as text."""
    del students  # a plan does not depend on weights
    found, count = complexity_plan(run.context, recipe)
    return f"{count} Grams, each:\n{found}"


def complexity_plan(context: StudyContext, recipe: ComplexityRecipe) -> tuple[Plan, int]:
    """Return the plan of one Gram, which does not depend on weights, and how many Grams there are."""
    position, entry = next(
        (position, entry)
        for position, entry in enumerate(context.recipe.supervisions)
        if entry.is_baseline
    )
    seed = context.recipe.seeds_of(entry)[0]
    along = _Along(context, recipe, entry, context.run.student(position, entry.title, seed))
    network = context.build(context.recipe.student.model, 0).to(context.accelerator.device).eval()
    return along.kernel(network).plan(along.inputs), len(along.epochs)


register_analysis(
    Analysis(
        name="complexity",
        summary="Supervision complexity of labels and teachers along a student's training.",
        settings=ComplexityRecipe,
        result=ComplexityCurves,
        measure=measure_complexity,
        choose=choose_student,
        plan=plan_complexity,
        from_recipe=lambda recipe: recipe.complexity,
    )
)
