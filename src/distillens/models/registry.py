"""Models by name, and the `model` part of a recipe; read and checked without torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from distillens.errors import ModelError, RecipeError, nearest
from distillens.files.user_code import import_named

FROM_DATA = ("input_shape", "outputs", "vocabularies", "normalisation")
"""Arguments of builders that no recipe sets."""

EXTRAS = {"timm": "timm", "transformers": "text"}
"""Other libraries whose models can be named, and the extra of distillens that each comes with."""

Shortcut = Literal["A", "B"]
"""Shortcuts of a residual network that change the number of channels (He et al. 2016, option A or B)."""

RESNET_DEPTHS = (8, 14, 20, 32, 44, 56, 110)


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


def _lenet5(input_shape: tuple[int, ...], outputs: int, width: int = 1, pad_to: int = 32) -> Any:
    from distillens.models.architectures.lenet import LeNet5

    return LeNet5(input_shape, outputs, width, pad_to)


def _mlp(input_shape: tuple[int, ...], outputs: int, hidden: tuple[int, ...] = (128,)) -> Any:
    if any(width < 1 for width in hidden):
        raise ModelError(f"mlp: hidden widths must be at least 1, got {list(hidden)}")
    from distillens.models.architectures.mlp import MLP

    return MLP(input_shape, outputs, hidden)


def _random_features(
    input_shape: tuple[int, ...], outputs: int, width: int = 5000, features_seed: int = 0
) -> Any:
    if width < 1 or features_seed < 0:
        raise ModelError(
            f"random-features: width is {width} and features_seed {features_seed}; "
            "give a width of at least 1 and a seed of at least 0"
        )
    from distillens.models.architectures.random_features import RandomFeatures

    return RandomFeatures(input_shape, outputs, width, features_seed)


def _resnet(depth: int) -> Callable[..., Any]:
    def build(input_shape: tuple[int, ...], outputs: int, shortcut: Shortcut = "A") -> Any:
        from distillens.models.architectures.resnet import CifarResNet

        return CifarResNet(input_shape, outputs, depth, shortcut)

    return build


def _vgg16(input_shape: tuple[int, ...], outputs: int, dropout: float = 0.5) -> Any:
    from distillens.models.architectures.vgg import VGG16

    return VGG16(input_shape, outputs, dropout)


def _encoder(
    input_shape: tuple[int, ...],
    outputs: int,
    vocabularies: tuple[int, ...] = (),
    layers: int = 2,
    width: int = 128,
    heads: int = 4,
    dropout: float = 0.1,
    tokenizer: int = 0,
) -> Any:
    from distillens.models.architectures.transformer import Encoder, text_shape

    length, vocabulary = text_shape("encoder", input_shape, vocabularies, tokenizer)
    return Encoder(
        vocabulary,
        length,
        outputs,
        layers=layers,
        width=width,
        heads=heads,
        dropout=dropout,
        tokenizer=tokenizer,
    )


BUILDERS: dict[str, Callable[..., Any]] = {
    "encoder": _encoder,
    "lenet5": _lenet5,
    "mlp": _mlp,
    "random-features": _random_features,
    "vgg16": _vgg16,
    **{f"resnet{depth}": _resnet(depth) for depth in RESNET_DEPTHS},
}


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
    return recipe.name in BUILDERS or is_external(recipe.name)


def find_builder(recipe: ModelRecipe, trust_code: bool) -> Callable[..., Any]:
    """Return what builds a model.

    Raises
    ------
    RecipeError
        The name is unknown, or code of the recipe's author would run without ``trust_code``.
    """
    name = recipe.name
    if name in BUILDERS:
        return BUILDERS[name]
    if is_external(name):
        from distillens.models.external import external_builder

        return external_builder(name)
    if not recipe.is_custom:
        raise RecipeError(
            f"no model {name!r}{nearest(name, BUILDERS)} "
            "(or timm:NAME, transformers:NAME, or module:function with --trust-code)"
        )
    return import_named(name, "model", trusted=trust_code, folder=recipe.code_folder)
