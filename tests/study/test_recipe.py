"""Recipes: what is written is what runs, and a mistake is named with the nearest right word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distillens.errors import RecipeError
from distillens.study import packaged_recipes, parse_recipe, read_recipe


def edited(tiny: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    target: Any = tiny
    *way, last = key.split(".")
    for part in way:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    target[int(last) if isinstance(target, list) else last] = value
    return tiny


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sedes", [1], "unknown key 'sedes'; did you mean 'seeds'"),
        ("student.trainig", {}, "unknown key 'student.trainig'; did you mean 'training'"),
        (
            "student.training.learning_rates",
            1,
            "unknown key 'student.training.learning_rates'; did you mean 'learning_rate'",
        ),
        (
            "supervisions.1.temprature",
            4,
            "unknown key 'supervisions.1.temprature'; did you mean 'temperature'",
        ),
        ("data.augmentation.crops", 2, "did you mean 'crop'"),
        ("student.model.hiden", [3], "no argument 'hiden'; did you mean 'hidden'"),
        ("student.model.name", "lenet", "no model 'lenet'; did you mean 'lenet5'"),
        ("student.training.epochs", "many", "student.training.epochs: .*integer.* got 'many'"),
        ("student.training.epochs", 0, "student.training.epochs: .*got 0"),
        ("supervisions.1.temperature", 0, "supervisions.1.temperature: .*greater than 0, got 0"),
        ("supervisions.1.temperature", -2, "got -2"),
        ("supervisions.1.temperature", float("nan"), "supervisions.1.temperature"),
        ("supervisions.1.alpha", 1.5, "supervisions.1.alpha: .*less than or equal to 1, got 1.5"),
        ("supervisions.1.kind", "ofline", "supervisions.1: .*'ofline'"),
        ("supervisions.1", {"kind": "one-hot"}, "two supervisions are called 'no KD'"),
        ("supervisions.1.name", "teacher", "a supervision is called 'teacher'"),
        ("seeds", [1, 1], "seeds must differ"),
        ("data.source", "idx", "needs data.path"),
        ("teacher.checkpoint", "a.pt", "exactly one of training, checkpoint, logits and run"),
        ("complexity.epochs", [9], "complexity.epochs names 9"),
        ("student.model.name", "os:system", "pass --trust-code"),
        ("loss", "squared", "loss: .*got 'squared'"),
        ("student.training.optimizer", "lion", "student.training.optimizer: .*got 'lion'"),
        (
            "student.training",
            {"epochs": 1, "learning_rate": 0.1, "optimizer": "adam", "momentum": 0.5},
            "momentum 0.5 belongs to optimizer sgd",
        ),
        ("student.training.schedule.milestones", [0.5, 0.2], "milestones must increase"),
    ],
)
def test_mistakes_are_named(tiny: dict[str, Any], key: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(edited(tiny, key, value))
    assert "\n" not in str(caught.value)


def test_an_online_teacher_needs_a_trajectory(tiny: dict[str, Any]) -> None:
    tiny["teacher"] = {"model": {"name": "mlp"}, "checkpoint": "a.safetensors"}
    with pytest.raises(RecipeError, match="needs the checkpoints of a teacher trained here"):
        parse_recipe(tiny)


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_overrides_reach_dotted_keys_and_list_places(tiny: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", tiny)
    recipe = read_recipe(
        path,
        [
            "seeds=[3, 4]",
            "student.training.epochs=7",
            "supervisions.1.temperature=2.5",
            "complexity=null",
            "data.augmentation.crop=1",
        ],
    )
    assert recipe.seeds == (3, 4)
    assert recipe.student.training.epochs == 7
    assert recipe.supervisions[1].title == "offline τ=2.5"
    assert recipe.complexity is None
    assert recipe.data.augmentation.crop == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds", "not of the form key=value"),
        ("supervisions.9.alpha=1", "no place in a list of 3"),
        ("name.x=1", "has no keys inside"),
        ("student.epochs=2", "unknown key 'student.epochs'"),
    ],
)
def test_bad_overrides_are_refused(
    tiny: dict[str, Any], tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(write(tmp_path / "a.yaml", tiny), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "'name' stands twice"),
        ("- 1\n", "not keys"),
        ("a: [", "no readable YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "no readable YAML"),
    ],
)
def test_yaml_is_loaded_safely(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(write(tmp_path / "a.yaml", text))


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'digits'"):
        read_recipe("digts")


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_shipped_recipes_are_valid_and_resolve_to_themselves(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.description
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
