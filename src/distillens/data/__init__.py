"""Examples, where they come from, and how they become batches."""

from distillens.data.augment import Augmentation
from distillens.data.batches import Batch, Batches, EpochSource, LoaderBatches, Normalisation
from distillens.data.examples import Examples, LabelChange, Splits, examples_from_arrays
from distillens.data.recipe import DataRecipe, load_splits
from distillens.data.tokens import PADDING, TokenizerRecipe, vocabulary_of

__all__ = [
    "PADDING",
    "Augmentation",
    "Batch",
    "Batches",
    "DataRecipe",
    "EpochSource",
    "Examples",
    "LabelChange",
    "LoaderBatches",
    "Normalisation",
    "Splits",
    "TokenizerRecipe",
    "examples_from_arrays",
    "load_splits",
    "vocabulary_of",
]
