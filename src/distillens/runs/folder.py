"""Create, check and lock a run folder."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from distillens.errors import RunError, one_line
from distillens.files.atomic import write_atomically
from distillens.files.yaml_values import dump_yaml, load_yaml
from distillens.results.training import NetworkId
from distillens.runs.layout import LOCK, Run
from distillens.runs.read import read_json

FREE_KEYS = (
    "data.path", "description", "complexity", "deviation", "cache_gigabytes", "cache_on_disk",
    "trackers", "code",
)  # fmt: skip
"""Keys in which a resumed run may differ, with all below them: none of them changes a network, and
the data at the path are compared by their fingerprint."""


def open_run(
    folder: Path,
    recipe: Mapping[str, Any],
    as_now: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Run:
    """Create a run folder for a resolved recipe, or open the one of this recipe.

    A folder in which no epoch was finished yet takes another recipe, so that a failed start does not
    block the corrected recipe. Afterwards ``recipe.yaml`` is never changed.

    Returns
    -------
    Run
        The files ``recipe.yaml`` and ``results.json`` that belong to the recipe: those of the run, or
        those of an addition (see `check_folder`). The networks lie in the run itself.

    Raises
    ------
    RunError
        As `check_folder`.
    """
    stage, run = check_folder(folder, recipe, as_now), Run(folder)
    if not run.has_trained:
        run.data.unlink(missing_ok=True)
    if not (run.has_trained and stage.recipe.is_file()):
        write_atomically(stage.recipe, dump_yaml(_plain(recipe)))
    return stage


def check_folder(
    folder: Path,
    recipe: Mapping[str, Any],
    as_now: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Run:
    """Check that a folder can hold the run of a resolved recipe; nothing is written.

    A recipe that differs from the one of a finished run by further seeds and by further supervisions
    at the end of the list is an addition to that run.

    Parameters
    ----------
    folder
        The run folder, which need not exist.
    recipe
        The resolved recipe.
    as_now
        Converts a recipe of an earlier version to the current keys.

    Returns
    -------
    Run
        The files that belong to the recipe, as `open_run`.

    Raises
    ------
    RunError
        The folder belongs to another recipe, or is not a run folder.
    """
    run = Run(folder)
    if not run.recipe.is_file():
        # A run that could not start leaves only a lock.
        there = folder.iterdir() if folder.is_dir() else [folder] if folder.exists() else []
        if any(path.name != LOCK for path in there):
            raise RunError(f"{folder} exists and is no run folder; choose another --out")
        return run
    _refuse_links(run)
    if not run.has_trained:
        return run
    now = as_now(_plain(recipe))
    stages = run.stages()
    recipes = [as_now(read_recipe_values(stage)) for stage in stages]
    for stage, before in reversed(list(zip(stages, recipes, strict=True))):
        if difference(before, now) is None:
            return stage
    _check_addition(folder, recipes[-1], now)
    if not stages[-1].results.is_file() or read_json(stages[-1].results).get("open_cells"):
        raise RunError(
            f"{folder} is not finished, so nothing can be added to it; run its recipe "
            f"{stages[-1].recipe} again first"
        )
    return run.addition(len(stages))


def _check_addition(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a recipe only adds seeds and supervisions to an earlier one."""
    entries, further = (each["supervisions"] for each in (before, now))
    grown = {**now, "seeds": before["seeds"], "supervisions": entries}
    kept = [
        {**entry, "seeds": old["seeds"]}
        for old, entry in zip(entries, further[: len(entries)], strict=False)
    ]
    found = difference(before, grown) or difference(
        {"supervisions": entries}, {"supervisions": kept}
    )
    lost = sorted(students_of(before) - students_of(now))
    if found is None and lost:
        found = ("seeds", before["seeds"], now["seeds"])
    if found is not None:
        key, there, here = found
        raise RunError(
            f"{folder} was made by another recipe: {key} is {there!r} there and {here!r} here; choose "
            "another --out, or give the recipe of the run with further seeds or with further "
            "supervisions at the end"
        )
    if before.get("tune") is not None:
        raise RunError(
            f"{folder} selected learning rates by tune with its own seeds, so nothing can be added to "
            "it; choose another --out"
        )


def difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first key in which two resolved recipes differ, with both values.

    Keys that change no network (`FREE_KEYS`) are not compared. None where nothing differs.
    """
    old, new = _flat(before), _flat(now)
    for key in sorted({*old, *new}):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_KEYS)
        if not free and old.get(key) != new.get(key):
            return key, old.get(key), new.get(key)
    return None


def students_of(recipe: Mapping[str, Any]) -> set[NetworkId]:
    """Return the identities of the students that a resolved recipe names."""
    return {
        NetworkId(position, seed)
        for position, entry in enumerate(recipe["supervisions"])
        for seed in recipe["seeds"]
        if entry.get("seeds") is None or seed in entry["seeds"]
    }


def more_seeds(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether a recipe has further seeds for a supervision that an earlier one has, too."""
    old = students_of(before)
    known = {one.supervision for one in old}
    return any(one.supervision in known for one in students_of(now) - old)


def latest_recipe(run: Run) -> Path:
    """Return the file of the recipe with everything that was added to a run."""
    return run.stages()[-1].recipe


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(recipe))


def _refuse_links(run: Run) -> None:
    """Refuse a run that a link could make read or write outside itself."""
    for path in run.folder.rglob("*"):
        if path.is_symlink():
            raise RunError(f"{path} is a link, which a run may not hold; remove it")


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Lock a run folder for this process, and create it if it does not exist.

    The lock is released when the process ends, in any way.

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
    """Return an existing run.

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


def read_recipe_values(run: Run) -> dict[str, Any]:
    """Return the plain values of the recipe of a run or of an addition.

    Raises
    ------
    RunError
        The file is damaged.
    """
    path = run.recipe
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {one_line(error)}; choose another --out") from None
    if not isinstance(content, dict) or not isinstance(content.get("supervisions"), list):
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
