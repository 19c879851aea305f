"""Models by name, and the `model` part of a recipe."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, validate_call
from torch import Tensor, nn

from distillens.errors import ModelError, RecipeError, nearest
from distillens.models.external import external_builder, is_external
from distillens.models.lenet import LeNet5
from distillens.models.mlp import MLP
from distillens.models.random_features import RandomFeatures
from distillens.models.resnet import CifarResNet
from distillens.models.transformer import Encoder, text_shape
from distillens.models.vgg import VGG16
from distillens.sequences import required_end

RESNET_DEPTHS = (8, 14, 20, 32, 44, 56, 110)


class ModelRecipe(BaseModel):
    """Which network: a name, and the arguments of its builder beside it.

    ``{name: lenet5, width: 8}``, ``{name: resnet56}``, ``{name: mlp, hidden: [128]}``,
    ``{name: random-features, width: 5000, features_seed: 0}``, for text
    ``{name: encoder, layers: 2, width: 128}``, or ``{name: "package.module:function", …}``, called
    with ``input_shape`` and ``outputs``, for text also ``vocabularies``;
    ``{name: "timm:mobilenetv3_small_100"}`` and ``{name: "transformers:NAME_OR_FOLDER"}`` are those
    libraries' (see :func:`distillens.models.external.external_builder` for their arguments).
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(min_length=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """The builder's arguments."""
        return dict(self.model_extra or {})


def _lenet5(input_shape: tuple[int, ...], outputs: int, width: int = 1) -> Any:
    return LeNet5(input_shape, outputs, width)


def _mlp(input_shape: tuple[int, ...], outputs: int, hidden: tuple[int, ...] = (128,)) -> Any:
    if any(width < 1 for width in hidden):
        raise ModelError(f"mlp: hidden widths must be at least 1, got {list(hidden)}")
    return MLP(input_shape, outputs, hidden)


def _random_features(
    input_shape: tuple[int, ...], outputs: int, width: int = 5000, features_seed: int = 0
) -> Any:
    if width < 1 or features_seed < 0:
        raise ModelError(
            f"random-features: width is {width} and features_seed {features_seed}; "
            "give a width of at least 1 and a seed of at least 0"
        )
    return RandomFeatures(input_shape, outputs, width, features_seed)


def _resnet(depth: int) -> Callable[..., Any]:
    def build(input_shape: tuple[int, ...], outputs: int) -> Any:
        return CifarResNet(input_shape, outputs, depth)

    return build


def _vgg16(input_shape: tuple[int, ...], outputs: int, dropout: float = 0.5) -> Any:
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


FROM_DATA = ("input_shape", "outputs", "vocabularies")
"""Arguments of builders that no recipe sets."""

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
    builder = _builder(recipe.name, trust_code)
    if recipe.name not in BUILDERS:
        return
    known = [key for key in inspect.signature(builder).parameters if key not in FROM_DATA]
    for key in recipe.arguments:
        if key not in known:
            hint = nearest(key, known) if known else "; it takes none"
            raise RecipeError(f"model {recipe.name!r} has no argument {key!r}{hint}")


def build_model(
    recipe: ModelRecipe,
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    seed: int,
    vocabularies: tuple[int, ...] = (),
    trust_code: bool = False,
) -> nn.Module:
    """Build a freshly initialised network; its weights are a function of the seed.

    The global random state is left as it was. ``vocabularies`` are those of text, whose inputs are
    tokens (see `distillens.data.Examples`).

    Raises
    ------
    RecipeError
        As :func:`check_model`, or an argument has the wrong type.
    ModelError
        The network cannot take these inputs, or gives other outputs than asked for.
    """
    check_model(recipe, trust_code=trust_code)
    builder = _builder(recipe.name, trust_code)
    given = {"vocabularies": vocabularies} if vocabularies else {}
    if recipe.name in BUILDERS:
        if given and "vocabularies" not in inspect.signature(builder).parameters:
            raise ModelError(
                f"{recipe.name} works on numbers, the inputs are tokens of text; "
                "use encoder or transformers:NAME_OR_FOLDER"
            )
        builder = validate_call(builder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = builder(input_shape=input_shape, outputs=outputs, **given, **recipe.arguments)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RecipeError(
                f"model {recipe.name!r}: {where}: {first['msg']}, got {first['input']!r}"
            ) from None
        except TypeError as error:
            raise RecipeError(f"model {recipe.name!r} cannot be built: {error}") from None
    if not isinstance(model, nn.Module):
        raise ModelError(f"{recipe.name} returned a {type(model).__name__}, not a torch Module")
    check_outputs(model, input_shape, outputs, recipe.name, tokens=bool(vocabularies))
    return model


def check_outputs(
    model: nn.Module, input_shape: tuple[int, ...], outputs: int, what: str, *, tokens: bool = False
) -> None:
    """Run two zero inputs through a model and refuse it if it does not give (2, outputs).

    With ``tokens`` they are whole numbers, the first token of every vocabulary; the last one is the
    token that the network requires, if there is one.
    """
    was_training = model.training
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else "cpu"
    model.eval()
    try:
        with torch.no_grad():
            dtype = torch.int64 if tokens else torch.float32
            inputs = torch.zeros(2, *input_shape, device=device, dtype=dtype)
            if tokens and (end := required_end(model)) is not None:
                inputs[..., -1] = end
            outcome = model(inputs)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        text = " ".join(str(error).split())[:160]
        raise ModelError(f"{what} cannot take inputs of shape {input_shape}: {text}") from None
    finally:
        model.train(was_training)
    if not isinstance(outcome, Tensor):
        raise ModelError(
            f"{what} gives a {type(outcome).__name__}; it must return logits, a tensor"
        )
    shape = tuple(outcome.shape)
    if shape != (2, outputs):
        raise ModelError(
            f"{what} gives outputs of shape {shape} for 2 inputs; the task needs (2, {outputs})"
        )


def reads_one_tokenizer(recipe: ModelRecipe) -> bool:
    """Say whether a model of text reads the tokens of one tokenizer, (B, T) like (B, K, T)."""
    return recipe.name in BUILDERS or is_external(recipe.name)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _builder(name: str, trust_code: bool) -> Callable[..., Any]:
    if name in BUILDERS:
        return BUILDERS[name]
    if is_external(name):
        return external_builder(name)
    module, colon, function = name.partition(":")
    if not colon:
        raise RecipeError(
            f"no model {name!r}{nearest(name, BUILDERS)} "
            "(or timm:NAME, transformers:NAME, or module:function with --trust-code)"
        )
    if not trust_code:
        raise RecipeError(
            f"model {name!r} would run code of the recipe's author; "
            "read it, then pass --trust-code (trust_code=True)"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"model {name!r} cannot be imported: {error}; a file {module}.py must lie on Python's "
            "path: PYTHONPATH=. adds the current folder"
        ) from None
