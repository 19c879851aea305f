"""Runs that are repetitions of one another: one recipe, other seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from distillens.errors import RunError
from distillens.runs.folder import FREE_KEYS
from distillens.study.recipe import Recipe

SEEDS = ("seed", "seeds", "features_seed")
"""Keys, at any depth, in which repetitions may differ."""

IGNORED_KEYS = ("name", *FREE_KEYS)
"""Keys that do not influence the networks."""


def check_comparable(recipes: Sequence[tuple[str, Recipe]]) -> None:
    """Refuse runs, given by name and recipe, that differ in more than seeds.

    Raises
    ------
    RunError
        Two recipes differ; the key and both values are named. Or there is no run.
    """
    if not recipes:
        raise RunError("no run was given; name at least one run folder")
    (first, at_first), *others = (
        (name, _leaves(recipe.model_dump(mode="json"))) for name, recipe in recipes
    )
    for other, at_other in others:
        for key in sorted({*at_first, *at_other}):
            here, there = at_first.get(key), at_other.get(key)
            if here != there:
                raise RunError(
                    f"{first} and {other} are of different recipes: {key} is {here} and {there}; "
                    "give runs that differ in seeds alone"
                )


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        name = f"{prefix}.{key}" if prefix else str(key)
        if key in SEEDS or name in IGNORED_KEYS:
            continue
        if isinstance(part, (dict, list)) and part:
            found |= _leaves(part, name)
        else:
            found[name] = json.dumps(part)
    return found
