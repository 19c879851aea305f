"""Registers the models that distillens has; torch is imported when one of them is built."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from distillens.models.registry import register_model

Shortcut = Literal["A", "B"]
"""Shortcuts of a residual network that change the number of channels (He et al. 2016, option A or B)."""


Dropout = Annotated[float, Field(ge=0, lt=1)]
"""Probability with which an activation is set to zero in training."""


@register_model("lenet5")
def lenet5(
    input_shape: tuple[int, ...], outputs: int, width: PositiveInt = 1, pad_to: NonNegativeInt = 32
) -> Any:
    from distillens.models.architectures.feedforward import LeNet5

    return LeNet5(input_shape, outputs, width, pad_to)


@register_model("mlp")
def mlp(
    input_shape: tuple[int, ...], outputs: int, hidden: tuple[PositiveInt, ...] = (128,)
) -> Any:
    from distillens.models.architectures.feedforward import MLP

    return MLP(input_shape, outputs, hidden)


@register_model("random-features")
def random_features(
    input_shape: tuple[int, ...],
    outputs: int,
    width: PositiveInt = 5000,
    features_seed: NonNegativeInt = 0,
) -> Any:
    from distillens.models.architectures.feedforward import RandomFeatures

    return RandomFeatures(input_shape, outputs, width, features_seed)


def resnet(depth: int, input_shape: tuple[int, ...], outputs: int, shortcut: Shortcut = "A") -> Any:
    from distillens.models.architectures.feedforward import CifarResNet

    return CifarResNet(input_shape, outputs, depth, shortcut)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register_model(f"resnet{_depth}")(partial(resnet, _depth))


@register_model("vgg16")
def vgg16(input_shape: tuple[int, ...], outputs: int, dropout: Dropout = 0.5) -> Any:
    from distillens.models.architectures.feedforward import VGG16

    return VGG16(input_shape, outputs, dropout)


@register_model("causal-transformer")
def causal_transformer(
    input_shape: tuple[int, ...],
    vocabularies: tuple[int, ...] = (),
    layers: int = 2,
    width: int = 128,
    heads: int = 4,
    dropout: Dropout = 0.1,
) -> Any:
    from distillens.models.architectures.transformer import LanguageModel, text_shape

    length, vocabulary = text_shape("causal-transformer", input_shape, vocabularies, 0)
    return LanguageModel(
        vocabulary, length, layers=layers, width=width, heads=heads, dropout=dropout
    )


@register_model("encoder")
def encoder(
    input_shape: tuple[int, ...],
    outputs: int,
    vocabularies: tuple[int, ...] = (),
    layers: int = 2,
    width: int = 128,
    heads: int = 4,
    dropout: Dropout = 0.1,
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
