"""The description of an exported network: the ``model.json`` of its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distillens.results.base import Result


@dataclass(frozen=True)
class ExportedFile(Result):
    """A file of an exported network, and the result of its check.

    ``difference`` is the largest difference of an output from the network's that was exported, as a
    share of the largest output (of 1 where that is smaller); ``stored_difference`` the same from the
    logits that the run stored, None if the run's data were not available.
    """

    format: str
    name: str
    size: int
    digest: str
    difference: float
    stored_difference: float | None


@dataclass(frozen=True)
class Export(Result):
    """Description of an exported network and its use: the ``model.json`` of its folder.

    ``input_shape`` is that of one input. Programs take float32 inputs in the unit that ``inputs``
    names and normalise them; the network whose weights the safetensors file holds takes
    ``(inputs - mean) / deviation``, channel by channel. For a network of text, all take int64 tokens
    of the ``tokenizers`` in the same folder.
    """

    schema_version: int
    study: str
    student: str
    seed: int
    epoch: int
    chosen_by: str
    model: dict[str, Any]
    """The model's part of the recipe."""
    input_shape: tuple[int, ...]
    inputs: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: tuple[str, ...]
    outputs: str
    weights_digest: str
    """SHA-256 of the run's checkpoint."""
    tolerance: float
    stored_tolerance: float
    files: tuple[ExportedFile, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    vocabularies: tuple[int, ...] = ()
    """For text: vocabulary size of each tokenizer of the run."""
    tokenizers: tuple[str, ...] = ()
    """For text: files of the tokenizers that the inputs need, in the order of their rows."""
    tokenizer_digests: tuple[str, ...] = ()
    """SHA-256 of each tokenizer file."""
