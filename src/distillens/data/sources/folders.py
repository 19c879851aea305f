"""Folders of image files: one folder per class, or the layout of Tiny ImageNet.

train/<class>/….jpg              and test/<class>/… or val/<class>/…
train/<wnid>/images/….JPEG       and val/images/….JPEG with val/val_annotations.txt, wnids.txt
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from distillens.data.sources.images import decode_all, image_examples
from distillens.data.sources.source import LoadOptions, PathSource, register_source
from distillens.errors import DataError, one_line

if TYPE_CHECKING:
    from distillens.data.examples import Examples

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
UNREAD = frozenset(
    (".avif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".npy", ".psd", ".svg")
)
"""Suffixes of image files that are not read; other files, such as Thumbs.db, are no images."""
COPIES = frozenset(("__MACOSX", "@eaDir"))
"""Folders in which macOS and network storage keep thumbnails and attributes of the images."""
TEST_FOLDERS = ("test", "val", "validation", "valid")
ANNOTATIONS = "val_annotations.txt"


Listing = list[tuple[Path, int]]
"""The files of a split with their labels."""


@register_source("folder")
class ImageFolder(PathSource):
    """A folder with ``train/<class>/`` and perhaps a test split, with one image file per example.

    Classes are numbered in the order of their sorted names, files within a class are sorted by path;
    so an example's index does not depend on the file system. The test split is the first of ``test/``,
    ``val/``, ``validation/`` and ``valid/`` that has labels; others are not read, since validation
    examples are taken out of the training examples. Labels and pixels are those that torchvision's
    ``ImageFolder`` gives: images are converted to RGB, transparency is dropped, and an EXIF orientation
    is not applied. Only if all images of a data set are stored as grey values do they keep one channel.
    Hidden files and folders, and the copies that operating systems keep in folders such as
    ``__MACOSX``, are left out. Links are followed.
    """

    place: ClassVar[Literal["file", "folder", "name"]] = "folder"

    def load(self, options: LoadOptions) -> dict[str, Examples]:
        """Return the images of both splits, decoded in threads.

        Raises
        ------
        DataError
            A folder is missing, a class is empty or unknown, an annotation names no file, an image is
            damaged, of a format that is not read, or differs in size from the others; a link is broken
            or leads to a folder that contains it.
        """
        from PIL import Image

        folder = Path(self.path)
        train = folder / "train"
        if not train.is_dir():
            raise DataError(
                f"{folder} has no train folder; it needs train/<class>/ with image files"
            )
        classes = _class_names(folder, train)
        listings = {"train": _by_folder(train, classes)}
        test = _test_split(folder, classes)
        if test is not None:
            listings["test"] = test
        decoded = {
            split: decode_all(
                len(part),
                lambda row, part=part: Image.open(part[row][0]),
                lambda row, part=part: str(part[row][0]),
                options.image_size,
                exif=False,
            )
            for split, part in listings.items()
        }
        labels = {split: np.array([label for _, label in part]) for split, part in listings.items()}
        return image_examples(decoded, labels, folder.name, classes, options)


def _class_names(folder: Path, train: Path) -> tuple[str, ...]:
    found = _subfolders(train)
    if not found:
        raise DataError(f"{train} has no class folders; it needs train/<class>/ with image files")
    names = folder / "wnids.txt"
    if names.is_file():
        listed = set(_text(names).split())
        for name in sorted(listed.symmetric_difference(found)):
            raise DataError(
                f"{names} names {name!r}, but {train / name} does not exist; fetch it again"
                if name in listed
                else f"{train / name} exists, but {names} does not name it; delete one of the two"
            )
    return tuple(found)


def _test_split(folder: Path, classes: tuple[str, ...]) -> Listing | None:
    annotated = folder / "val" / ANNOTATIONS
    # Tiny ImageNet's own test pictures have no labels: its validation pictures are what is tested on.
    if annotated.is_file():
        return _by_annotations(annotated, classes)
    folders = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    labelled = [each for each in folders if _subfolders(each)]
    return _by_folder(labelled[0], classes) if labelled else None


def _by_folder(split: Path, classes: tuple[str, ...]) -> Listing:
    """List the images below each class folder, at any depth."""
    listing: Listing = []
    known = {name: label for label, name in enumerate(classes)}
    for name in _subfolders(split):
        if name not in known:
            raise DataError(
                f"{split / name} is a class that the training folder lacks; it has "
                f"{len(classes)} classes, first {classes[0]!r}"
            )
        files = sorted(file for file in visible_files(split / name) if _is_image(file))
        if not files:
            raise DataError(f"{split / name} holds no image; fill or delete the class")
        listing += [(file, known[name]) for file in files]
    return listing


def visible_files(
    folder: Path, above: Collection[Path] | None = None, seen: set[Path] | None = None
) -> Iterator[Path]:
    """Yield the files below a folder, without hidden ones; links are followed, each folder once.

    ``above`` are the folders that contain it, and ``seen`` those whose files were yielded, for folders
    below the first.

    Raises
    ------
    DataError
        A folder cannot be read, a link is broken or leads to a folder that contains it.
    """
    real = Path(os.path.realpath(folder))
    above, seen = real.parents if above is None else above, set() if seen is None else seen
    if real in above:
        raise DataError(f"{folder} is a link to {real}, which contains it; delete the link")
    if real in seen:
        return
    seen.add(real)
    for entry in _entries(folder):
        if entry.is_dir() and entry.suffix.lower() in SUFFIXES:
            raise DataError(f"{entry} is a folder with the name of an image; rename or delete it")
        if entry.is_dir():
            yield from visible_files(entry, (*above, real), seen)
        elif entry.is_file():
            yield entry
        elif entry.is_symlink():
            raise DataError(
                f"{entry} is a link to {entry.readlink()}, which does not exist; "
                "mend or delete the link"
            )


def _is_image(file: Path) -> bool:
    suffix = file.suffix.lower()
    if suffix in UNREAD:
        raise DataError(
            f"{file} is of a format that is not read; convert it to PNG, or move it out of the class "
            "folder"
        )
    return suffix in SUFFIXES


def _by_annotations(path: Path, classes: tuple[str, ...]) -> Listing:
    known = {name: label for label, name in enumerate(classes)}
    images = path.parent / "images"
    labels: dict[str, int] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = rest.split("\t")[0].strip()
        if label not in known:
            raise DataError(
                f"{path} line {number}: {label!r} is no class of the training folder; a line is "
                "file, class and a box, with tabs between"
            )
        if name in labels:
            raise DataError(f"{path} line {number}: {name} is listed twice; fetch the file again")
        labels[name] = known[label]
    there = {file.name for file in _entries(images) if _is_image(file)}
    for name in sorted(there.symmetric_difference(labels)):
        raise DataError(
            f"{path} gives no class for {images / name}; fetch the data set again"
            if name in there
            else f"{path} names {name}, but {images / name} does not exist; fetch it again"
        )
    if not labels:
        raise DataError(f"{path} is empty; fetch the data set again")
    return [(images / name, label) for name, label in sorted(labels.items())]


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _entries(folder: Path) -> list[Path]:
    """Return the sorted entries of a folder, without hidden ones and copies."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {one_line(error)}") from None
    return [each for each in entries if not each.name.startswith(".") and each.name not in COPIES]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}; fetch it again") from None
