"""How a recipe asks for inputs to be normalised, and what that means for given examples."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    model_validator,
)

from distillens.data.batches import Normalisation
from distillens.data.examples import Examples
from distillens.errors import DataError, nearest

PRESETS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Mean and standard deviation of each channel of RGB images with values in [0, 1]."""
NAMES = ("data", "none", *PRESETS)


class MeanAndStd(BaseModel):
    """A mean and a standard deviation for each channel of images with values in [0, 1].

    For floating-point inputs the unit is that of the data; vectors have one number for each feature.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[FiniteFloat, ...] = Field(min_length=1)
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _same_length(self) -> MeanAndStd:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers, std has {len(self.std)}")
        return self


def _known(value: Any) -> Any:
    if isinstance(value, str) and value not in NAMES:
        raise ValueError(
            f"no normalisation is called {value!r}{nearest(value, NAMES)} (or give mean and std)"
        )
    if not isinstance(value, (str, dict, MeanAndStd)):
        raise ValueError(f"give one of {', '.join(NAMES)}, or mean and std; got {value!r:.60}")
    return value


def _kind(value: Any) -> str:
    return "preset" if isinstance(value, str) else "numbers"


AnyNormalisation = Annotated[
    Annotated[Literal["data", "none", "imagenet", "cifar10"], Tag("preset")]
    | Annotated[MeanAndStd, Tag("numbers")],
    Discriminator(_kind),
    BeforeValidator(_known),
]
"""The value of a ``normalisation`` key.

``data`` is measured on the training examples, ``none`` leaves images in [0, 1], ``imagenet`` and
``cifar10`` are `PRESETS`, and a `MeanAndStd` gives the numbers.
"""


def normalisation_for(
    asked: str | MeanAndStd, examples: Examples, key: str
) -> Normalisation | None:
    """Return the normalisation that a recipe asks for; None leaves images in [0, 1] and text alone.

    Parameters
    ----------
    asked
        The value of the key.
    examples
        The training examples.
    key
        The key, as errors name it.

    Raises
    ------
    DataError
        The inputs have no channels like those of the normalisation, or another unit.
    """
    if examples.vocabularies:
        if asked not in ("data", "none"):
            raise DataError(f"{key} is for numbers; the inputs are tokens of text, so leave it out")
        return None
    if asked == "none":
        return None
    if asked == "data":
        return Normalisation.of(examples)
    preset = isinstance(asked, str)
    mean, std = PRESETS[asked] if preset else (asked.mean, asked.std)
    channels, shape = examples.input_shape[0], examples.input_shape
    if preset and len(shape) != 3:
        raise DataError(f"{key} {asked!r} is for RGB images; the inputs have shape {shape}")
    if len(mean) != channels:
        what = "channels" if len(shape) == 3 else "features"
        named = f"{asked!r} has 3 channels" if preset else f"has {len(mean)} numbers"
        grey = "; for grey images give {mean: [0.449], std: [0.226]}" if asked == "imagenet" else ""
        raise DataError(f"{key} {named}, the inputs have {channels} {what}{grey}")
    if len(shape) == 3 and (preset or max(mean) <= 1) and not _in_unit_interval(examples, preset):
        raise DataError(
            f"{key} is for images with values in [0, 1]; these range from "
            f"{examples.inputs.min():.4g} to {examples.inputs.max():.4g}; store them as bytes "
            "(uint8), or give mean and std in their unit"
        )
    return as_normalisation(mean, std, shape)


def as_normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], input_shape: tuple[int, ...]
) -> Normalisation:
    """Return the normalisation of inputs of a shape with a mean and a deviation for each channel."""
    shape = (1, -1, *[1] * (len(input_shape) - 1))
    return Normalisation(torch.tensor(mean).reshape(shape), torch.tensor(std).reshape(shape))


def _in_unit_interval(examples: Examples, strictly: bool) -> bool:
    """Say whether images are bytes or floats in [0, 1]; else only whether they are not in [0, 255]."""
    if examples.inputs.dtype == torch.uint8:
        return True
    low, high = float(examples.inputs.min()), float(examples.inputs.max())
    if strictly:
        return low >= 0 and high <= 1
    return low < 0 or high <= 2


def fits_unit_interval(examples: Examples) -> bool:
    """Say whether inputs are images with values in [0, 1], or bytes."""
    return len(examples.input_shape) == 3 and _in_unit_interval(examples, strictly=True)
