"""From a YAML file and overrides to a recipe, with errors that name the key and the nearest one."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from distillens.data.recipe import DataRecipe
from distillens.data.sources.source import SOURCES
from distillens.errors import DataError, DistillensError, RecipeError, nearest, one_line
from distillens.files.paths import user_path
from distillens.files.yaml_values import Loader, load_yaml
from distillens.models.registry import check_model
from distillens.runs.layout import other_epochs
from distillens.study.recipe import RECIPES, Recipe, TeacherRecipe
from distillens.supervision.recipe import SUPERVISIONS, SupervisionEntry, parts_of

REPLACED = {"budget/cifar100-full": "budget/cifar100-long"}
"""Names of removed recipes, with their replacements."""


class _Loader(Loader):
    """Safe loader that refuses duplicate keys, of which YAML would keep the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Checked before construction, which writes merged keys (<<) into the node.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return node


def packaged_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    packaged = Path(str(files("distillens"))) / "_recipes"
    # An editable install reads them where they are written.
    folder = packaged if packaged.is_dir() else Path(__file__).parents[3] / "recipes"
    found = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def describe(path: Path) -> str:
    """Return the description of a recipe on one line."""
    return " ".join(str(load_recipe(path).get("description", "")).split())


def read_recipe(
    where: str | Path, overrides: Sequence[str] = (), *, trust_code: bool = False
) -> Recipe:
    """Read a recipe file (or a recipe of the package, by name) and apply ``key=value`` overrides.

    ``module:function`` names are imported from the folder of the file first.

    Raises
    ------
    RecipeError
        The file is missing or no YAML, a key is unknown, a value has the wrong type or range.
    """
    content, named = read_content(where, overrides)
    recipe = parse_recipe(content, trust_code=trust_code)
    if any(recipe.custom_parts()):
        return recipe
    if named is not None:
        raise RecipeError(
            f"code is {named!r}, a folder for names such as module:function, and the "
            "recipe has none; leave it out"
        )
    return recipe.model_copy(update={"code": None})


def read_content(
    where: str | Path, overrides: Sequence[str] = ()
) -> tuple[dict[str, Any], str | None]:
    """Return the plain values of a recipe file with overrides, unchecked.

    ``code`` is set to the folder of the file unless the recipe names another, which is the second
    value.

    Raises
    ------
    RecipeError
        The file is missing or no YAML of keys.
    """
    path = _find(where)
    content = load_recipe(path)
    for override in overrides:
        override_key(content, override)
    named = content.get("code")
    if named is None or isinstance(named, str):
        content["code"] = str((path.parent / (named or ".")).resolve())
    return content, named


def recipe_type(content: dict[str, Any]) -> type[Recipe]:
    """Return the class of a recipe that is given as plain values.

    Raises
    ------
    RecipeError
        It names a kind of recipe that does not exist.
    """
    kind = content.get("kind")
    return Recipe if kind is None else RECIPES.get(str(kind))


