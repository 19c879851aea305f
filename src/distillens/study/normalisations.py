"""Normalisations of the inputs of the teacher and of the student, and their origins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillens.data import Examples, Normalisation
from distillens.data.normalisation import (
    fits_unit_interval,
    normalisation_for,
)
from distillens.data.recipe import MeanAndStd
from distillens.export.inputs import Normalised
from distillens.models import ModelRecipe, build_model
from distillens.models.external import pretrained_normalisation
from distillens.runs.folder import find_run
from distillens.runs.layout import Run
from distillens.runs.read import read_data
from distillens.study.recipe import Recipe

Role = Literal["teacher", "student"]
"""Role whose inputs are normalised."""
Numbers = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""


@dataclass(frozen=True)
class InputScale:
    """A normalisation, and where it comes from.

    ``normalisation`` is None where inputs are left alone: images in [0, 1], or text.
    """

    normalisation: Normalisation | None
    origin: str
    channels: int | None
    """None for text."""

    @property
    def numbers(self) -> Numbers | None:
        """Mean and standard deviation of each channel; None for text."""
        if self.channels is None:
            return None
        if self.normalisation is None:
            return (0.0,) * self.channels, (1.0,) * self.channels
        scale = (self.normalisation.mean, self.normalisation.deviation)
        mean, deviation = (tuple(each.flatten().tolist()) for each in scale)
        return mean, deviation

    @property
    def record(self) -> dict[str, Any] | None:
        """Form stored in a run; None for text."""
        if self.numbers is None:
            return None
        return {"mean": self.numbers[0], "deviation": self.numbers[1], "from": self.origin}

    @property
    def words(self) -> str:
        """Description, with the numbers if they are few."""
        if self.numbers is None or self.normalisation is None or (self.channels or 0) > 4:
            return self.origin
        mean, deviation = (", ".join(f"{x:.4g}" for x in each) for each in self.numbers)
        return f"{self.origin}: mean {mean}, standard deviation {deviation}"


def choose_scales(
    recipe: Recipe, run: Run, examples: Examples, *, trust_code: bool
) -> dict[str, InputScale]:
    """Return the scales of "data", "teacher" and "student".

    A network's own ``normalisation`` comes first, then that of the data. Where the recipe names
    neither, networks with pretrained weights of another library get the normalisation of that
    library's preprocessing, and all others one measured on the training examples. The teacher of
    another run keeps what it was trained with.

    Raises
    ------
    DataError
        As `distillens.data.normalisation.normalisation_for`.
    ModelError, RecipeError
        A pretrained network cannot be built.
    """
    channels = None if examples.vocabularies else examples.input_shape[0]
    data = _asked(recipe.data.normalisation or "data", examples, "data.normalisation", channels)
    kept = read_data(run) if run.data.is_file() and run.has_trained else None

    def of_network(
        role: Role, asked: str | MeanAndStd | None, model: ModelRecipe | None
    ) -> InputScale:
        if asked is not None:
            return _asked(asked, examples, f"{role}.normalisation", channels)
        if recipe.data.normalisation is not None or model is None or channels is None:
            return data
        if kept is not None:
            return _recorded(kept, role, examples) or data
        return _pretrained(model, examples, trust_code) or data

    teacher = recipe.teacher
    student = of_network("student", recipe.student.normalisation, recipe.student.model)
    if teacher.run is not None:
        # Earlier versions normalised by the training examples, which are the same here.
        theirs = read_data(find_run(Path(teacher.run)))
        recorded = None if channels is None else _recorded(theirs, "teacher", examples)
        of_teacher = recorded or _asked("data", examples, "data.normalisation", channels)
    elif teacher.logits is not None:
        # A teacher given as logits has no inputs.
        of_teacher = student
    else:
        of_teacher = of_network("teacher", teacher.normalisation, teacher.model)
    return {"data": data, "student": student, "teacher": of_teacher}


def described(scales: Mapping[str, InputScale]) -> str:
    """Return a description of the normalisation of the teacher's and the student's inputs."""
    teacher, student = scales["teacher"].words, scales["student"].words
    return teacher if teacher == student else f"teacher: {teacher}; student: {student}"


def between(
    inputs: Normalisation | None, wanted: Normalisation | None, network: nn.Module
) -> nn.Module:
    """Return a network that takes inputs with one normalisation and converts them to its own."""
    mine, theirs = _scale(inputs), _scale(wanted)
    pairs = zip(mine, theirs, strict=True)
    if all(a.numel() == b.numel() and torch.equal(a, b) for a, b in pairs):
        return network
    mean, deviation = (theirs[0] - mine[0]) / mine[1], theirs[1] / mine[1]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return Normalised(network, mean.float(), deviation.float()).to(device).train(network.training)


def _scale(of: Normalisation | None) -> tuple[Tensor, Tensor]:
    if of is None:
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return of.mean.double(), of.deviation.double()


def _asked(
    asked: str | MeanAndStd, examples: Examples, key: str, channels: int | None
) -> InputScale:
    found = normalisation_for(asked, examples, key)
    words = {"data": "measured on the training examples", "none": "none: inputs as they are"}
    origin = words.get(asked, asked) if isinstance(asked, str) else "given in the recipe"
    return InputScale(found, "tokens of text" if channels is None else origin, channels)


def _recorded(data: Mapping[str, Any], role: Role, examples: Examples) -> InputScale | None:
    """Return the normalisation of a network in a run's ``data.json``; None in those of version 0.1."""
    record = data.get(f"{role}_normalisation")
    if record is None:
        return None
    found = Normalisation.of_channels(record["mean"], record["deviation"], examples.input_shape)
    untouched = not found.mean.any() and bool((found.deviation == 1).all())
    channels = examples.input_shape[0]
    return InputScale(None if untouched else found, record["from"], channels)


def _pretrained(model: ModelRecipe, examples: Examples, trust_code: bool) -> InputScale | None:
    shape, classes = examples.input_shape, len(examples.classes)
    outputs = 1 if classes == 2 else classes

    def build() -> nn.Module:
        return build_model(model, shape, outputs, seed=0, trust_code=trust_code)

    found = pretrained_normalisation(model.name, model.arguments, build)
    if found is None:
        return None
    mean, std, origin = found
    channels = shape[0]
    if not fits_unit_interval(examples) or (len(mean) != channels and channels != 1):
        origin = f"measured on the training examples, whose inputs do not fit the {origin}"
        return InputScale(Normalisation.of(examples), origin, channels)
    if len(mean) != channels:
        # Such libraries add up the filters of the channels, so their middle is nearest.
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        origin = f"{origin}, averaged over channels"
    return InputScale(Normalisation.of_channels(mean, std, shape), origin, channels)
