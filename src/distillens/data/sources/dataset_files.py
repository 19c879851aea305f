"""The files of a downloaded data set: their configuration, split and shard.

The layouts are those of the Hugging Face hub: ``train-00000-of-00002.parquet`` (also below ``data/``
or below a folder for each configuration), ``default/train/0000.parquet``, ``train.parquet``, and what
the ``configs`` at the head of a ``README.md`` name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from distillens.data.sources.folders import visible_files
from distillens.errors import DataError, nearest

SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
"""Splits, and the names under which they are found."""
SUFFIXES = (".parquet", ".arrow", ".jsonl", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
"""Endings of tables."""
ROOT = "."
"""Name of the configuration whose files lie in the folder itself."""

_CANONICAL = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_SHARD = re.compile(r"(.*?)[-_.](\d{1,6})-of-(\d{1,6})(?:[-.][0-9a-f]{8,})?")
_NUMBERED = re.compile(r"(.*?)[-_.]?(\d+)")
_PREFIXED = re.compile(rf"(.+)[-_.]({'|'.join(_CANONICAL)})")
_PLAIN = frozenset(("", "part", "shard", "data", "chunk"))
"""Names that do not identify a split."""

Splits = dict[str, list[Path]]
"""Files of each split, by its name in the folder."""


@dataclass(frozen=True)
class _Part:
    """A file, with the split and configuration that its path names."""

    path: Path
    config: str
    split: str
    number: int | None = None
    total: int | None = None


def split_of(name: str) -> str:
    """Return the split that a name stands for: ``val`` is ``validation``; others are themselves."""
    return _CANONICAL.get(name.lower(), name)


def choose_splits(names: Iterable[str], test_split: str | None, where: str) -> dict[str, str]:
    """Return the names of the splits to read, by "train" and "test".

    The test split is ``test_split``, else the one called test, else the one called validation;
    "test" is missing where there is none.

    Raises
    ------
    DataError
        There is no training split, no split of the name asked for, or two names of the same split.
    """
    known = list(names)
    by_split: dict[str, list[str]] = {}
    for name in known:
        by_split.setdefault(split_of(name), []).append(name)
    if "train" not in by_split:
        raise DataError(f"{where} has the splits {sorted(known)}; a split named 'train' is needed")
    if test_split is not None:
        if test_split not in known:
            raise DataError(
                f"{where} has no split {test_split!r}{nearest(test_split, known)}; "
                "data.test_split must name one"
            )
        by_split["test"] = [test_split]
    chosen = {}
    for role in ("train", "test"):
        split = role if role in by_split else "validation"
        found = by_split.get(split, [])
        if len(found) > 1:
            advice = "keep one" if role == "train" else "name one with data.test_split"
            listed = ", ".join(sorted(found))
            raise DataError(f"{where} has several {split} splits: {listed}; {advice}")
        if found:
            chosen[role] = found[0]
    return chosen


def ending_of(file: Path) -> str:
    """Return the one of `SUFFIXES` with which the name of a file ends; empty for other files."""
    return next((each for each in SUFFIXES if file.name.lower().endswith(each)), "")


def find_splits(folder: Path, config: str | None = None) -> Splits:
    """Return the files of every split of a downloaded data set.

    Parameters
    ----------
    folder
        Folder of the data set.
    config
        Configuration to read; required if there are several.

    Raises
    ------
    DataError
        There is no table, several configurations or none of this name, or a shard is missing or
        there twice.
    """
    declared = _declared(folder)
    configs = declared or _by_path(folder)
    with_train = [name for name, splits in configs.items() if "train" in map(split_of, splits)]
    if config is not None:
        if config not in configs:
            raise DataError(
                f"{folder} has no configuration {config!r}{nearest(config, configs)}; "
                "data.config must name one"
            )
        chosen = config
    elif len(with_train) > 1:
        raise DataError(
            f"{folder} holds {len(with_train)} configurations with training examples: "
            f"{', '.join(sorted(with_train))}; choose one, for example with "
            f"data.config={sorted(with_train)[-1]}"
        )
    elif with_train:
        chosen = with_train[0]
    else:
        known = sorted({split for splits in configs.values() for split in splits})
        named = f" among its splits {known}" if known else ""
        raise DataError(
            f"{folder} holds no train*.parquet, train.tsv or train.csv{named}; a split named 'train' is "
            "needed"
        )
    found: Splits = {}
    for split, parts in configs[chosen].items():
        # Folders that a README.md names for one split are parts of it, each with its own shards.
        folders: dict[Path, list[_Part]] = {}
        for part in parts:
            folders.setdefault(part.path.parent if declared else folder, []).append(part)
        where = f"{folder}: split {split!r}"
        found[split] = [path for each in folders.values() for path in _whole(each, where)]
    return found


def _by_path(folder: Path) -> dict[str, dict[str, list[_Part]]]:
    found: dict[str, dict[str, list[_Part]]] = {}
    for file in visible_files(folder):
        if ending_of(file):
            part = _parse(folder, file)
            found.setdefault(part.config, {}).setdefault(part.split, []).append(part)
    return found


def _parse(folder: Path, file: Path) -> _Part:
    parents = list(file.relative_to(folder).parts[:-1])
    name, number, total = _numbered(_stem(file))
    prefix = ""
    if name not in _CANONICAL:
        inside = [place for place, each in enumerate(parents) if each.lower() in _CANONICAL]
        if inside:
            name = parents.pop(inside[-1]).lower()
        elif prefixed := _PREFIXED.fullmatch(name):
            prefix, name = prefixed.groups()
        elif name in _PLAIN and parents:
            name = parents.pop()
    elif parents and split_of(parents[-1]) == split_of(name):
        parents.pop()
    config = "/".join([*parents, prefix] if prefix else parents) or ROOT
    return _Part(file, config, name, number, total)


def _stem(file: Path) -> str:
    return file.name.lower().removesuffix(ending_of(file))


def _numbered(stem: str) -> tuple[str, int | None, int | None]:
    """Return a name without its shard, the number of the shard, and how many there are."""
    if shard := _SHARD.fullmatch(stem):
        return shard[1], int(shard[2]), int(shard[3])
    numbered = _NUMBERED.fullmatch(stem)
    if numbered and (numbered[1] in _CANONICAL or numbered[1] in _PLAIN):
        return numbered[1], int(numbered[2]), None
    return stem, None, None


def _whole(parts: list[_Part], where: str) -> list[Path]:
    """Return the files of a split in the order of their shards, if each of them exists exactly once."""
    suffixes = sorted({ending_of(part.path) for part in parts})
    if len(suffixes) > 1:
        raise DataError(f"{where} exists as {' and '.join(suffixes)}; keep one of them")
    kinds = {(part.total, part.number is None) for part in parts}
    whole = any(_stem(part.path) in _CANONICAL for part in parts)
    if len(kinds) > 1 or (whole and len(parts) > 1):
        names = ", ".join(sorted(str(part.path) for part in parts)[:4])
        raise DataError(f"{where} exists in several versions, {names}; keep one of them")
    parts = sorted(parts, key=lambda part: (part.number or 0, part.path))
    for one, other in pairwise(parts):
        if one.number is not None and one.number == other.number:
            raise DataError(
                f"{where} has shard {one.number} twice: {one.path.name}, {other.path.name}; delete one"
            )
    numbers, total = {part.number for part in parts if part.number is not None}, parts[0].total
    # Shards without a total are counted from 0 or 1; a year, for example, is no such number.
    first = 1 if total is None and min(numbers, default=0) == 1 else 0
    if numbers and (total is not None or min(numbers) < 1000):
        wanted = (
            range(first, first + total) if total is not None else range(first, max(numbers) + 1)
        )
        if missing := sorted(set(wanted) - numbers):
            raise DataError(
                f"{where} lacks shard {missing[0]} of {len(wanted)} in the folder of "
                f"{parts[0].path.name}; fetch the data set again"
            )
    return [part.path for part in parts]


def _declared(folder: Path) -> dict[str, dict[str, list[_Part]]]:
    """Return the configurations that the head of a README.md names; none if it names none."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        content = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise DataError(
            f"{readme} starts with YAML that cannot be read; mend or delete the file"
        ) from None
    configs = content.get("configs") if isinstance(content, dict) else None
    found: dict[str, dict[str, list[_Part]]] = {}
    for entry in configs if isinstance(configs, list) else ():
        if not isinstance(entry, dict) or "data_files" not in entry:
            continue
        name = str(entry.get("config_name", "default"))
        splits = _declared_splits(folder / str(entry.get("data_dir", "")), entry["data_files"])
        lacking = [split for split, parts in splits.items() if not parts]
        if lacking and len(lacking) < len(splits):
            raise DataError(
                f"{readme} names files for the split {lacking[0]!r} of configuration {name!r}, but none "
                "of them exists; fetch the data set again"
            )
        # Configurations that were not downloaded cannot be chosen.
        if not lacking:
            found[name] = splits
    return found


def _declared_splits(root: Path, files: Any) -> dict[str, list[_Part]]:
    if isinstance(files, Mapping):
        entries = list(files.items())
    elif isinstance(files, list) and all(isinstance(each, Mapping) for each in files):
        entries = [(each.get("split", "train"), each.get("path", ())) for each in files]
    else:
        entries = [("train", files)]
    found: dict[str, list[_Part]] = {}
    for split, patterns in entries:
        several = map(str, patterns if isinstance(patterns, list) else [patterns])
        # A pattern out of somebody's file must not lead out of the folder.
        inside = [each for each in several if each and ".." not in Path(each).parts]
        globbed = [root.glob(each) for each in inside if not each.startswith("/")]
        paths = sorted({path for each in globbed for path in each if ending_of(path)})
        found[str(split)] = [
            _Part(path, "", str(split), *_numbered(_stem(path))[1:]) for path in paths
        ]
    return found
