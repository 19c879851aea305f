"""What shipped networks take: numbers as the data have them, or tokens.

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
    """What the inputs of a shipped network are."""

    shape: tuple[int, ...]
    """Of one input."""
    pictures: bool
    """The data are bytes."""
    vocabularies: tuple[int, ...] = ()
    """How many tokens each tokenizer of the run has; none for numbers."""
    tokenizers: tuple[int, ...] = ()
    """Those whose tokens are the inputs, by number."""
    alone: bool = False
    """The inputs are tokens of one tokenizer, (N, T), not (N, K, T)."""

    @classmethod
    def of(cls, model: ModelRecipe, data: Mapping[str, Any]) -> ExportInputs:
        """Return what a model takes that was trained on data, as a run's ``data.json`` has them."""
        shape, vocabularies = tuple(data["input_shape"]), tuple(data.get("vocabularies") or ())
        if not vocabularies:
            return cls(shape, data["input_type"] == "uint8")
        if reads_one_tokenizer(model):
            # As a number, however the recipe wrote it: builders read "1" as 1 too.
            mine = (int(model.arguments.get("tokenizer", 0)),)
            return cls(shape[-1:], False, vocabularies, mine, alone=True)
        return cls(shape, False, vocabularies, tuple(range(len(vocabularies))), len(shape) == 1)

    @property
    def described(self) -> str:
        """Type and unit, in words."""
        if self.vocabularies:
            rows = "" if self.alone else ", a row of each tokenizer"
            return f"int64 tokens{rows}, {PADDING} behind the last"
        return (
            "float32 in [0, 1]: bytes divided by 255" if self.pictures else "float32 as in the data"
        )

    @property
    def files(self) -> tuple[str, ...]:
        """Names for the tokenizers beside the network."""
        if len(self.tokenizers) == 1:
            return ("tokenizer.json",)
        return tuple(f"tokenizer-{place}.json" for place in self.tokenizers)

    def taken(self, inputs: Tensor) -> Tensor:
        """Return inputs of the data as the shipped network takes them."""
        if self.vocabularies:
            return tokens_of(inputs, self.tokenizers[0]) if self.alone else inputs
        return inputs.float() / 255 if self.pictures else inputs

    def drawn(self, count: int, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Return random inputs of the range that the network was made for."""
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
