"""What a study measures once its networks are done: complexity curves and deviations."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from distillens.data import Batches, Examples
from distillens.data.prepare import subset
from distillens.kernel import oracle_gram
from distillens.linalg import eigen_summary
from distillens.measures import (
    CODING_WORDS,
    ComplexityMeter,
    coding_of,
    deviation,
    factorise_gram,
    gradient_residual,
    label_targets,
    prediction_targets,
    random_label_targets,
    teacher_targets,
)
from distillens.results import (
    ComplexityCurves,
    ComplexityPoint,
    ComplexityValue,
    Deviation,
    KernelForm,
    Spectrum,
)
from distillens.study.networks import Scene, network_logits, write_arrays
from distillens.study.recipe import ComplexityRecipe
from distillens.study.teacher import StudyTeacher
from distillens.training import predict


def complexity_epochs(asked: tuple[int, ...] | None, last: int) -> list[int]:
    """Return the epochs at which complexity is measured: as asked, or denser at the start."""
    if asked is not None:
        return sorted(set(asked))
    shares = (0, 0.01, 0.03, 0.08, 0.2, 0.4, 0.65, 1)
    return sorted({0, 1, *(round(share * last) for share in shares)} & set(range(last + 1)))


def measure_complexity(
    scene: Scene, teacher: StudyTeacher, recipe: ComplexityRecipe
) -> ComplexityCurves:
    """Measure four target sets against the one-hot student's kernel over its training."""
    began = time.perf_counter()
    place, entry = next(
        (place, entry)
        for place, entry in enumerate(scene.recipe.supervisions)
        if entry.kind == "one-hot"
    )
    seed = scene.recipe.seeds_of(entry)[0]
    files = scene.run.student(place, entry.title, seed)
    whole: Examples = getattr(scene.splits, recipe.split)
    size = min(recipe.examples, len(whole))
    examples = subset(whole, size, recipe.seed, "complexity.examples")
    inputs = Batches(examples, size, normalisation=scene.normalisation, seed=None)
    batch = next(inputs.epoch(0))
    student = scene.recipe.student
    epochs = complexity_epochs(recipe.epochs, student.training.epochs)
    points: list[ComplexityPoint] = []
    spectra: list[Spectrum] = []
    notes: list[str] = []
    coding = coding_of(scene.outputs)
    form: KernelForm = "binary" if coding == "binary" else "class-diagonal"
    with scene.progress(f"complexity ({size} {recipe.split} examples)", len(epochs)) as advance:
        for epoch in epochs:
            network = scene.load(student.model, files, epoch).cpu()
            # A class at a time: all at once would hold C Jacobians of every example.
            grams = [oracle_gram(network, batch.inputs, outputs=c) for c in range(scene.outputs)]
            gram = torch.stack(grams).numpy() if form == "class-diagonal" else grams[0].numpy()
            summary = eigen_summary(gram)
            spectra.append(
                Spectrum(epoch, summary.trace, summary.smallest, summary.largest, summary.condition)
            )
            mean_diagonal = summary.trace / gram[..., 0].size
            meter = factorise_gram(gram, form, recipe.ridge * mean_diagonal)
            if meter.singular:
                notes.append(f"epoch {epoch}: {meter.singular}")
            with torch.no_grad():
                outputs = network.double()(batch.inputs.double()).numpy()
            points += _points(scene, teacher, recipe, examples, epoch, meter, outputs)
            advance(1)
    return ComplexityCurves(
        student=entry.title,
        seed=seed,
        split=recipe.split,
        examples=size,
        form=form,
        coding=CODING_WORDS[coding],
        temperature=recipe.temperature,
        random_draws=recipe.random_draws,
        points=tuple(points),
        spectra=tuple(spectra),
        seconds=time.perf_counter() - began,
        notes=tuple(notes),
    )


def _points(
    scene: Scene,
    teacher: StudyTeacher,
    recipe: ComplexityRecipe,
    examples: Examples,
    epoch: int,
    meter: ComplexityMeter,
    outputs: np.ndarray,
) -> list[ComplexityPoint]:
    coding, classes = coding_of(scene.outputs), len(examples.classes)
    predictions = prediction_targets(outputs)
    by_cross_entropy = scene.recipe.loss == "cross-entropy"

    def point(
        name: str, targets: np.ndarray, temperature: float, teacher_epoch: int | None
    ) -> ComplexityPoint:
        gradient = None
        if by_cross_entropy:
            gradient = gradient_residual(meter, targets, outputs, temperature)
        value = meter.measure(targets, predictions)
        return ComplexityPoint(epoch, name, value, gradient, teacher_epoch)

    labels = label_targets(examples.labels.numpy(), classes, coding)
    found = [point("labels", labels, 1.0, None)]
    generator = np.random.default_rng(recipe.seed)
    draws = [
        point(
            "random labels",
            random_label_targets(len(examples), classes, generator, coding),
            1.0,
            None,
        )
        for _ in range(recipe.random_draws)
    ]
    found.append(_mean(draws))
    where = _positions(getattr(scene.splits, recipe.split), examples)
    final = teacher.logits(recipe.split)[where]
    temperature = recipe.temperature
    found.append(
        point(
            "final teacher",
            teacher_targets(final, temperature, coding),
            temperature,
            teacher.epochs,
        )
    )
    if teacher.epochs is not None:
        followed = teacher.epoch_followed(epoch, scene.recipe.student.training.epochs)
        device = scene.accelerator.device
        online = predict(teacher.at(followed), examples, scene.normalisation, device=device)
        targets = teacher_targets(online, temperature, coding)
        found.append(point("online teacher", targets, temperature, followed))
    return found


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
