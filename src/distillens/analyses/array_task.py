"""Supervision complexity of a model and arrays that a user gives in files.

Shapes: N examples, C outputs of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from distillens.analyses.kernel_complexity import kernel_complexity
from distillens.data import PADDING
from distillens.errors import CheckpointError, DataError, MeasureError, RecipeError
from distillens.files.arrays import native
from distillens.files.yaml_values import load_yaml
from distillens.kernel import EmpiricalNTK, Plan
from distillens.kernel.tracing.directions import directions
from distillens.measures import coding_of, label_targets
from distillens.models import ModelRecipe, build_model, load_weights
from distillens.results.complexity import KernelComplexity
from distillens.runs.layout import other_epochs


@dataclass(frozen=True, eq=False)
class ArrayTask:
    """A model and arrays to measure: made by `read_task`."""

    network: nn.Module
    inputs: Tensor
    targets: Mapping[str, NDArray[np.float64]]
    outputs: int | tuple[int, int]
    labels: str | None = None
    """The one target set that was read from labels."""
    teacher: nn.Module | None = None

    def plan(self, max_memory: int | None = None) -> Plan:
        """Return the plan of the Gram."""
        kernel = EmpiricalNTK(
            self.network, outputs=self.outputs, dtype=torch.float64, max_memory=max_memory
        )
        return kernel.plan(self.inputs)

    def measure(self, **options: Any) -> KernelComplexity:
        """Measure every target set; for the options see `kernel_complexity`."""
        return kernel_complexity(
            self.network,
            self.inputs,
            self.targets,
            outputs=self.outputs,
            labels=self.labels,
            teacher=self.teacher,
            **options,
        )


def read_task(
    model: str,
    weights: Path,
    inputs: Path,
    targets: Mapping[str, Path],
    *,
    classes: int,
    outputs: int | tuple[int, int],
    vocabularies: tuple[int, ...] = (),
    teacher: str | None = None,
    teacher_weights: Path | None = None,
    trust_code: bool = False,
) -> ArrayTask:
    """Read a model and arrays.

    Parameters
    ----------
    model
        As in a recipe: a name, or YAML such as ``{name: lenet5, width: 8}``.
    weights
        A safetensors file or a torch state dict.
    inputs
        An npy file, (N, …), normalised as the model expects. For a model of text: integer tokens
        (N, T), or (N, K, T) for K tokenizers, padded with −1.
    targets
        npy files by name. Integers (N,) are labels and are coded as `label_targets` codes them;
        numbers (N,) are targets of the output that is measured; numbers (N, C) are targets of every
        output, of which the measured one (or the difference) is taken.
    classes
        C, the model's outputs.
    outputs
        The output that is measured, or two for their difference.
    vocabularies
        For a model of text: vocabulary size of each tokenizer.
    teacher, teacher_weights
        A second network, like the model, whose kernel is compared with the model's.

    Raises
    ------
    DistillensError
        A subclass of it: a file is missing or damaged, or does not fit the others.
    """
    x = _tokens(inputs, vocabularies) if vocabularies else _numbers(inputs)

    def read(described: str, stored: Path) -> nn.Module:
        network = build_model(
            _model_recipe(described),
            tuple(x.shape[1:]),
            classes,
            seed=0,
            vocabularies=vocabularies,
            trust_code=trust_code,
        )
        if not stored.is_file():
            raise CheckpointError(f"no checkpoint {stored}{other_epochs(stored)}")
        load_weights(stored, network)
        return network.eval()

    network = read(model, weights)
    other = None
    if teacher is not None and teacher_weights is not None:
        other = read(teacher, teacher_weights)
    elif teacher is not None or teacher_weights is not None:
        raise RecipeError("a teacher needs both its model and its weights")
    # An output that the model does not have is refused before a column is selected.
    directions(outputs, classes, torch.float64, torch.device("cpu"))
    arrays = {name: _array(path) for name, path in targets.items()}
    coded = {
        name: _targets(values, targets[name], len(x), classes, outputs)
        for name, values in arrays.items()
    }
    integers = [name for name, values in arrays.items() if _are_labels(values)]
    labels = integers[0] if len(integers) == 1 else None
    return ArrayTask(network, x, coded, outputs, labels, other)


def _numbers(path: Path) -> Tensor:
    found = _array(path)
    if found.ndim < 2 or len(found) == 0 or not np.issubdtype(found.dtype, np.floating):
        tokens = ", or the size of the vocabulary for tokens" if _whole(found) else ""
        raise DataError(
            f"{path} has shape {found.shape} and type {found.dtype}; give floating-point inputs "
            f"(N, ...) as the model takes them{tokens}"
        )
    return torch.as_tensor(found)


def _tokens(path: Path, vocabularies: tuple[int, ...]) -> Tensor:
    """Read tokens, with one row per tokenizer if there are several."""
    if min(vocabularies) < 1:
        raise DataError(f"a vocabulary has at least one token, got {min(vocabularies)}")
    found = _array(path)
    K = len(vocabularies)
    shape_fits = found.ndim == 2 if K == 1 else found.ndim == 3 and found.shape[1] == K
    if not shape_fits or found.size == 0 or not _whole(found):
        wanted = "(N, T)" if K == 1 else f"(N, {K}, T)"
        raise DataError(
            f"{path} has shape {found.shape} and type {found.dtype}; tokens are integers {wanted}, "
            "padded with -1"
        )
    found = found.astype(np.int64)
    for rows_NT, size in zip(
        found.reshape(len(found), K, -1).swapaxes(0, 1), vocabularies, strict=True
    ):
        if rows_NT.min() < -1 or rows_NT.max() >= size:
            raise DataError(
                f"{path} has tokens from {rows_NT.min()} to {rows_NT.max()}; tokens of a vocabulary of "
                f"{size} go from 0 to {size - 1}, and -1 pads"
            )
        padded_NT = rows_NT == PADDING
        # Padding is only allowed at the end of a row, and never fills it.
        wrong_N = padded_NT[:, 0] | (padded_NT[:, :-1] & ~padded_NT[:, 1:]).any(axis=1)
        if wrong_N.any():
            raise DataError(
                f"{path}: row {int(wrong_N.argmax())} has no token or one behind a {PADDING}, which "
                "only pads the end of a row"
            )
    return torch.as_tensor(found)


def _whole(values: NDArray[np.generic]) -> bool:
    return values.dtype.kind in "iu"


def _are_labels(values: NDArray[np.generic]) -> bool:
    return values.ndim == 1 and _whole(values)


def _model_recipe(model: str) -> ModelRecipe:
    try:
        content = load_yaml(model)
        return ModelRecipe.model_validate(
            {"name": content} if isinstance(content, str) else content
        )
    except (yaml.YAMLError, ValidationError, TypeError, ValueError):
        raise RecipeError(
            f"model {model!r} is neither a name nor YAML such as '{{name: lenet5, width: 8}}'"
        ) from None


def _array(path: Path) -> NDArray[np.generic]:
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no readable npy file: {' '.join(str(error).split())}") from None
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path} holds several arrays; give an npy file with one")
    return native(found)


def _targets(
    values: NDArray[np.generic],
    path: Path,
    examples: int,
    classes: int,
    outputs: int | tuple[int, int],
) -> NDArray[np.float64]:
    if not _whole(values) and not np.issubdtype(values.dtype, np.floating):
        raise MeasureError(
            f"{path} has type {values.dtype}; labels are integers, targets are floats"
        )
    if values.ndim not in (1, 2) or len(values) != examples:
        raise MeasureError(
            f"{path} has shape {values.shape} for {examples} inputs; "
            f"give ({examples},) or ({examples}, {classes})"
        )
    if _are_labels(values):
        coded = label_targets(values, max(classes, 2), coding_of(classes))
        values = coded if coded.ndim == 2 else coded[:, None]
    elif values.ndim == 1:
        found = np.unique(values.astype(np.float64))
        # Numbers of three or more classes, and no targets.
        if 2 < len(found) <= classes and np.isin(found, np.arange(classes)).all():
            raise MeasureError(
                f"{path} holds whole numbers from 0 to {values.max():g} as {values.dtype}; give labels "
                f"as integers, or targets of every output, ({examples}, {classes})"
            )
        return values.astype(np.float64)
    if values.shape[1] != classes:
        raise MeasureError(f"{path} has {values.shape[1]} columns; the model has {classes} outputs")
    each = values.astype(np.float64)
    if isinstance(outputs, int):
        return each[:, outputs]
    return each[:, outputs[0]] - each[:, outputs[1]]
