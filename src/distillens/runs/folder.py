"""Make, check and lock a run folder."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from distillens.errors import RunError
from distillens.files.atomic import write_atomically
from distillens.files.yaml_values import dump_yaml, load_yaml
from distillens.runs.layout import LOCK, Run

FREE_KEYS = (
    "data.path", "description", "complexity", "deviation", "cache_gigabytes", "cache_on_disk",
    "trackers", "code",
)  # fmt: skip
"""Keys in which a resumed run may differ, with all below them: none of them changes a network, and
what lies at the path is compared by its fingerprint."""


def open_run(
    folder: Path,
    recipe: Mapping[str, Any],
    as_now: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Run:
    """Make a run folder for a resolved recipe, or open the one that this recipe made.

    A folder in which no epoch was finished yet takes another recipe: a start that failed does not
    block the corrected one.

    Raises
    ------
    RunError
        As :func:`check_folder`.
    """
    check_folder(folder, recipe, as_now)
    run = Run(folder)
    if not run.has_trained:
        run.data.unlink(missing_ok=True)
    write_atomically(run.recipe, _as_yaml(recipe))
    return run


def check_folder(
    folder: Path,
    recipe: Mapping[str, Any],
    as_now: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Check that a folder can hold the run of a resolved recipe; nothing is written.

    ``as_now`` brings a recipe that an earlier version wrote to the keys of today; it leaves one of
    today as it is, but for values that mean the same.

    Raises
    ------
    RunError
        The folder belongs to another recipe, or holds something that is no run.
    """
    run = Run(folder)
    if run.recipe.is_file():
        _refuse_links(run)
        if not run.has_trained:
            return
        before = _flat(as_now(_read_yaml(run.recipe)))
        now = _flat(as_now(json.loads(json.dumps(recipe))))
        for key in sorted({*before, *now}):
            free = any(key == name or key.startswith(f"{name}.") for name in FREE_KEYS)
            if not free and before.get(key) != now.get(key):
                raise RunError(
                    f"{folder} was made by another recipe: {key} is {before.get(key)!r} there and "
                    f"{now.get(key)!r} here; choose another --out"
                )
    # A lock alone is left of a run that could not begin.
    elif folder.exists() and (
        not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())
    ):
        raise RunError(f"{folder} exists and is no run folder; choose another --out")


def _as_yaml(recipe: Mapping[str, Any]) -> str:
    return dump_yaml(json.loads(json.dumps(recipe)))


def _refuse_links(run: Run) -> None:
    """Refuse a run that a link could make read or write outside itself."""
    for path in run.folder.rglob("*"):
        if path.is_symlink():
            raise RunError(f"{path} is a link, which a run may not hold; remove it")


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold a run folder for this process, and make it where there is none.

    The lock goes with the process however it ends.

    Raises
    ------
    RunError
        Another process is working on it.
    """
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make {run.folder}: {error.strerror}; choose another --out"
        ) from None
    lock = os.open(run.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise RunError(f"another process is working on {run.folder}; wait for it") from None
    try:
        yield
    finally:
        os.close(lock)


def find_run(folder: Path) -> Run:
    """Return a run that is there.

    Raises
    ------
    RunError
        The folder is no run.
    """
    run = Run(folder)
    if not run.recipe.is_file():
        raise RunError(f"{folder} is no run folder: it has no recipe.yaml")
    _refuse_links(run)
    return run


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise RunError(f"{path} cannot be read: {text}; choose another --out") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} is no recipe; choose another --out")
    return content


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items = [(f"{prefix}.{key}" if prefix else str(key), part) for key, part in value.items()]
    elif isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        items = [(f"{prefix}.{place}", part) for place, part in enumerate(value)]
    else:
        return {prefix: value}
    return {key: leaf for name, part in items for key, leaf in _flat(part, name).items()}
