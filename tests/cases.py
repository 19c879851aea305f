"""Cases that several tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from distillens.data import SOURCES
from distillens.models import MODELS
from distillens.registry import load_plugins
from distillens.supervision import SUPERVISIONS


@contextmanager
def installed(folder: Path, files: Mapping[str, str], plugin: str) -> Iterator[None]:
    """Install a distribution for as long as the context is open.

    Parameters
    ----------
    folder
        Where to write it.
    files
        The text of its modules by their path.
    plugin
        The module that its entry point of the group ``distillens.plugins`` names.
    """
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    info = folder / f"{plugin}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[distillens.plugins]\nmine = {plugin}\n")
    registered = [(registry, registry.names()) for registry in (SUPERVISIONS, SOURCES, MODELS)]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    load_plugins.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for module in set(sys.modules) - before:
            if module.partition(".")[0] == plugin:
                del sys.modules[module]
        for registry, names in registered:
            registry._items = {name: registry._items[name] for name in names}
        load_plugins.cache_clear()
