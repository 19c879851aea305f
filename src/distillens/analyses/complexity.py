"""Supervision complexity of four target sets along the training of a study's one-hot student."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillens.analyses.finished import FinishedRun, FinishedStudent
from distillens.analyses.gram_profile import Decomposed, Truth, compare_kernels, decompose, profile
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
from distillens.results.complexity import (
    ComplexityCurves,
    ComplexityPoint,
    ComplexityValue,
    GramProfile,
    KernelForm,
    Spectrum,
    TeacherKernel,
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


@dataclass(frozen=True)
class _Setting:
    """Plan of the measurement: the one-hot student of the first seed, examples and epochs."""

    entry: Any
    seed: int
    files: NetworkFiles
    examples: Examples
    inputs: Tensor
    epochs: list[int]
    form: KernelForm

    @classmethod
    def of(
        cls,
        context: StudyContext,
        recipe: ComplexityRecipe,
        entry: Any,
        seed: int,
        files: NetworkFiles,
    ) -> _Setting:
        whole: Examples = getattr(context.splits, recipe.split)
        size = min(recipe.examples, len(whole))
        examples = subset(whole, size, recipe.seed, "complexity.examples")
        normalisation = context.normalisation_of("student")
        batches = Batches(examples, size, normalisation=normalisation, seed=None)
        return cls(
            entry=entry,
            seed=seed,
            files=files,
            examples=examples,
            inputs=next(batches.epoch(0)).inputs,
            epochs=complexity_epochs(recipe.epochs, context.recipe.training_of(entry).kept_epochs),
            form="binary" if coding_of(context.outputs) == "binary" else recipe.form,
        )

    def network(self, context: StudyContext, epoch: int) -> nn.Module:
        network = context.load(context.recipe.student.model, self.files, epoch)
        return network.to(context.accelerator.device)

    def kernel(self, network: nn.Module) -> EmpiricalNTK:
        # In float64: along a training kernels become too ill-conditioned for less.
        outputs = 0 if self.form == "binary" else self.form
        return EmpiricalNTK(network, outputs=outputs, dtype=torch.float64, alone=True)


@dataclass(frozen=True, eq=False)
class _TargetSet:
    """Targets, coded, with the temperature and the teacher's epoch that they come from."""

    name: str
    values: np.ndarray
    temperature: float
    teacher_epoch: int | None


@dataclass(frozen=True)
class _Last:
    """Measurements at the last of the epochs only."""

    temperatures: list[TemperaturePoint]
    profile: GramProfile | None
    teacher_kernel: TeacherKernel | None
    notes: list[str]

    @classmethod
    def of(
        cls,
        context: StudyContext,
        teacher: StudyTeacher,
        recipe: ComplexityRecipe,
        setting: _Setting,
        meter: ComplexityMeter,
        outputs: np.ndarray,
        decomposed: Decomposed | None,
    ) -> _Last:
        epoch, examples = setting.epochs[-1], setting.examples
        notes: list[str] = []
        found = None
        if decomposed is None:
            notes.append(f"epoch {epoch}: no spectrum, references and bounds: the Gram is zero")
        else:
            truth = Truth("labels", examples.labels.numpy())
            found = profile(decomposed, meter, truth, epoch, _doubts(recipe))
        network = teacher.network()
        compared = None
        if network is not None:
            student = setting.network(context, epoch).eval()
            network = network.to(context.accelerator.device).eval()
            network = context.on_student_inputs(network)
            outputs_of_both = 0 if setting.form == "binary" else None
            try:
                compared = compare_kernels(
                    student, network, setting.inputs, outputs_of_both, context.progress
                )
            except KernelError as error:
                notes.append(f"the teacher's kernel was not compared: {error}")
        return cls(
            _temperatures(context, teacher, recipe, examples, epoch, meter, outputs),
            found,
            compared,
            notes,
        )


def _doubts(recipe: ComplexityRecipe) -> tuple[str, ...]:
    if recipe.split != "train":
        return ()
    return (
        "bounds on training examples are not proved: the kernel is that of a network which was "
        "trained on them",
    )


def _decomposed(gram: np.ndarray, form: KernelForm, sets: list[_TargetSet]) -> Decomposed | None:
    wanted = ("labels", "final teacher")
    return decompose(gram, form, {each.name: each.values for each in sets if each.name in wanted})


