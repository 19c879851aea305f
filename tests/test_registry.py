"""Registries: names, errors and plugins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distillens.errors import RecipeError
from distillens.registry import Registry, load_plugins


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Install a distribution with one module, which it names as a plugin."""
    before = set(sys.modules)

    def install(module: str, text: str) -> None:
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[distillens.plugins]\nmine = {module}\n")
        monkeypatch.syspath_prepend(tmp_path)
        load_plugins.cache_clear()

    yield install
    for module in set(sys.modules) - before:
        del sys.modules[module]
    load_plugins.cache_clear()


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


def test_a_plugin_is_imported_once_and_registers(install: Callable[[str, str], None]) -> None:
    install(
        "paint_lab",
        f"from {__name__} import colours\n@colours.register('teal')\nclass Teal:\n    pass\n",
    )
    assert colours.names() == ("teal",)
    assert colours.get("teal").__module__ == "paint_lab"
    del sys.modules["paint_lab"]
    colours.names()
    assert "paint_lab" not in sys.modules


def test_a_plugin_that_fails_is_named(install: Callable[[str, str], None]) -> None:
    install("broken_lab", "import there_is_no_such_module\n")
    with pytest.raises(RecipeError) as raised:
        Registry("colour").names()
    assert str(raised.value) == (
        "the plugin 'mine' (broken_lab) of broken_lab cannot be imported: ModuleNotFoundError: "
        "No module named 'there_is_no_such_module'; repair or uninstall it"
    )