def validated(content: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """Return the recipe that plain values describe, and all problems of these, one sentence each."""
    made = recipe_type(content)
    try:
        recipe = made.model_validate(content)
    except ValidationError as error:
        return None, [_explain(made, each) for each in error.errors()]
    try:
        recipe.model_dump(mode="json")
    # Arguments of models are of any type, and a YAML alias can make a value contain itself.
    except ValueError as error:
        text = one_line(error)[:120]
        return None, [
            f"the recipe has a value that YAML cannot hold ({text}); write it without an alias"
        ]
    return recipe, []


def missing_places(recipe: Recipe) -> list[str]:
    """Return all problems of the files and folders that a recipe names, one sentence each.

    Names of data sets on a hub, and others that are no paths on this machine, are not checked.
    """
    data, teacher = recipe.data, recipe.teacher
    found: list[tuple[Path, str]] = []
    if problem := data.settings().problem():
        found.append((Path(data.path or "."), problem))
    found += missing_files(teacher)
    if teacher.run is not None and not ((path := Path(teacher.run)) / "recipe.yaml").is_file():
        text = f"{teacher.run} is no run folder: it has no recipe.yaml; see teacher.run"
        found.append((path, text))
    # The recipe may lie in another folder than the one that the command is run in.
    hint = f" (a relative path is counted from the current folder, {Path.cwd()})"
    return [text if path.is_absolute() else f"{text}{hint}" for path, text in found]


def missing_files(teacher: TeacherRecipe) -> list[tuple[Path, str]]:
    """Return the missing files of a given teacher, and for each a sentence that says so."""
    return [
        (path, f"no file {path}; {key} must name one{other_epochs(path)}")
        for key, path in teacher.given_files.items()
        if not path.is_file()
    ]


def check_places(recipe: Recipe) -> None:
    """Refuse a recipe that names a missing file or folder.

    Raises
    ------
    DataError
        Names the first one and its key.
    """
    for problem in missing_places(recipe):
        raise DataError(problem)


def parse_recipe(content: dict[str, Any], *, trust_code: bool = False) -> Recipe:
    """Check a recipe given as plain values.

    Raises
    ------
    RecipeError
        As :func:`read_recipe`.
    """
    recipe, problems = validated(content)
    if recipe is None:
        raise RecipeError(problems[0])
    for error in part_errors(recipe, trust_code=trust_code):
        raise error
    return recipe


def part_errors(recipe: Recipe, *, trust_code: bool) -> Iterator[DistillensError]:
    """Yield what is wrong with the models and losses that a recipe names."""
    for model in (recipe.student.model, recipe.teacher.model):
        if model is not None:
            try:
                check_model(model, trust_code=trust_code)
            except DistillensError as error:
                yield error
    for part in (part for entry in recipe.supervisions for part in parts_of(entry)):
        loss = getattr(part, "loss", None)
        if loss is not None and loss.is_custom:
            # Imports torch, which recipes without user code do not need.
            from distillens.supervision.build import check_losses

            try:
                check_losses(part, trust_code=trust_code)
            except DistillensError as error:
                yield error


def as_of_today(content: dict[str, Any]) -> dict[str, Any]:
    """Return a stored recipe with the keys of later versions at their defaults."""
    try:
        recipe = recipe_type(content).model_validate(content)
        return with_periods(recipe.model_dump(mode="json"))
    except (ValidationError, RecipeError):
        # Not readable any more: compared as it is, which names the key that differs.
        return content


def with_periods(content: dict[str, Any]) -> dict[str, Any]:
    """Return a dumped recipe with a period of one epoch where an online entry names none.

    Runs of earlier versions hold that period. It is the same as none wherever a run can have it: a
    teacher that keeps fewer checkpoints is refused together with a period of one epoch.
    """
    for entry in content["supervisions"]:
        for part in (entry, entry.get("first"), entry.get("then")):
            if part and part["kind"] == "online" and part["period"] is None:
                part["period"] = {"epochs": 1, "steps": None}
    return content


def load_recipe(where: str | Path) -> dict[str, Any]:
    """Return the unchecked plain values of a recipe file, or of a recipe of the package.

    Raises
    ------
    RecipeError
        It is missing or no YAML of keys.
    """
    path = _find(where)
    try:
        content = load_yaml(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OSError) as error:
        raise RecipeError(f"{path} is no readable YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} is no recipe: it holds a {type(content).__name__}, not keys")
    return content


def _find(where: str | Path) -> Path:
    path = user_path(where)
    # Unlike methods of Path, these do not fail for a name that is too long for the file system.
    if os.path.isfile(path):  # noqa: PTH113
        return path
    packaged = packaged_recipes()
    if str(where) in packaged:
        return packaged[str(where)]
    if os.path.isdir(path):  # noqa: PTH112
        inside = path / "recipe.yaml"
        hint = f", such as {inside}" if inside.is_file() else ""
        raise RecipeError(f"{path} is a folder; name the file of a recipe{hint}")
    name = str(where).removeprefix("recipes/").removesuffix(".yaml")
    if name in REPLACED:
        raise RecipeError(f"the recipe {name!r} was removed; use {REPLACED[name]!r}")
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(f"there is no recipe {path}; check the path")
    raise RecipeError(f"no recipe {str(where)!r}{nearest(str(where), packaged)}")


def override_key(content: dict[str, Any], override: str) -> None:
    """Apply ``key=value``, with a dotted key, to the plain values of a recipe."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"override {override!r} is not of the form key=value")
    try:
        value = load_yaml(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        value = text
    *way, last = key.strip().split(".")
    target: Any = content
    for part in way:
        place = _place(target, part, key)
        if isinstance(target, dict) and target.get(part) is None:
            target[part] = {}
        target = target[place]
        if not isinstance(target, (dict, list)):
            raise RecipeError(f"override {key}: {part!r} is {target!r} and has no keys inside")
    target[_place(target, last, key)] = value


def _place(target: dict[str, Any] | list[Any], part: str, key: str) -> Any:
    """Return the key, or the position in a list, that a part of a dotted key names."""
    if isinstance(target, dict):
        return part
    if not part.isdigit() or int(part) >= len(target):
        raise RecipeError(
            f"override {key}: {part!r} is no place in a list of {len(target)}; "
            f"use 0 to {len(target) - 1}"
        )
    return int(part)


_IN_YAML = {
    "tuple_type": "a list is needed",
    "list_type": "a list is needed",
    "model_type": "keys with values are needed",
    "dict_type": "keys with values are needed",
}
"""Expected YAML values, by pydantic's error type."""


def _explain(made: type[Recipe], error: ErrorDetails) -> str:
    location = error["loc"]
    # A location also names the member of a union that was tried; only keys and places are shown.
    keys = _all_keys(made)
    unknown = error["type"] == "extra_forbidden"
    parts = [part for part in location if isinstance(part, int) or part in keys]
    if unknown and (not parts or parts[-1] != location[-1]):
        parts.append(location[-1])
    where = ".".join(map(str, parts)) or "the recipe"
    if unknown:
        known = _keys_at(made, location[:-1])
        return f"unknown key {where!r}{nearest(str(location[-1]), known)}"
    if error["type"] == "missing":
        return f"{where!r} is missing; the recipe must set it"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {message}"
    context = error.get("ctx", {})
    if error["type"] == "too_short":
        message = f"the list needs at least {context['min_length']} entries"
    message = _IN_YAML.get(error["type"], message)
    shown = repr(error["input"])
    return f"{where}: {message}, got {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _keys_at(kind: Any, location: Sequence[int | str]) -> set[str]:
    """Return the keys that a part of the recipe knows, following an error's location."""
    if location[:1] == ("supervisions",) and "training" in location:
        # What a supervision overrides are keys of the student's training.
        location = ("student", *location[location.index("training") :])
    models = _models(kind)
    for part in location:
        if isinstance(part, int):
            continue
        inner = [
            model.model_fields[part].annotation for model in models if part in model.model_fields
        ]
        # The tag of a union member is no field: keep the member that carries it.
        # One that is told by a function, as a normalisation is, has no tag in the recipe.
        tagged = [SUPERVISIONS.get(str(part))] if part in SUPERVISIONS.names() else models
        models = [m for kind in inner for m in _models(kind)] if inner else tagged
    return {name for model in models for name in model.model_fields}


def _all_keys(kind: Any) -> set[str]:
    """Return the keys of a model and of everything inside it."""
    models, seen = _models(kind), set()
    while models:
        model = models.pop()
        if model not in seen:
            seen.add(model)
            models += [m for f in model.model_fields.values() for m in _models(f.annotation)]
    return {name for model in seen for name in model.model_fields}


def _models(kind: Any) -> list[type[BaseModel]]:
    if kind is SupervisionEntry:
        return [SUPERVISIONS.get(name) for name in SUPERVISIONS.names()]
    if kind is DataRecipe:
        return [DataRecipe, *(SOURCES.get(name) for name in SOURCES.names())]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    if typing.get_origin(kind) is not None or isinstance(kind, types.UnionType):
        return [model for part in typing.get_args(kind) for model in _models(part)]
    return []
