"""Models by name, and the `model` part of a recipe; read and checked without torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from distillens.errors import RecipeError, nearest
from distillens.files.user_code import import_named
from distillens.registry import Registry

FROM_DATA = ("input_shape", "outputs", "vocabularies", "normalisation")
"""Parameters of builders that are set from the data and not by a recipe."""

EXTRAS = {"timm": "timm", "transformers": "text"}
"""Other libraries whose models can be named, and the extra of distillens that each comes with."""


class ModelRecipe(BaseModel):
    """Which network: a name, and the arguments of its builder beside it.

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
    _code_folder: Path | None = PrivateAttr(default=None)

    @property
    def is_custom(self) -> bool:
        """Whether the name is a ``module:function``, code that belongs to the recipe."""
        return ":" in self.name and not is_external(self.name)

    @property
    def code_folder(self) -> Path | None:
        """Where ``module:function`` is looked for before Python's path; no part of the recipe."""
        return self._code_folder

    def look_in(self, folder: Path | None) -> None:
        """Set `code_folder`."""
        self._code_folder = folder

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
        The name is unknown, an argument does not exist, or code of the recipe's author would run
        without ``trust_code``.
    """
    # A recipe may be read where the extra is missing; building the model asks for it.
    if is_external(recipe.name):
        return
    builder = find_builder(recipe, trust_code)
    if recipe.is_custom:
        from distillens.models.custom import check_builder

        check_builder(recipe.name, builder, recipe.arguments)
        return
    known = [key for key in inspect.signature(builder).parameters if key not in FROM_DATA]
    for key in recipe.arguments:
        if key not in known:
            hint = nearest(key, known) if known else "; it takes none"
            raise RecipeError(f"model {recipe.name!r} has no argument {key!r}{hint}")


def is_external(name: str) -> bool:
    """Say whether a model's name is one of another library's."""
    return name.partition(":")[0] in EXTRAS and ":" in name


def reads_one_tokenizer(recipe: ModelRecipe) -> bool:
    """Say whether a model of text reads the tokens of one tokenizer, (B, T) like (B, K, T)."""
    if is_external(recipe.name):
        return True
    known = recipe.name in MODELS.names()
    return known and "tokenizer" in inspect.signature(MODELS.get(recipe.name)).parameters


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
