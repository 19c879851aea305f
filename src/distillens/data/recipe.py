"""The `data` part of a recipe; read and checked without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    model_validator,
)

from distillens.data.sources.source import SOURCES, DataSource
from distillens.errors import nearest
from distillens.files.paths import UserPath

PRESETS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Mean and standard deviation of each channel of RGB images with values in [0, 1]."""
NAMES = ("data", "none", *PRESETS)


class MeanAndStd(BaseModel):
    """A mean and a standard deviation for each channel of images with values in [0, 1].

    For floating-point inputs the unit is that of the data; vectors have one number for each feature.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[FiniteFloat, ...] = Field(min_length=1)
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _same_length(self) -> MeanAndStd:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers, std has {len(self.std)}")
        return self


def _known(value: Any) -> Any:
    if isinstance(value, str) and value not in NAMES:
        raise ValueError(
            f"no normalisation is called {value!r}{nearest(value, NAMES)} (or give mean and std)"
        )
    if not isinstance(value, (str, dict, MeanAndStd)):
        raise ValueError(f"give one of {', '.join(NAMES)}, or mean and std; got {value!r:.60}")
    return value


AnyNormalisation = Annotated[
    Annotated[Literal["data", "none", "imagenet", "cifar10"], Tag("preset")]
    | Annotated[MeanAndStd, Tag("numbers")],
    Discriminator(lambda value: "preset" if isinstance(value, str) else "numbers"),
    BeforeValidator(_known),
]
"""The value of a ``normalisation`` key.

``data`` is measured on the training examples, ``none`` leaves images in [0, 1], ``imagenet`` and
``cifar10`` are `PRESETS`, and a `MeanAndStd` gives the numbers.
"""


class Augmentation(BaseModel):
    """Random crop after padding, and horizontal flip.

    ``crop`` is the number of zero pixels added on every side before a crop of the original size
    (0: none); ``flip`` mirrors half of the pictures left to right.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop: int = Field(default=0, ge=0)
    flip: bool = False
    seed: int = Field(default=0, ge=0)

    @property
    def changes(self) -> bool:
        """Whether any picture differs between epochs."""
        return self.crop > 0 or self.flip


class TokenizerRecipe(BaseModel):
    """Settings of tokenisation.

    ``path`` is a folder with a ``tokenizer.json``, as Hugging Face models have it, or such a file;
    without it byte-pair merges are trained on the training sentences, for ``vocabulary`` tokens at
    most. ``length`` is the most tokens of a sentence; longer ones are cut.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = None
    vocabulary: int | None = Field(default=None, ge=8)
    length: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _one_origin(self) -> TokenizerRecipe:
        if (self.path is None) == (self.vocabulary is None):
            raise ValueError("a tokenizer needs either a path or the size of its vocabulary")
        return self


class DataRecipe(BaseModel):
    """The examples of a study.

    ``source`` names a registered source; see `distillens.data.sources`. ``path`` is a folder (idx,
    huggingface, folder, text), a file (npz) or a `datasets` name (huggingface, text); a relative one is
    relative to the current folder. Other keys that only some sources have, such as ``image_column``,
    are fields of the class of the source. Sizes of None keep all there is. Validation
    examples are taken out of the training examples. ``groups`` joins classes; ``label_noise`` is
    the share of training labels replaced by a wrong one. ``image_size`` is the
    height and width in pixels to which images are brought: the largest centred square, averaged over
    areas (`distillens.data.sources.images.resize_images`). Without it all images of a folder must have
    one size.
    ``normalisation`` is that of the inputs of all networks that name none of their own; see
    `AnyNormalisation`. None measures it on the training examples, but
    for networks with pretrained weights of another library, which get that library's.
    ``tokenizers`` belong to text: models see the tokens of the first, or of the one whose number
    their ``tokenizer`` names.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    source: str = "digits"
    path: UserPath | None = None
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

    @model_validator(mode="before")
    @classmethod
    def _unset_keys_are_left_out(cls, values: Any) -> Any:
        """Leave out keys of other sources that are null, as recipes of earlier versions have them."""
        if not isinstance(values, dict):
            return values
        return {
            key: value
            for key, value in values.items()
            if value is not None or key in cls.model_fields or not _owners(key)
        }

    @model_validator(mode="after")
    def _fits_the_source(self) -> DataRecipe:
        if self.source not in SOURCES.names():
            raise ValueError(f"no source {self.source!r}{nearest(self.source, SOURCES.names())}")
        kind = SOURCES.get(self.source)
        for key, field in kind.model_fields.items():
            if field.is_required() and key not in self._given():
                raise ValueError(f"source {self.source!r} needs data.{key}")
        for key in self._given():
            if (owners := _owners(key)) and self.source not in owners:
                known = " or ".join(map(repr, owners))
                raise ValueError(
                    f"{key} belongs to source {known}, not {self.source!r}; leave it out"
                )
        if self.image_size is not None and kind.is_text:
            raise ValueError(
                f"image_size resizes images; source {self.source!r} has none; leave it out"
            )
        if kind.is_text != bool(self.tokenizers):
            raise ValueError(
                f"source {self.source!r} needs data.tokenizers, one or more"
                if kind.is_text
                else f"source {self.source!r} holds no text; leave data.tokenizers out"
            )
        self.settings()
        return self

    def settings(self) -> DataSource:
        """Return the source with its own settings."""
        return SOURCES.get(self.source).model_validate(self._given())

    def _given(self) -> dict[str, Any]:
        path = {} if self.path is None else {"path": self.path}
        return path | (self.model_extra or {})


def _owners(key: str) -> list[str]:
    """Return the sources that have a key of their own."""
    return [name for name in SOURCES.names() if key in SOURCES.get(name).model_fields]
