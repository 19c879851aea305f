"""The files of a downloaded data set: their configuration, split and shard.

The layouts are those of the Hugging Face hub: ``train-00000-of-00002.parquet`` (also below ``data/``
or below a folder for each configuration), ``default/train/0000.parquet``, ``train.parquet``, and what
the ``configs`` at the head of a ``README.md`` name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from distillens.data.sources.folders import visible_files
from distillens.errors import DataError, nearest

_CANONICAL = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
"""Splits by the names under which they are found."""
SUFFIXES = (".parquet", ".arrow", ".jsonl", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
"""Endings of tables."""
ROOT = "."
"""Name of the configuration whose files lie in the folder itself."""

_SHARD = re.compile(r"(.*?)[-_.](\d{1,6})-of-(\d{1,6})(?:[-.][0-9a-f]{8,})?")
_NUMBERED = re.compile(r"(.*?)[-_.]?(\d+)")
_PREFIXED = re.compile(rf"(.+)[-_.]({'|'.join(_CANONICAL)})")
_PLAIN = frozenset(("", "part", "shard", "data", "chunk"))
"""Names that do not identify a split."""

Splits = dict[str, list[Path]]
"""Files of each split, by its name in the folder."""


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
    configs = _declared(folder)
    by_readme = bool(configs)
    if not by_readme:
        for file in filter(ending_of, visible_files(folder)):
            name, split = _config_and_split(folder, file)
            configs.setdefault(name, {}).setdefault(split, []).append(file)
    with_train = [name for name, splits in configs.items() if "train" in map(split_of, splits)]
    chosen = with_train if config is None else [config]
    if config is not None and config not in configs:
        raise DataError(
            f"{folder} has no configuration {config!r}{nearest(config, configs)}; "
            "data.config must name one"
        )
    if len(chosen) > 1:
        raise DataError(
            f"{folder} holds {len(chosen)} configurations with training examples: "
            f"{', '.join(sorted(chosen))}; choose one, for example with data.config={max(chosen)}"
        )
    if not chosen:
        known = sorted({split for splits in configs.values() for split in splits})
        named = f" among its splits {known}" if known else ""
        raise DataError(
            f"{folder} holds no train*.parquet, train.tsv or train.csv{named}; a split named 'train' is "
            "needed"
        )
    found: Splits = {}
    for split, files in configs[chosen[0]].items():
        # Folders that a README.md names for one split are parts of it, each with its own shards.
        folders: dict[Path, list[Path]] = {}
        for file in files:
            folders.setdefault(file.parent if by_readme else folder, []).append(file)
        where = f"{folder}: split {split!r}"
        found[split] = [file for each in folders.values() for file in _whole(each, where)]
    return found


def _config_and_split(folder: Path, file: Path) -> tuple[str, str]:
    """Return the configuration and the split that the path of a file names."""
    parents = list(file.relative_to(folder).parts[:-1])
    name, _, _ = _numbered(file)
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
    return "/".join([*parents, prefix] if prefix else parents) or ROOT, name


def _stem(file: Path) -> str:
    return file.name.lower().removesuffix(ending_of(file))


def _numbered(file: Path) -> tuple[str, int | None, int | None]:
    """Return the name of a file without its shard, the number of the shard, and how many there are."""
    stem = _stem(file)
    if shard := _SHARD.fullmatch(stem):
        return shard[1], int(shard[2]), int(shard[3])
    numbered = _NUMBERED.fullmatch(stem)
    if numbered and (numbered[1] in _CANONICAL or numbered[1] in _PLAIN):
        return numbered[1], int(numbered[2]), None
    return stem, None, None


def _whole(files: list[Path], where: str) -> list[Path]:
    """Return the files of a split in the order of their shards, if each of them exists exactly once."""
    suffixes = sorted(set(map(ending_of, files)))
    if len(suffixes) > 1:
        raise DataError(f"{where} exists as {' and '.join(suffixes)}; keep one of them")
    shards = {file: _numbered(file)[1:] for file in files}
    kinds = {(total, number is None) for number, total in shards.values()}
    whole = any(_stem(file) in _CANONICAL for file in files)
    if len(kinds) > 1 or (whole and len(files) > 1):
        names = ", ".join(sorted(map(str, files))[:4])
        raise DataError(f"{where} exists in several versions, {names}; keep one of them")
    files = sorted(files, key=lambda file: (shards[file][0] or 0, file))
    numbers = [number for file in files if (number := shards[file][0]) is not None]
    if not numbers:
        return files
    total = shards[files[0]][1]
    for place, number in enumerate(numbers[1:]):
        if number == numbers[place]:
            names = f"{files[place].name}, {files[place + 1].name}"
            raise DataError(f"{where} has shard {number} twice: {names}; delete one")
    # Shards without a total are counted from 0 or 1; a year, for example, is no such number.
    first = 1 if total is None and numbers[0] == 1 else 0
    end = numbers[-1] + 1 if total is None else first + total
    missing = sorted(set(range(first, end)).difference(numbers))
    if missing and (total is not None or numbers[0] < 1000):
        raise DataError(
            f"{where} lacks shard {missing[0]} of {end - first} in the folder of {files[0].name}; "
            "fetch the data set again"
        )
    return files


def _declared(folder: Path) -> dict[str, Splits]:
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
    found: dict[str, Splits] = {}
    for entry in configs if isinstance(configs, list) else ():
        if not isinstance(entry, dict) or "data_files" not in entry:
            continue
        name = str(entry.get("config_name", "default"))
        splits = _declared_splits(folder / str(entry.get("data_dir", "")), entry["data_files"])
        lacking = [split for split, files in splits.items() if not files]
        if lacking and len(lacking) < len(splits):
            raise DataError(
                f"{readme} names files for the split {lacking[0]!r} of configuration {name!r}, but none "
                "of them exists; fetch the data set again"
            )
        # Configurations that were not downloaded cannot be chosen.
        if splits and not lacking:
            found[name] = splits
    return found


def _declared_splits(root: Path, files: Any) -> Splits:
    if isinstance(files, Mapping):
        entries = list(files.items())
    elif isinstance(files, list) and all(isinstance(each, Mapping) for each in files):
        entries = [(each.get("split", "train"), each.get("path", ())) for each in files]
    else:
        entries = [("train", files)]
    found: Splits = {}
    for split, patterns in entries:
        several = map(str, patterns if isinstance(patterns, list) else [patterns])
        # A pattern out of somebody's file must not lead out of the folder.
        inside = [each for each in several if each and ".." not in Path(each).parts]
        globbed = [root.glob(each) for each in inside if not each.startswith("/")]
        found[str(split)] = sorted({file for each in globbed for file in each if ending_of(file)})
    return found
