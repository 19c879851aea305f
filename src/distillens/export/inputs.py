"""Inputs of exported networks: unnormalised numbers, or tokens.

Shapes: N examples, K tokenizers, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillens.data import PADDING
from distillens.forward.sequences import required_end
from distillens.models import ModelRecipe, reads_one_tokenizer, tokens_of


class Normalised(nn.Module):
    """A network that normalises its inputs itself: ``network((inputs - mean) / deviation)``."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network((inputs - self.mean) / self.deviation)


@dataclass(frozen=True)
class ExportInputs:
    """Description of the inputs of an exported network."""

    shape: tuple[int, ...]
    """Shape of one input."""
    pictures: bool
    """Whether the data are bytes."""
    vocabularies: tuple[int, ...] = ()
    """Vocabulary size of each tokenizer of the run; empty for numbers."""
    tokenizers: tuple[int, ...] = ()
    """Indices of the tokenizers whose tokens are the inputs."""
    alone: bool = False
    """Whether the inputs are tokens of one tokenizer, (N, T), instead of (N, K, T)."""

    @classmethod
    def of(cls, model: ModelRecipe, data: Mapping[str, Any]) -> ExportInputs:
        """Return the inputs of a model trained on the data that ``data.json`` describes."""
        shape, vocabularies = tuple(data["input_shape"]), tuple(data.get("vocabularies") or ())
        if not vocabularies:
            return cls(shape, data.get("input_type") == "uint8")
        if reads_one_tokenizer(model):
            # As a number, however the recipe wrote it: builders read "1" as 1 too.
            mine = (int(model.arguments.get("tokenizer", 0)),)
            return cls(shape[-1:], False, vocabularies, mine, alone=True)
        return cls(shape, False, vocabularies, tuple(range(len(vocabularies))), len(shape) == 1)

    @property
    def described(self) -> str:
        """Description of type and unit."""
        if self.vocabularies:
            rows = "" if self.alone else ", a row of each tokenizer"
            return f"int64 tokens{rows}, {PADDING} behind the last"
        return (
            "float32 in [0, 1]: bytes divided by 255" if self.pictures else "float32 as in the data"
        )

    @property
    def files(self) -> tuple[str, ...]:
        """File names of the tokenizers in the folder of the export."""
        if len(self.tokenizers) == 1:
            return ("tokenizer.json",)
        return tuple(f"tokenizer-{place}.json" for place in self.tokenizers)

    def taken(self, inputs: Tensor) -> Tensor:
        """Return inputs of the data in the form that the exported network takes."""
        if self.vocabularies:
            return tokens_of(inputs, self.tokenizers[0]) if self.alone else inputs
        return inputs.float() / 255 if self.pictures else inputs

    def random(self, count: int, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Return random inputs in the range of the data."""
        if isinstance(network, Normalised) and not self.pictures:
            noise = torch.randn(count, *self.shape, generator=generator)
            return network.mean + network.deviation * noise
        if not self.vocabularies:
            return torch.rand(count, *self.shape, generator=generator)
        T = self.shape[-1]
        lengths = torch.randint(1, T + 1, (count, 1), generator=generator)
        rows = [
            torch.randint(self.vocabularies[place], (count, T), generator=generator)
            for place in self.tokenizers
        ]
        if (end := required_end(network)) is not None:
            rows = [row.scatter(1, lengths - 1, end) for row in rows]
        rows = [row.masked_fill(torch.arange(T) >= lengths, PADDING) for row in rows]
        return rows[0] if self.alone else torch.stack(rows, dim=1)
