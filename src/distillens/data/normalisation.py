"""The normalisation of inputs, and the one that a recipe asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillens.data.examples import Examples
from distillens.data.recipe import PRESETS, MeanAndStd
from distillens.errors import DataError


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, of inputs in [0, 1] for uint8 and raw for floats."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, examples: Examples) -> Normalisation:
        """Measure on examples (those of training). Constant channels keep a deviation of 1."""
        inputs = examples.inputs
        sums, squares, count = 0.0, 0.0, 0
        axes = (0, 2, 3) if inputs.ndim == 4 else (0,)
        for start in range(0, len(inputs), 4096):
            chunk = as_float(inputs[start : start + 4096]).double()
            sums = sums + chunk.sum(axes)
            squares = squares + (chunk * chunk).sum(axes)
            count += chunk.numel() // chunk.shape[1]
        mean = torch.as_tensor(sums) / count
        variance = (torch.as_tensor(squares) / count - mean**2).clamp_min(0)
        deviation = torch.where(variance > 1e-12, variance.sqrt(), torch.ones_like(variance))
        return cls.of_channels(mean, deviation, examples.input_shape)

    @classmethod
    def of_channels(cls, mean: Any, deviation: Any, input_shape: tuple[int, ...]) -> Normalisation:
        """Return the normalisation of inputs of a shape with these numbers for each channel."""
        shape = (1, -1, *[1] * (len(input_shape) - 1))
        found = [torch.as_tensor(each, dtype=torch.float32) for each in (mean, deviation)]
        return cls(*(each.reshape(shape) for each in found))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return normalised float32 inputs of the same shape."""
        mean, deviation, shift, scale = self._on(inputs.device)
        if inputs.dtype == torch.uint8:
            # One multiply-add on the bytes instead of a division, a subtraction and a division.
            return torch.addcmul(shift, inputs.float(), scale)
        return (inputs - mean) / deviation

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Copied to a device once: in every step the host would wait for the copy.
        copies = self.__dict__.setdefault("_copies", {})
        if device not in copies:
            shift, scale = -self.mean / self.deviation, 1 / (255 * self.deviation)
            constants = (self.mean, self.deviation, shift, scale)
            copies[device] = tuple(each.to(device) for each in constants)
        return copies[device]


def as_float(inputs: Tensor) -> Tensor:
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


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
    return Normalisation.of_channels(mean, std, shape)


def _in_unit_interval(examples: Examples, strictly: bool) -> bool:
    """Return whether images are bytes or floats in [0, 1]; if not strict, whether not in 0 to 255."""
    if examples.inputs.dtype == torch.uint8:
        return True
    low, high = float(examples.inputs.min()), float(examples.inputs.max())
    if strictly:
        return low >= 0 and high <= 1
    return low < 0 or high <= 2


def fits_unit_interval(examples: Examples) -> bool:
    """Return whether inputs are images with values in [0, 1], or bytes."""
    return len(examples.input_shape) == 3 and _in_unit_interval(examples, strictly=True)
