"""The `data` part of a recipe, and how it becomes the splits of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from distillens.data.augment import Augmentation
from distillens.data.examples import Examples, Splits
from distillens.data.folders import read_folder
from distillens.data.huggingface import read_huggingface
from distillens.data.normalisation import AnyNormalisation
from distillens.data.prepare import add_label_noise, regroup, split_off, subset
from distillens.data.sources import Source, read_digits, read_idx, read_npz
from distillens.data.text import Texts, read_text
from distillens.data.tokens import TokenizerRecipe, tokenise
from distillens.errors import DataError
from distillens.paths import UserPath


class DataRecipe(BaseModel):
    """Which examples a study works on.

    ``path`` is a folder (idx, huggingface, folder), a file (npz) or a `datasets` name (huggingface); a
    relative one is relative to where the command is run. Sizes of None keep all there is. Validation
    examples are taken out of the training examples. ``groups`` joins classes; ``label_noise`` is
    the share of training labels replaced by a wrong one. ``image_size`` is the side to which the
    pictures of a folder are cropped and resized; without it they must all have one size.
    ``config`` and ``test_split`` name a configuration and the test split of a Hugging Face data set
    that has several.
    ``normalisation`` is that of the inputs of all networks that name none of their own; see
    `distillens.data.normalisation.AnyNormalisation`. None measures it on the training examples, but
    for networks with pretrained weights of another library, which get that library's.
    ``tokenizers`` belong to text: models see the tokens of the first, or of the one whose number
    their ``tokenizer`` names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["digits", "idx", "huggingface", "npz", "folder", "text"] = "digits"
    path: UserPath | None = None
    image_column: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    config: str | None = None
    test_split: str | None = None
    image_size: int | None = Field(default=None, ge=1)
    train_size: int | None = Field(default=None, ge=1)
    validation_size: int = Field(default=0, ge=0)
    test_size: int | None = Field(default=None, ge=1)
    groups: list[list[int]] | None = Field(default=None, min_length=2)
    label_noise: float = Field(default=0.0, ge=0, le=1)
    seed: int = Field(default=0, ge=0)
    augmentation: Augmentation = Augmentation()
    normalisation: AnyNormalisation | None = None
    tokenizers: tuple[TokenizerRecipe, ...] = ()

    @model_validator(mode="after")
    def _path_where_needed(self) -> DataRecipe:
        if self.source != "digits" and self.path is None:
            raise ValueError(f"source {self.source!r} needs data.path: where the data lies")
        if self.image_size is not None and self.source != "folder":
            raise ValueError(
                f"image_size resizes the pictures of source 'folder', not those of {self.source!r}"
            )
        for key in ("config", "test_split"):
            if getattr(self, key) is not None and self.source not in ("huggingface", "text"):
                raise ValueError(f"{key} belongs to source 'huggingface' or 'text'; leave it out")
        if (self.source == "text") != bool(self.tokenizers):
            raise ValueError(
                "source 'text' needs data.tokenizers, one or more; others have none, "
                f"got {len(self.tokenizers)} with source {self.source!r}"
            )
        return self


def load_splits(recipe: DataRecipe) -> Splits:
    """Read and prepare the splits that a recipe asks for.

    Raises
    ------
    DataError
        The source is missing or damaged, or holds fewer examples than are asked for.
    """
    texts = _read_text(recipe) if recipe.source == "text" else None
    source = texts.source if texts is not None else _read(recipe)
    if recipe.groups is not None:
        source = {name: regroup(part, recipe.groups) for name, part in source.items()}
    train, test = _train_and_test(source, recipe)
    if len(train.classes) < 2:
        raise DataError("the training examples have one class; at least two are needed")
    validation = None
    if recipe.validation_size:
        train, validation = split_off(
            train, recipe.validation_size, recipe.seed + 1, "data.validation_size"
        )
    if recipe.train_size is not None:
        train = subset(train, recipe.train_size, recipe.seed + 2, "data.train_size")
    noisy, changed = add_label_noise(train, recipe.label_noise, recipe.seed + 3)
    splits = Splits(noisy, validation, test, changed)
    return splits if texts is None else tokenise(splits, texts, recipe.tokenizers)


def _read_text(recipe: DataRecipe) -> Texts:
    assert recipe.path is not None  # the recipe refuses text without a path
    return read_text(
        recipe.path,
        recipe.text_column,
        recipe.label_column,
        config=recipe.config,
        test_split=recipe.test_split,
    )


def _read(recipe: DataRecipe) -> Source:
    if recipe.path is None:
        return read_digits()
    # Groups name labels as the source has them.
    from_one = recipe.groups is None
    if recipe.source == "idx":
        return read_idx(Path(recipe.path), from_one=from_one)
    if recipe.source == "npz":
        return read_npz(Path(recipe.path), from_one=from_one)
    if recipe.source == "huggingface":
        return read_huggingface(
            recipe.path,
            recipe.image_column,
            recipe.label_column,
            config=recipe.config,
            test_split=recipe.test_split,
            from_one=from_one,
        )
    if recipe.source == "folder":
        return read_folder(Path(recipe.path), recipe.image_size)
    raise DataError("data.path is set, but source 'digits' reads no file; name another source")


def _train_and_test(source: Source, recipe: DataRecipe) -> tuple[Examples, Examples]:
    train = source["train"]
    if "test" not in source:
        if recipe.test_size is None:
            raise DataError(
                f"source {recipe.source!r} has no test split; set data.test_size to take one out "
                f"of its {len(train)} examples"
            )
        return split_off(train, recipe.test_size, recipe.seed, "data.test_size")
    test = source["test"]
    if test.input_shape != train.input_shape:
        raise DataError(
            f"training inputs have shape {train.input_shape}, test inputs {test.input_shape}"
        )
    if recipe.test_size is not None:
        test = subset(test, recipe.test_size, recipe.seed, "data.test_size")
    return train, test
