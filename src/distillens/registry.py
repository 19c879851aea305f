"""Names under which supervisions, data sources, models and analyses are found.

A registry is filled from two sides. Each module of the package that it names registers what it
defines. Installed distributions add to it by entry points of the group ``distillens.plugins``: each
entry point names a module, which is imported once and registers what it defines.

    [project.entry-points."distillens.plugins"]
    my-lab = "my_lab.distillation"
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from distillens.errors import DistillensError, RecipeError, nearest

PLUGINS = "distillens.plugins"
"""The group of entry points."""

Item = TypeVar("Item")
Registered = TypeVar("Registered")


class Registry(Generic[Item]):
    """Classes or functions by name.

    Parameters
    ----------
    noun
        Word for an item in messages, such as ``"supervision"``.
    package
        Dotted name of a module, or of a package whose modules, register the built-in items. They are
        imported at the first lookup.

    Examples
    --------
    >>> losses = Registry("loss")
    >>> @losses.register("zero")
    ... def zero(logits):
    ...     return 0 * logits.sum()
    >>> losses.get("zero") is zero
    True
    >>> losses.names()
    ('zero',)
    """

    def __init__(self, noun: str, package: str | None = None) -> None:
        self.noun = noun
        self._package = package
        self._items: dict[str, Item] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a decorator that registers a class or function under a name and returns it.

        Raises
        ------
        RecipeError
            The name is empty, or is registered for another class or function.
        """
        if not name or name != name.strip():
            raise RecipeError(f"a {self.noun} cannot be registered as {name!r}; give it a name")

        def add(item: Registered) -> Registered:
            known: Any = self._items.get(name)
            if known is not None and _origin(known) != _origin(item):
                raise RecipeError(
                    f"the {self.noun} {name!r} is registered by {_origin(known)} and by "
                    f"{_origin(item)}; give one of them another name"
                )
            self._items[name] = item  # pyright: ignore[reportArgumentType]
            return item

        return add

    def get(self, name: str) -> Item:
        """Return the class or function that is registered under a name.

        Raises
        ------
        RecipeError
            Nothing has this name (the message names the closest one), or a plugin cannot be imported.
        """
        self._load()
        if name not in self._items:
            raise RecipeError(f"no {self.noun} {name!r}{nearest(name, self._items)}")
        return self._items[name]

    def names(self) -> tuple[str, ...]:
        """Return all registered names, sorted.

        Raises
        ------
        RecipeError
            A plugin cannot be imported.
        """
        self._load()
        return tuple(sorted(self._items))

    def _load(self) -> None:
        if self._package is not None:
            import_modules(self._package)
        load_plugins()


@cache
def import_modules(package: str) -> None:
    """Import a module and, of a package, every module in it."""
    found = importlib.import_module(package)
    for module in pkgutil.iter_modules(getattr(found, "__path__", ()), f"{package}."):
        importlib.import_module(module.name)


@cache
def load_plugins() -> None:
    """Import the modules that installed distributions name as plugins, once.

    Raises
    ------
    RecipeError
        One of them cannot be imported; the message names it.
    """
    for point in entry_points(group=PLUGINS):
        try:
            point.load()
        except DistillensError as error:
            raise RecipeError(f"the plugin {_told(point)} cannot be used: {error}") from error
        # A plugin's code may fail in any way.
        except Exception as error:
            text = " ".join(str(error).split())[:240]
            raise RecipeError(
                f"the plugin {_told(point)} cannot be imported: {type(error).__name__}: {text}; "
                "repair or uninstall it"
            ) from error


def _told(point: Any) -> str:
    owner = "" if point.dist is None else f" of {point.dist.name}"
    return f"{point.name!r} ({point.value}){owner}"


def _origin(item: Any) -> str:
    item = getattr(item, "func", item)  # of functools.partial
    return f"{getattr(item, '__module__', '?')}.{getattr(item, '__qualname__', repr(item))}"
