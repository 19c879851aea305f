"""A layer of a network by name: its inputs, its weight as a matrix, and both over a training.

Shapes: E checkpoints, K eigenvectors, N examples, M rows (N times the positions of a layer that has
them), D values per row, H units, F values per example.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillens.data import Batches, Examples, Normalisation
from distillens.errors import MeasureError, ModelError, nearest
from distillens.forward.device_errors import device_errors
from distillens.measures import prediction_targets, teacher_targets
from distillens.measures.eigenspace import Directions, input_directions, project_weights
from distillens.models import ModelRecipe, load_state
from distillens.results.eigenspace import Projected
from distillens.runs.layout import NetworkFiles
from distillens.study.context import StudyContext
from distillens.study.normalisations import Role
from distillens.training import predict

MOST_VALUES = 300_000_000
"""Largest number of values of a layer's inputs in memory, 1.2 GB in float32."""

_BATCH = 256


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """Inputs of a layer."""

    rows_MD: NDArray[np.float32]
    """Inputs that its weight matrix multiplies: for a convolution, the patches."""
    examples_NF: NDArray[np.float32]
    """The inputs with one row per example; those of a convolution are flattened images."""


def find_layer(network: nn.Module, name: str | None, who: str) -> str:
    """Return the name of a layer whose weights can be projected; by default the first one trained.

    Raises
    ------
    ModelError
        There is no such layer, or its weights are not a matrix that multiplies its inputs.
    """
    known = {key: module for key, module in network.named_modules() if _has_matrix(module)}
    if name is None:
        for key in known:
            if all(p.requires_grad for p in known[key].parameters(recurse=False)):
                return key
        raise ModelError(f"the {who} has no Linear or Conv2d layer, so no weights can be projected")
    if name in known:
        return name
    modules = dict(network.named_modules())
    if name in modules:
        module = modules[name]
        shown = module if isinstance(module, nn.Conv2d) else type(module).__name__
        raise ModelError(
            f"layer {name!r} of the {who} is a {shown}; weights of a Linear or "
            "of a Conv2d with one group and zero padding are projected"
        )
    raise ModelError(f"the {who} has no layer {name!r}{nearest(name, known)}")


def weight_matrix(weight: Tensor) -> NDArray[np.float64]:
    """Return a layer's weight as W, (D, H), a row for each of its inputs."""
    return weight.detach().double().reshape(len(weight), -1).T.cpu().numpy()


@torch.no_grad()
def layer_inputs(
    network: nn.Module,
    name: str,
    examples: Examples,
    normalisation: Normalisation | None,
    device: torch.device | str,
) -> LayerInputs:
    """Return the inputs of a layer for some examples, in evaluation mode without augmentation.

    Raises
    ------
    MeasureError
        The inputs have more values than `MOST_VALUES`.
    ModelError
        The layer is not called exactly once per batch with one row per example.
    """
    module = network.get_submodule(name)
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    rows: list[NDArray[np.float32]] = []
    flat: list[NDArray[np.float32]] = []
    try:
        batches = Batches(examples, _BATCH, normalisation=normalisation, seed=None, device=device)
        for batch in batches.epoch(0):
            seen.clear()
            with device_errors(f"the inputs of layer {name!r}", "give fewer examples"):
                network(batch.inputs)
            if len(seen) != 1 or len(seen[0]) != len(batch.inputs):
                raise ModelError(
                    f"layer {name!r} is called {len(seen)} times per batch, or with rows other "
                    "than the examples; name a layer that is called once for each example"
                )
            part = _rows(module, seen[0].float())
            if part.numel() / len(batch.inputs) * len(examples) > MOST_VALUES:
                most = int(MOST_VALUES * len(batch.inputs) // part.numel())
                raise MeasureError(
                    f"layer {name!r} takes {part.shape[0] // len(batch.inputs)} rows of "
                    f"{part.shape[1]} values per example; of {len(examples)} examples they do not "
                    f"fit into memory; give at most {most} examples"
                )
            rows.append(part.cpu().numpy())
            flat.append(seen[0].float().flatten(1).cpu().numpy())
    finally:
        handle.remove()
    return LayerInputs(np.concatenate(rows), np.concatenate(flat))


def _rows(module: nn.Module, given: Tensor) -> Tensor:
    if not isinstance(module, nn.Conv2d):
        return given.reshape(-1, given.shape[-1])
    # "same" padding was refused above, so padding is one number per side.
    assert not isinstance(module.padding, str)
    patches = nn.functional.unfold(
        given, module.kernel_size, module.dilation, module.padding, module.stride
    )
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _has_matrix(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return module.groups == 1 and zeros
    return isinstance(module, nn.Linear)


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
    role: Role
    inputs: LayerInputs = field(init=False)
    """Inputs of the layer at the last epoch."""
    moved: bool = field(init=False)
    """Whether training changes the inputs of the layer."""

    def __post_init__(self) -> None:
        self.normalisation = self.context.normalisation_of(self.role)
        self._device = self.context.accelerator.device
        first, self.inputs = (
            layer_inputs(
                self.network(epoch), self.layer, self.examples, self.normalisation, self._device
            )
            for epoch in (0, self.kept[-1])
        )
        self.moved = not alike(first.rows_MD, self.inputs.rows_MD)

    def network(self, epoch: int) -> nn.Module:
        """Return the network after an epoch."""
        return self.context.load(self.model, self.files, epoch, self.role)

    @cached_property
    def directions(self) -> Directions:
        """The eigenvectors of its layer's last inputs."""
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
        # Trained with squared error, a network gives probabilities and no logits. The run's teacher is
        # trained with cross-entropy, whatever the students' loss.
        squared = self.context.recipe.loss == "squared-error" and self.role == "student"
        code = prediction_targets if squared else teacher_targets
        outputs = (
            predict(self.network(epoch), self.examples, self.normalisation, device=self._device)
            for epoch in self.kept
        )
        return np.stack([code(each) for each in outputs])


def alike(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    """Whether two arrays are the same inputs, but for rounding."""
    return first.shape == second.shape and np.allclose(first, second, rtol=1e-4, atol=1e-5)
