"""Call the functions and classes that build networks."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from pydantic import ValidationError
from torch import nn

from distillens.errors import DistillensError, ModelError, RecipeError
from distillens.files.user_code import importable
from distillens.models.registry import FROM_DATA, parameters_of

Builder = Callable[..., Any]

_handed_out: WeakValueDictionary[int, nn.Parameter] = WeakValueDictionary()
"""Trainable parameters of the networks that builders have returned."""


def call_builder(
    name: str,
    builder: Builder,
    offered: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    seed: int,
    folder: Path | None = None,
) -> nn.Module:
    """Call a builder with the arguments of a recipe and those of the offered values that it accepts.

    Parameters
    ----------
    name
        Name of the model, as in the recipe.
    builder
        A function that returns a network, or a class of networks.
    offered
        Values of `FROM_DATA`. The builder gets those that its signature names, and with ``**kwargs``
        all that are not empty.
    arguments
        Those of the recipe.
    seed
        Seed of torch's random numbers.
    folder
        First on the import path during the call, for modules in the folder of the recipe.

    Raises
    ------
    RecipeError
        The arguments do not fit the signature.
    ModelError
        The builder stops with an error, or returns no network or one that it returned before.
    """
    parameters = parameters_of(builder)
    named: set[str] = set(FROM_DATA[:2] if parameters is None else parameters)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in (parameters or {}).values())
    given = {key: value for key, value in offered.items() if key in named or (takes_all and value)}
    try:
        with importable(folder, name.partition(":")[0]):
            model = _call(builder, given, arguments, named, seed)
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
    _refuse_second(name, model)
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


def _refuse_second(name: str, model: nn.Module) -> None:
    """Refuse weights that another network of this process trains or has been loaded into."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(_handed_out.get(id(parameter)) is parameter for parameter in trained):
        raise ModelError(
            f"{name} returned weights that it had returned before, so networks would change each "
            "other; build a new network in every call"
        )
    for parameter in trained:
        _handed_out[id(parameter)] = parameter
