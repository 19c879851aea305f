"""The contract of sources of examples, and code that they share; imported without torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from distillens.files.paths import UserPath
from distillens.registry import Registry

if TYPE_CHECKING:
    from distillens.data.examples import Examples

MAX_UNNAMED = 100_000
"""Classes without names. A larger label is taken for damage: the network would fill the memory."""


@dataclass(frozen=True)
class LoadOptions:
    """Settings of every source.

    Parameters
    ----------
    image_size
        Height and width in pixels to which images are brought; None leaves them as they are. A source
        whose images differ in size resizes each as it decodes it. Images of other sources are resized
        after they are loaded, so these sources need not use it.
    from_one
        Whether labels 1, …, K become 0, …, K − 1; see `number_classes`.
    """

    image_size: int | None = None
    from_one: bool = True


class DataSource(BaseModel):
    """Base of all sources of examples.

    The fields of a source are the keys of a recipe's ``data`` that belong to it alone. A recipe finds
    it once it is registered; see `register_source`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    is_text: ClassVar[bool] = False
    """Whether the examples are sentences, of which the recipe's ``tokenizers`` make tokens."""

    def problem(self) -> str:
        """Return what is wrong with the files that the settings name; empty if nothing is."""
        return ""

    @abstractmethod
    def load(self, options: LoadOptions) -> Mapping[str, Examples]:
        """Return the examples of each split: "train" and, where the source has one, "test".

        The index of an example is its place in the split. Inputs of text are empty, and `sentences`
        holds the text.

        Raises
        ------
        DataError
            The source is missing or damaged.
        """
        raise NotImplementedError


class PathSource(DataSource):
    """Base of the sources that read a file or a folder."""

    place: ClassVar[Literal["file", "folder", "name"]] = "name"
    """Kind of ``path``. A name may also be known to a library, unless it begins like a path."""

    path: UserPath

    def problem(self) -> str:
        path = Path(self.path)
        if self.place == "folder" and not path.is_dir():
            return f"no folder {path}; data.path must name the folder of the data set"
        if self.place == "file" and not path.is_file():
            return f"no file {path}; data.path must name the file of the data set"
        if self.path.startswith(("/", "./", "../")) and not path.exists():
            return f"there is no {path}; data.path must name the data set"
        return ""


SOURCES: Registry[type[DataSource]] = Registry("data source", package="distillens.data.sources")
"""All sources by their name."""

Source = TypeVar("Source", bound=type[DataSource])


def register_source(name: str) -> Callable[[Source], Source]:
    """Return a decorator that makes a subclass of `DataSource` one that ``data.source`` can name."""
    return SOURCES.register(name)


def to_examples(
    inputs: Mapping[str, Any],
    labels: Mapping[str, Any],
    where: str,
    classes: Sequence[str] | None,
    options: LoadOptions,
) -> dict[str, Examples]:
    """Return the examples of each split; without names of classes, `number_classes` gives them.

    ``where`` names the source in errors.
    """
    from distillens.data.examples import examples_from_arrays

    if classes is None:
        labels, classes = number_classes(labels, options)
    return {
        split: examples_from_arrays(
            inputs[split], labels[split], classes, where=f"{where} ({split})"
        )
        for split in labels
    }


def number_classes(
    labels: Mapping[str, np.ndarray], options: LoadOptions
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Return labels that count from 0, and the names of their classes, the same for all splits.

    A class belongs to the task if any split has it, so a test split without the highest class has as
    many classes as the training split. A label of the test split beyond those of the training split
    is taken for damage, and left out of the names, unless the classes of both together have no gap.

    Parameters
    ----------
    labels
        (N,) integers of each split; one is called "train".
    options
        With ``from_one``, labels 1, …, K become 0, …, K − 1 with the names "1", …, "K".

    Returns
    -------
    The labels and the names. Names are None for labels that are no integers from 0, which
    `examples_from_arrays` refuses.
    """
    given = dict(labels)
    if not all(each.ndim == 1 and each.dtype.kind in "iu" and len(each) for each in given.values()):
        return given, None
    found = np.unique(np.concatenate([np.unique(each) for each in given.values()]))
    highest, first = int(found[-1]), int(found[0])
    complete = len(found) == highest - first + 1
    if first < 0 or highest >= MAX_UNNAMED:
        return given, None
    if options.from_one and first == 1 and complete:
        shifted = {split: each.astype(np.int64) - 1 for split, each in given.items()}
        return shifted, tuple(str(number) for number in found)
    count = (highest if complete else int(given["train"].max())) + 1
    return given, tuple(str(number) for number in range(count))
