"""Models by name, and the `model` part of a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, validate_call
from torch import Tensor, nn

from distillens.data.outputs import bare_logits, logits_of
from distillens.errors import DataError, ModelError, RecipeError, nearest
from distillens.models.custom import FROM_DATA, call_builder, check_builder
from distillens.models.external import external_builder, is_external
from distillens.models.lenet import LeNet5
from distillens.models.mlp import MLP
from distillens.models.random_features import RandomFeatures
from distillens.models.resnet import CifarResNet, Shortcut
from distillens.models.transformer import Encoder, text_shape
from distillens.models.vgg import VGG16
from distillens.sequences import required_end
from distillens.user_code import import_named

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
    def build(input_shape: tuple[int, ...], outputs: int, shortcut: Shortcut = "A") -> Any:
        return CifarResNet(input_shape, outputs, depth, shortcut)

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
    builder = _builder(recipe, trust_code)
    if recipe.is_custom:
        check_builder(recipe.name, builder, recipe.arguments)
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
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    trust_code: bool = False,
) -> nn.Module:
    """Build a freshly initialised network; its weights are a function of the seed.

    The global random state is left as it was. ``vocabularies`` are those of text, whose inputs are
    tokens (see `distillens.data.Examples`). ``normalisation`` is the mean and the standard deviation
    of each channel that inputs are normalised with; a ``module:function`` gets it if it asks for it.

    Raises
    ------
    RecipeError
        As :func:`check_model`, or an argument has the wrong type.
    ModelError
        The network cannot take these inputs, or gives other outputs than asked for.
    """
    check_model(recipe, trust_code=trust_code)
    builder = _builder(recipe, trust_code)
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
            if recipe.is_custom:
                model = call_builder(
                    recipe.name,
                    builder,
                    {
                        "input_shape": input_shape,
                        "outputs": outputs,
                        "vocabularies": vocabularies,
                        "normalisation": normalisation,
                    },
                    recipe.arguments,
                    seed=seed,
                    folder=recipe.code_folder,
                )
            else:
                model = builder(
                    input_shape=input_shape, outputs=outputs, **given, **recipe.arguments
                )
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
    shape = check_outputs(model, input_shape, outputs, recipe.name, tokens=bool(vocabularies))
    if shape != (2, outputs):
        # Whoever runs the model then gets logits: training, kernels and exports.
        model.register_forward_hook(_GiveLogits(outputs))
    return model


class _GiveLogits:
    """A hook that replaces a model's output by the logits in it."""

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        return logits_of(output, (len(inputs[0]),), lambda: {self.outputs}, whose="the model")


def check_outputs(
    model: nn.Module, input_shape: tuple[int, ...], outputs: int, what: str, *, tokens: bool = False
) -> tuple[int, ...] | None:
    """Run two zero inputs through a model and refuse it if its logits are not (2, outputs).

    With ``tokens`` they are whole numbers, the first token of every vocabulary; the last one is the
    token that the network requires, if there is one. Logits are found in an output as
    `distillens.data.outputs.logits_of` says.

    Returns
    -------
    The shape of the output, or None if it is not a tensor.

    Raises
    ------
    ModelError
        The model cannot take the inputs, or does not give these logits.
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
    # A network of the user's own may fail in any way.
    except Exception as error:
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelError(f"{what} cannot take inputs of shape {input_shape}: {text}") from None
    finally:
        model.train(was_training)
    try:
        shape = tuple(logits_of(outcome, (2,), lambda: {outputs}, whose=what).shape)
    except DataError:
        shape = tuple(bare_logits(outcome).shape)
    if shape != (2, outputs):
        raise ModelError(
            f"{what} gives outputs of shape {shape} for 2 inputs; the task needs (2, {outputs})"
        )
    return tuple(outcome.shape) if isinstance(outcome, Tensor) else None


def reads_one_tokenizer(recipe: ModelRecipe) -> bool:
    """Say whether a model of text reads the tokens of one tokenizer, (B, T) like (B, K, T)."""
    return recipe.name in BUILDERS or is_external(recipe.name)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _builder(recipe: ModelRecipe, trust_code: bool) -> Callable[..., Any]:
    name = recipe.name
    if name in BUILDERS:
        return BUILDERS[name]
    if is_external(name):
        return external_builder(name)
    if not recipe.is_custom:
        raise RecipeError(
            f"no model {name!r}{nearest(name, BUILDERS)} "
            "(or timm:NAME, transformers:NAME, or module:function with --trust-code)"
        )
    return import_named(name, "model", trusted=trust_code, folder=recipe.code_folder)
