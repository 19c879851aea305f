"""Networks by name, and their weights on disk."""

from distillens.models.build import (
    BUILDERS,
    ModelRecipe,
    build_model,
    check_model,
    check_outputs,
    count_parameters,
    reads_one_tokenizer,
)
from distillens.models.cost import measure_cost
from distillens.models.lenet import LeNet5
from distillens.models.mlp import MLP
from distillens.models.random_features import RandomFeatures
from distillens.models.resnet import CifarResNet
from distillens.models.transformer import Encoder, LanguageModel
from distillens.models.vgg import VGG16
from distillens.models.weights import (
    digest_file,
    load_safely,
    load_state,
    load_weights,
    save_weights,
)
from distillens.sequences import SequenceModel, tokens_of

__all__ = [
    "BUILDERS",
    "MLP",
    "VGG16",
    "CifarResNet",
    "Encoder",
    "LanguageModel",
    "LeNet5",
    "ModelRecipe",
    "RandomFeatures",
    "SequenceModel",
    "build_model",
    "check_model",
    "check_outputs",
    "count_parameters",
    "digest_file",
    "load_safely",
    "load_state",
    "load_weights",
    "measure_cost",
    "reads_one_tokenizer",
    "save_weights",
    "tokens_of",
]
