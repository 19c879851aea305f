"""A network at its checkpoints: the inputs of a layer, weights and predictions.

Shapes: E checkpoints, K eigenvectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from distillens.analyses.eigenspace.layers import LayerInputs, layer_inputs, weight_matrix
from distillens.data import Examples, Normalisation
from distillens.errors import RunError
from distillens.measures import prediction_targets, teacher_targets
from distillens.measures.eigenspace import Directions, input_directions, project_weights
from distillens.models import ModelRecipe, load_state, load_weights
from distillens.results.eigenspace import Projected
from distillens.runs.layout import NetworkFiles
from distillens.study.context import StudyContext
from distillens.study.normalisations import Role
from distillens.training import predict


@dataclass(eq=False)
class NetworkCourse:
    """A network with its checkpoints, the inputs of its layer and its trajectory."""

    context: StudyContext
    files: NetworkFiles
    model: ModelRecipe
    kept: tuple[int, ...]
    """The E epochs whose weights exist, in order."""
    layer: str
    examples: Examples
    count: int
    digest: str
    squared: bool
    """Whether it was trained with squared error, and gives probabilities and no logits."""
    role: Role = "student"
    inputs: LayerInputs = field(init=False)
    moved: bool = field(init=False)
    """Whether training changes the inputs of the layer."""

    def __post_init__(self) -> None:
        first, last = self._inputs(0), self._inputs(self.epochs)
        self.inputs, self.moved = last, not alike(first.rows_MD, last.rows_MD)

    def _inputs(self, epoch: int) -> LayerInputs:
        network, device = self.network(epoch), self.context.accelerator.device
        return layer_inputs(network, self.layer, self.examples, self.normalisation, device)

    @property
    def epochs(self) -> int:
        """The last epoch."""
        return self.kept[-1]

    @property
    def normalisation(self) -> Normalisation | None:
        """Normalisation of its inputs."""
        return self.context.normalisation_of(self.role)

    @cached_property
    def _built(self) -> nn.Module:
        return (
            self.context.build(self.model, 0, self.role).to(self.context.accelerator.device).eval()
        )

    def network(self, epoch: int) -> nn.Module:
        """Return the network after an epoch; the next call reuses the same module."""
        load_weights(self.files.kept_weights(epoch), self._built)
        return self._built

    def directions(self) -> Directions:
        """Return the eigenvectors of its layer's last inputs."""
        return input_directions(self.inputs.rows_MD, self.count)

    def course(self, directions: Directions) -> dict[Projected, NDArray[np.float64]]:
        """Return the components of its weights at every checkpoint, (E, K)."""
        key = f"{self.layer}.weight"
        states = (load_state(self.files.kept_weights(epoch)) for epoch in self.kept)
        weights, change = project_weights(
            (weight_matrix(state[key]) for state in states), directions.vectors
        )
        return {"weights": weights, "change": change}

    @cached_property
    def predictions(self) -> NDArray[np.float64]:
        """Predictions at every checkpoint, in the coding of its targets."""
        code = prediction_targets if self.squared else teacher_targets
        device = self.context.accelerator.device
        return np.stack(
            [
                code(predict(self.network(e), self.examples, self.normalisation, device=device))
                for e in self.kept
            ]
        )


def check_checkpoints(files: NetworkFiles, kept: Sequence[int]) -> None:
    """Raise RunError where a network's folder lacks the weights of an epoch that is kept."""
    missing = sorted(set(kept) - set(files.epochs()))
    if missing:
        raise RunError(
            f"{files.folder} lacks {len(missing)} checkpoint(s), first "
            f"{files.weights(missing[0]).name}; run its recipe again in another folder"
        )


def alike(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    """Whether two arrays are the same inputs, but for rounding."""
    return first.shape == second.shape and np.allclose(first, second, rtol=1e-4, atol=1e-5)