def _spectrum(epoch: int, gram: np.ndarray, decomposed: Decomposed | None) -> Spectrum:
    """Return the spectrum, reusing eigenvalues that are known already."""
    if decomposed is not None:
        known = decomposed.eigenvalues_K
        return Spectrum(
            epoch,
            float(np.trace(gram, axis1=-2, axis2=-1).sum()),
            float(known[-1]),
            float(known[0]),
            decomposed.condition,
            decomposed.effective_rank,
        )
    summary = eigen_summary(gram)
    return Spectrum(
        epoch,
        summary.trace,
        summary.smallest,
        summary.largest,
        summary.condition,
        summary.effective_rank,
    )


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
    began = time.perf_counter()
    context, teacher = run.context, run.teacher
    (student,) = students
    setting = _Setting.of(context, recipe, student.entry, student.cell.seed, student.files)
    examples, epochs, form = setting.examples, setting.epochs, setting.form
    size = len(examples)
    points: list[ComplexityPoint] = []
    spectra: list[Spectrum] = []
    notes: list[str] = []
    last: _Last | None = None
    coding = coding_of(context.outputs)
    with context.progress(f"complexity ({size} {recipe.split} examples)", len(epochs)) as advance:
        for epoch in epochs:
            network = setting.network(context, epoch)
            kernel = setting.kernel(network)
            found = kernel.gram(setting.inputs)
            gram = found.values.cpu().numpy()
            notes += [f"epoch {epoch}: {note}" for note in found.notes]
            sets = _target_sets(context, teacher, recipe, setting, epoch)
            decomposed = _decomposed(gram, form, sets) if epoch == epochs[-1] else None
            spectra.append(_spectrum(epoch, gram, decomposed))
            mean_diagonal = spectra[-1].trace / gram[..., 0].size
            meter = factorise_gram(gram, form, recipe.ridge * mean_diagonal)
            if meter.singular:
                notes.append(f"epoch {epoch}: {meter.singular}")
            outputs = kernel.outputs_of(setting.inputs).cpu().numpy()
            points += _points(context, recipe, examples, epoch, meter, outputs, sets)
            if epoch == epochs[-1]:
                last = _Last.of(context, teacher, recipe, setting, meter, outputs, decomposed)
            advance(1)
    assert last is not None  # there is an epoch
    curves = ComplexityCurves(
        student=setting.entry.title,
        seed=setting.seed,
        split=recipe.split,
        examples=size,
        form=form,
        coding=CODING_WORDS[coding],
        temperature=recipe.temperature,
        random_draws=recipe.random_draws,
        points=tuple(points),
        spectra=tuple(spectra),
        seconds=time.perf_counter() - began,
        notes=(*notes, *last.notes),
        temperatures=tuple(last.temperatures),
        profile=last.profile,
        teacher_kernel=last.teacher_kernel,
    )
    return Measured(curves)


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
    files = context.run.student(position, entry.title, seed)
    setting = _Setting.of(context, recipe, entry, seed, files)
    network = context.build(context.recipe.student.model, 0).to(context.accelerator.device).eval()
    return setting.kernel(network).plan(setting.inputs), len(setting.epochs)


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


def _temperatures(
    context: StudyContext,
    teacher: StudyTeacher,
    recipe: ComplexityRecipe,
    examples: Examples,
    epoch: int,
    meter: ComplexityMeter,
    outputs: np.ndarray,
) -> list[TemperaturePoint]:
    """Measure the final teacher at every temperature that the recipe asks for."""
    coding, predictions = coding_of(context.outputs), prediction_targets(outputs)
    logits = _final_logits(context, teacher, recipe, examples)
    return [
        TemperaturePoint(
            epoch, each, meter.measure(teacher_targets(logits, each, coding), predictions)
        )
        for each in recipe.temperatures
    ]


def _final_logits(
    context: StudyContext, teacher: StudyTeacher, recipe: ComplexityRecipe, examples: Examples
) -> np.ndarray:
    where = _positions(getattr(context.splits, recipe.split), examples)
    return teacher.logits(recipe.split)[where]


def _target_sets(
    context: StudyContext,
    teacher: StudyTeacher,
    recipe: ComplexityRecipe,
    setting: _Setting,
    epoch: int,
) -> list[_TargetSet]:
    """Return the measurements at an epoch of the student, except random labels."""
    examples = setting.examples
    coding, classes = coding_of(context.outputs), len(examples.classes)
    temperature = recipe.temperature
    labels = label_targets(examples.labels.numpy(), classes, coding)
    final = teacher_targets(_final_logits(context, teacher, recipe, examples), temperature, coding)
    found = [
        _TargetSet("labels", labels, 1.0, None),
        _TargetSet("final teacher", final, temperature, teacher.epochs),
    ]
    if teacher.epochs is not None:
        followed = teacher.epoch_followed(epoch, context.recipe.training_of(setting.entry).epochs)
        device = context.accelerator.device
        normalisation = context.normalisation_of("teacher")
        online = predict(teacher.at(followed), examples, normalisation, device=device)
        targets = teacher_targets(online, temperature, coding)
        found.append(_TargetSet("online teacher", targets, temperature, followed))
    return found


def _points(
    context: StudyContext,
    recipe: ComplexityRecipe,
    examples: Examples,
    epoch: int,
    meter: ComplexityMeter,
    outputs: np.ndarray,
    sets: list[_TargetSet],
) -> list[ComplexityPoint]:
    coding, classes = coding_of(context.outputs), len(examples.classes)
    predictions = prediction_targets(outputs)
    by_cross_entropy = context.recipe.loss == "cross-entropy"

    def point(each: _TargetSet) -> ComplexityPoint:
        gradient = None
        if by_cross_entropy:
            gradient = gradient_residual(meter, each.values, outputs, each.temperature)
        value = meter.measure(each.values, predictions)
        return ComplexityPoint(epoch, each.name, value, gradient, each.teacher_epoch)

    generator = np.random.default_rng(recipe.seed)
    draws = [
        random_label_targets(len(examples), classes, generator, coding)
        for _ in range(recipe.random_draws)
    ]
    random = _mean([point(_TargetSet("random labels", draw, 1.0, None)) for draw in draws])
    labels, *teachers = [point(each) for each in sets]
    return [labels, random, *teachers]


def _positions(whole: Examples, part: Examples) -> np.ndarray:
    return np.searchsorted(whole.indices.numpy(), part.indices.numpy())


def _mean(points: list[ComplexityPoint]) -> ComplexityPoint:
    """Return the point whose values are means over draws (the worst of the residuals)."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    values = [point.value for point in points]
    first = values[0]
    averaged = ComplexityValue(
        plain=float(np.mean([value.plain for value in values])),
        adjusted=mean([value.adjusted for value in values]),
        adjusted_star=float(np.mean([value.adjusted_star for value in values])),
        normalised=mean([value.normalised for value in values]),
        normalised_star=float(np.mean([value.normalised_star for value in values])),
        target_size=float(np.mean([value.target_size for value in values])),
        ridge=first.ridge,
        residual=max(value.residual for value in values),
    )
    return replace(points[0], value=averaged, gradient=mean([point.gradient for point in points]))
