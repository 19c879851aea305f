"""Models by name, and the `model` part of a recipe; read and checked without torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, Field

from distillens.errors import RecipeError, nearest
from distillens.files.user_code import CodePart, import_named
from distillens.registry import Registry

FROM_DATA = ("input_shape", "outputs", "vocabularies", "normalisation")
"""Parameters of builders that are set from the data and not by a recipe."""

EXTRAS = {"timm": "timm", "transformers": "text"}
"""Other libraries whose models can be named, and the extra of distillens that each comes with."""


class ModelRecipe(CodePart):
    """A model of a recipe: the name of a registered model, and its arguments as further keys.

    ``{name: lenet5, width: 8}``, ``{name: resnet56}``, ``{name: mlp, hidden: [128]}``,
    ``{name: random-features, width: 5000, features_seed: 0}``, for text
    ``{name: encoder, layers: 2, width: 128}``, or ``{name: "package.module:function", …}``, a
    function or class that is called with the arguments of the recipe and with whatever its signature
    names of ``input_shape``, ``outputs``, ``vocabularies`` and ``normalisation``;
    ``{name: "timm:mobilenetv3_small_100"}`` and ``{name: "transformers:NAME_OR_FOLDER"}`` are those
    libraries' (see :func:`distillens.models.external.external_builder` for their arguments).
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(min_length=1)

    @property
    def is_custom(self) -> bool:
        """Whether the name is a ``module:function``, code that belongs to the recipe."""
        return ":" in self.name and not is_external(self.name)

    @property
    def arguments(self) -> dict[str, Any]:
        """The builder's arguments."""
        return dict(self.model_extra or {})


MODELS: Registry[Callable[..., Any]] = Registry("model", package="distillens.models.builders")
"""The builders of models by their name: functions or classes, as `register_model` describes them."""

Builder = TypeVar("Builder", bound=Callable[..., Any])


def register_model(name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a builder a model that recipes can name.

    A builder is a function or class that returns a `torch.nn.Module`. It is called with those of
    `FROM_DATA` that its signature names, and with the arguments of the recipe, which are its other
    parameters. The arguments of a function are converted to the types of its annotations. A model of
    text has the parameter ``vocabularies``, and ``tokenizer`` if it reads the tokens of only one.

    Recipes are checked without torch: a module of distillens that registers a model imports torch
    where it builds one.
    """
    return MODELS.register(name)


def check_model(recipe: ModelRecipe, *, trust_code: bool = False) -> None:
    """Refuse, before anything runs, a model that cannot be built as written.

    Raises
    ------
    RecipeError
        The name is unknown or does not name a function or class, an argument does not exist or is
        missing, or code of the recipe's author would run without ``trust_code``.
    """
    # A recipe may be read where the extra is missing; building the model asks for it.
    if is_external(recipe.name):
        return
    name, arguments, builder = recipe.name, recipe.arguments, find_builder(recipe, trust_code)
    # A module, told without torch.
    if hasattr(builder, "state_dict") and not inspect.isclass(builder):
        raise RecipeError(
            f"model {name!r} is a network, not a function that builds one, so every seed would "
            "share its weights; name a function or the class"
        )
    if not callable(builder):
        raise RecipeError(f"model {name!r} is a {type(builder).__name__}, not a function or class")
    if inspect.iscoroutinefunction(builder):
        raise RecipeError(f"model {name!r} is a coroutine function; write it without async")
    for key in FROM_DATA:
        if key in arguments:
            raise RecipeError(f"model {name!r}: {key} is set from the data; leave it out")
    parameters = parameters_of(builder)
    if parameters is None:
        return
    each = inspect.Parameter
    kinds = {key: parameter.kind for key, parameter in parameters.items()}
    named = (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    by_name = {key for key, kind in kinds.items() if kind in named}
    for key in arguments if each.VAR_KEYWORD not in kinds.values() else ():
        if key not in by_name:
            known = by_name - set(FROM_DATA)
            hint = nearest(key, known) if known else "; it takes none"
            raise RecipeError(f"model {name!r} has no argument {key!r}{hint}")
    given = by_name & {*arguments, *FROM_DATA}
    for key, parameter in parameters.items():
        required = kinds[key] in (*named, each.POSITIONAL_ONLY) and parameter.default is each.empty
        if required and key not in given:
            raise RecipeError(
                f"model {name!r} needs an argument {key!r}; set it together with the name, or use the "
                f"names that are set from the data: {', '.join(FROM_DATA)}"
            )


def parameters_of(builder: Any) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of a builder; None for a callable of a compiled library without them."""
    try:
        return inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return None


def is_external(name: str) -> bool:
    """Return whether a model's name is one of another library's."""
    return name.partition(":")[0] in EXTRAS and ":" in name


def reads_one_tokenizer(recipe: ModelRecipe) -> bool:
    """Return whether a model of text reads the tokens of one tokenizer, (B, T) like (B, K, T)."""
    if is_external(recipe.name):
        return True
    known = recipe.name in MODELS.names()
    return known and "tokenizer" in (parameters_of(MODELS.get(recipe.name)) or {})


def find_builder(recipe: ModelRecipe, trust_code: bool) -> Callable[..., Any]:
    """Return what builds a model.

    Raises
    ------
    RecipeError
        The name is unknown, or code of the recipe's author would run without ``trust_code``.
    """
    name = recipe.name
    if name in MODELS.names():
        return MODELS.get(name)
    if is_external(name):
        from distillens.models.external import external_builder

        return external_builder(name)
    if not recipe.is_custom:
        raise RecipeError(
            f"no model {name!r}{nearest(name, MODELS.names())} "
            "(or timm:NAME, transformers:NAME, or module:function with --trust-code)"
        )
    return import_named(name, "model", trusted=trust_code, folder=recipe.code_folder)
