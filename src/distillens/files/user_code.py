"""Import what a recipe names as ``module:function``, its own folder first on the import path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, PrivateAttr

from distillens.errors import RecipeError, nearest


class CodePart(BaseModel):
    """A part of a recipe whose name may be ``module:function``, code that belongs to the recipe."""

    name: str
    _code_folder: Path | None = PrivateAttr(default=None)

    @property
    def is_custom(self) -> bool:
        """Whether the name is a ``module:function``."""
        return ":" in self.name

    @property
    def code_folder(self) -> Path | None:
        """Folder of ``module:function``, searched before Python's path; not part of the recipe."""
        return self._code_folder

    def look_in(self, folder: Path | None) -> None:
        """Set `code_folder`."""
        self._code_folder = folder


_modules: dict[Path, dict[str, ModuleType]] = {}
"""By folder: modules whose names other modules of this process have too."""


@contextmanager
def importable(folder: Path | None, name: str = "") -> Iterator[None]:
    """Put a folder first on the import path, for as long as the context is open.

    A module that was loaded from another place does not replace one of the folder: neither the module
    ``name`` itself, nor the modules of another recipe's folder. Both are back when the context ends.
    """
    if folder is None:
        yield
        return
    own = _modules.setdefault(folder, {})
    private = {_top(each) for each in own}
    packages = (path.parent for path in folder.glob("*/__init__.py"))
    for top in {path.stem for path in (*folder.glob("*.py"), *packages)} & sys.modules.keys():
        file = getattr(sys.modules[top], "__file__", None)
        homes = [each for each in _modules if file and file_in(each, top) == Path(file)]
        if folder not in homes and (homes or top == _top(name)):
            private.add(top)

    def take() -> dict[str, ModuleType]:
        return {each: sys.modules.pop(each) for each in [*sys.modules] if _top(each) in private}

    hidden = take()
    sys.modules.update(own)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(str(folder))
        own.update(take())
        sys.modules.update(hidden)


def file_in(folder: Path, module: str) -> Path | None:
    """Return the file of a module or package that lies in a folder, or None."""
    top = _top(module)
    for path in (folder / top / "__init__.py", folder / f"{top}.py"):
        if path.is_file():
            return path
    return None


def import_named(name: str, what: str, *, trusted: bool, folder: Path | None = None) -> Any:
    """Import ``module:function``.

    Parameters
    ----------
    name
        The module and a name in it, with a colon between.
    what
        Word for messages: "model" or "loss".
    trusted
        Whether code that a recipe names may run.
    folder
        Folder that is searched first: the recipe's folder.

    Raises
    ------
    RecipeError
        The code is not trusted, cannot be imported, or lacks the name.
    """
    if not trusted:
        raise RecipeError(
            f"{what} {name!r} would run code of the recipe's author; "
            "read it, then pass --trust-code (trust_code=True)"
        )
    module_name, _, function = name.partition(":")
    failed = f"{what} {name!r} cannot be imported"
    try:
        with importable(folder, module_name):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise RecipeError(f"{failed}: {error}, which it imports") from error
        raise RecipeError(
            f"{failed}: there is no {module_name}.py in "
            f"{'the current folder' if folder is None else folder}, nor a module of this name on "
            "Python's path; PYTHONPATH=FOLDER adds a folder"
        ) from None
    # Importing runs the module, which may end in any way.
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:160]
        kind = type(error).__name__
        raise RecipeError(f"{failed}: it stops with {kind}{f': {text}' if text else ''}") from error
    found: Any = module
    for part in function.split("."):
        if not hasattr(found, part):
            raise RecipeError(f"{failed}: {_lacks(module, part, folder, vars(found))}")
        found = getattr(found, part)
    return found


def _lacks(module: ModuleType, part: str, folder: Path | None, known: dict[str, Any]) -> str:
    where = getattr(module, "__file__", None) or "a built-in module of Python"
    hidden = None if folder is None else file_in(folder, module.__name__)
    if hidden is not None and str(hidden) != where and "." not in module.__name__:
        return f"{module.__name__!r} is {where}, not {hidden}; rename the file"
    names = [each for each in known if not each.startswith("_")]
    return f"{where} has no {part!r}{nearest(part, names)}"


def _top(name: str) -> str:
    return name.partition(".")[0]
