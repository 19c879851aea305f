"""Build the network that the `model` part of a recipe names."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from pydantic import ConfigDict, ValidationError, validate_call
from torch import Tensor, nn

from distillens.data.outputs import bare_logits, logits_of
from distillens.errors import DataError, DistillensError, ModelError, RecipeError, one_line
from distillens.files.user_code import importable
from distillens.forward.evaluation import evaluation_mode
from distillens.forward.sequences import required_end
from distillens.models.registry import (
    FROM_DATA,
    MODELS,
    ModelRecipe,
    check_model,
    find_builder,
    parameters_of,
)

Builder = Callable[..., Any]

_handed_out: WeakValueDictionary[int, nn.Parameter] = WeakValueDictionary()
"""Trainable parameters of the networks that builders have returned."""


def build_model(
    recipe: ModelRecipe,
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    seed: int,
    vocabularies: tuple[int, ...] = (),
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    trust_code: bool = False,
    every_position: bool = False,
) -> nn.Module:
    """Build a freshly initialised network; its weights are a function of the seed.

    The global random state is left as it was. ``vocabularies`` are those of text, whose inputs are
    tokens (see `distillens.data.Examples`). ``normalisation`` is the mean and the standard deviation
    of each channel that inputs are normalised with; a ``module:function`` gets it if it asks for it.
    With ``every_position`` the network gives logits for every token of its inputs.

    Raises
    ------
    RecipeError
        As :func:`check_model`, or an argument has the wrong type.
    ModelError
        The network cannot take these inputs, or gives other outputs than asked for.
    """
    check_model(recipe, trust_code=trust_code)
    builder = find_builder(recipe, trust_code)
    if recipe.name in MODELS.names():
        if vocabularies and "vocabularies" not in (parameters_of(builder) or {}):
            raise ModelError(
                f"{recipe.name} works on numbers, the inputs are tokens of text; "
                "use encoder or transformers:NAME_OR_FOLDER"
            )
        if not inspect.isclass(builder):
            config = ConfigDict(arbitrary_types_allowed=True)
            builder = validate_call(config=config)(builder)
    # torch.manual_seed also seeds the GPUs, whose dropout must not start anew in a running training.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        values = (input_shape, outputs, vocabularies, normalisation)
        model = _call_builder(recipe, builder, dict(zip(FROM_DATA, values, strict=True)), seed)
    labels = (2, *input_shape) if every_position else (2,)
    shape = check_outputs(
        model, input_shape, outputs, recipe.name, tokens=bool(vocabularies), labels=labels
    )
    if shape != (*labels, outputs):
        # The model then returns logits in training, kernels and exports.
        model.register_forward_hook(partial(_give_logits, outputs, len(labels)))
    return model


def _give_logits(
    outputs: int, axes: int, module: nn.Module, inputs: tuple[Any, ...], output: Any
) -> Tensor:
    """Replace a model's output by the logits in it, as a hook.

    The softmax of two logits is the sigmoid of their difference, which is the one logit of two classes.
    """
    positions = inputs[0].shape[:axes]
    logits = logits_of(output, positions, lambda: _possible(outputs), whose="the model")
    return logits if logits.shape[-1] == outputs else logits[:, 1:] - logits[:, :1]


def _possible(outputs: int) -> set[int]:
    """Return how many logits a network may give: for two classes one, or one for each of them."""
    return {1, 2} if outputs == 1 else {outputs}


def check_outputs(
    model: nn.Module,
    input_shape: tuple[int, ...],
    outputs: int,
    what: str,
    *,
    tokens: bool = False,
    labels: tuple[int, ...] = (2,),
) -> tuple[int, ...] | None:
    """Run two zero inputs through a model and refuse it if its logits are not (2, outputs).

    ``labels`` is the shape of the labels of the two inputs, (2, T) where each token has one; the logits
    then have shape (2, T, outputs).
    For two classes, which need one output, two logits are accepted as well.
    With ``tokens`` they are whole numbers, the first token of every vocabulary; the last one is the
    token that the network requires, if there is one. Logits are found in an output as
    `distillens.data.outputs.logits_of` defines.

    Returns
    -------
    The shape of the output, or None if it is not a tensor.

    Raises
    ------
    ModelError
        The model cannot take the inputs, or does not give these logits.
    """
    device = next((parameter.device for parameter in model.parameters()), "cpu")
    try:
        with evaluation_mode(model), torch.no_grad():
            dtype = torch.int64 if tokens else torch.float32
            inputs = torch.zeros(2, *input_shape, device=device, dtype=dtype)
            if tokens and (end := required_end(model)) is not None:
                inputs[..., -1] = end
            outcome = model(inputs)
    # A network of the user's own may fail in any way.
    except Exception as error:
        raise ModelError(
            f"{what} cannot take inputs of shape {input_shape}: {one_line(error)[:160]}"
        ) from None
    try:
        shape = tuple(logits_of(outcome, labels, lambda: _possible(outputs), whose=what).shape)
    except DataError:
        shape = tuple(bare_logits(outcome).shape)
    if shape not in {(*labels, width) for width in _possible(outputs)}:
        raise ModelError(
            f"{what} gives outputs of shape {shape} for 2 inputs; the task needs {(*labels, outputs)}"
        )
    return tuple(outcome.shape) if isinstance(outcome, Tensor) else None


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _call_builder(
    recipe: ModelRecipe, builder: Builder, offered: Mapping[str, Any], seed: int
) -> nn.Module:
    """Call a builder with the arguments of a recipe and those of the offered values that it accepts.

    Parameters
    ----------
    recipe
        The arguments, and the folder that is first on the import path during the call.
    builder
        A function that returns a network, or a class of networks.
    offered
        Values of `FROM_DATA`. The builder gets those that its signature names, and with ``**kwargs``
        all that are not empty.
    seed
        Seed of torch's random numbers.

    Raises
    ------
    RecipeError
        The arguments do not fit the signature.
    ModelError
        The builder stops with an error, or returns no network or one that it returned before.
    """
    name, parameters = recipe.name, parameters_of(builder)
    named: set[str] = set(FROM_DATA[:2] if parameters is None else parameters)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in (parameters or {}).values())
    given = {key: value for key, value in offered.items() if key in named or (takes_all and value)}
    try:
        with importable(recipe.code_folder, name.partition(":")[0]):
            model = _call(builder, given, recipe.arguments, named, seed)
    except DistillensError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"model {name!r}: {where}: {first['msg']}, got {first['input']!r}"
        ) from None
    # Code of the user's own may end in any way.
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:240]
        kind = RecipeError if isinstance(error, TypeError) else ModelError
        raise kind(
            f"model {name!r} cannot be built: {type(error).__name__}"
            f"{f': {text}' if text else ''}{_place(error, builder)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned a {type(model).__name__}, not a torch Module")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(_handed_out.get(id(parameter)) is parameter for parameter in trained):
        raise ModelError(
            f"{name} returned weights that it had returned before, so networks would change each "
            "other; build a new network in every call"
        )
    _handed_out.update((id(parameter), parameter) for parameter in trained)
    return model


def _call(
    builder: Builder,
    given: dict[str, Any],
    arguments: Mapping[str, Any],
    named: set[str],
    seed: int,
) -> Any:
    while True:
        torch.manual_seed(seed)
        try:
            return builder(**given, **arguments)
        except TypeError as error:
            # A function that forwards its **kwargs accepts only the arguments of the other function.
            found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if found is None or found[1] not in given or found[1] in named:
                raise
            del given[found[1]]


def _place(error: BaseException, builder: Builder) -> str:
    """Return the last line of user code in the traceback of an error."""
    try:
        own = inspect.getfile(builder)
    except TypeError:
        return ""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == own]
    return f" ({Path(own).name}, line {frames[-1].lineno})" if frames else ""
