"""Registries: names, errors and plugins."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from cases import installed
from conftest import command

from distillens.analyses.measure import measure_run
from distillens.errors import RecipeError
from distillens.models import load_state
from distillens.registry import Registry
from distillens.runs.layout import Run
from distillens.runs.read import read_arrays
from distillens.study import read_recipe, run
from distillens.supervision import SUPERVISIONS

colours: Registry[type] = Registry("colour")
"""What the plugin of a test adds to."""


def test_an_unknown_name_is_answered_with_the_closest_one() -> None:
    registry: Registry[int] = Registry("colour")
    registry.register("crimson")(1)
    registry.register("olive")(2)
    assert registry.names() == ("crimson", "olive")
    assert registry.get("olive") == 2
    with pytest.raises(RecipeError, match=r"^no colour 'crimsen'; did you mean 'crimson'\?$"):
        registry.get("crimsen")
    with pytest.raises(RecipeError, match=r"^no colour 'x'; known: crimson, olive$"):
        registry.get("x")


def test_two_items_cannot_share_a_name() -> None:
    registry: Registry[object] = Registry("colour")

    class One: ...

    class Two: ...

    registry.register("red")(One)
    registry.register("red")(One)  # A module that is imported again registers the same class.
    with pytest.raises(RecipeError, match=r"'red' is registered by .*One and by .*Two; give one"):
        registry.register("red")(Two)
    with pytest.raises(RecipeError, match="registered as ''"):
        registry.register("")


def test_a_plugin_is_imported_once_and_registers(tmp_path: Path) -> None:
    text = f"from {__name__} import colours\n@colours.register('teal')\nclass Teal:\n    pass\n"
    with installed(tmp_path, {"paint_lab.py": text}, "paint_lab"):
        assert colours.names() == ("teal",)
        assert colours.get("teal").__module__ == "paint_lab"
        del sys.modules["paint_lab"]
        colours.names()
        assert "paint_lab" not in sys.modules


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import there_is_no_such_module",
            "cannot be imported: ModuleNotFoundError: No module named 'there_is_no_such_module'; "
            "repair or uninstall it",
        ),
        (
            "from distillens.supervision import OneHot, register_supervision\n"
            "register_supervision('one-hot')(OneHot)",
            "cannot be used: the supervision 'one-hot' is registered by "
            "distillens.supervision.kinds.builtin.OneHotRecipe and by "
            "distillens.supervision.values.OneHot; give one of them another name",
        ),
    ],
)
def test_a_plugin_that_fails_is_named(tmp_path: Path, text: str, said: str) -> None:
    with installed(tmp_path, {"broken_lab.py": text}, "broken_lab"):
        with pytest.raises(RecipeError) as raised:
            SUPERVISIONS.names()
        assert str(raised.value) == f"the plugin 'mine' (broken_lab) of broken_lab {said}"


PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def test_the_page_on_extending_runs_as_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package registers a supervision, a data source, a model and an analysis, and all are used."""
    blocks = re.findall(
        r"```(?:python|yaml)\n# (my_lab/\S+|recipe\.yaml)\n(.*?)```", PAGE, re.DOTALL
    )
    files = dict(blocks)
    recipe = files.pop("recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    with installed(tmp_path, files, "my_lab"):
        result = run(read_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
        record = measure_run(tmp_path / "run", "norms", {"order": 1}, supervision="no KD")
        with pytest.raises(RecipeError, match="norms has no setting 'oder'; did you mean 'order'"):
            measure_run(tmp_path / "run", "norms", {"oder": 1})
        assert command("measure", tmp_path / "run", "norms") == 0
    assert "where right τ=2, seed 0: " in capsys.readouterr().out
    assert record.content.settings == {"order": 1.0}
    files = Run(tmp_path / "run").student(0, "no KD", 0)
    first, last = (load_state(files.weights(epoch)) for epoch in (0, 2))
    moved = sum(float((last[name] - first[name]).abs().sum()) for name in first)
    assert record.content.result["distances"]["no KD, seed 0"] == pytest.approx(moved)
    titles = [row.name for row in result.rows]
    assert titles == ["teacher", "no KD", "where right τ=2", "where right τ=1 → no KD at 0.5"]
    stored = read_arrays(Run(tmp_path / "run").student(1, "where right τ=2", 0).logits)
    assert stored["test"].shape == (100, 1)
    with pytest.raises(RecipeError, match="no kind 'where-right'"):
        read_recipe(tmp_path / "recipe.yaml", ["data={source: digits, test_size: 100}"])
