"""What the table of methods in docs/papers.md names is there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import distillens

TABLE = Path(__file__).parents[2] / "docs" / "papers.md"


def named() -> list[str]:
    """Return the dotted names of the column `code`; one without a module has that before it."""
    names = []
    rows = [line.split("|") for line in TABLE.read_text().splitlines() if line.startswith("|")]
    for cells in rows[2 : next(k for k, cells in enumerate(rows) if cells[1] == " table ")]:
        module = ""
        for name in re.findall(r"`([A-Za-z_.]+)", cells[3]):
            if "." in name:
                module = name.rpartition(".")[0]
            elif module:
                name = f"{module}.{name}"
            names.append(name)
    return names


@pytest.mark.parametrize("name", named())
def test_a_named_thing_is_there_and_says_what_it_is(name: str) -> None:
    found: Any = distillens
    for depth, part in enumerate(name.split("."), 1):
        if not hasattr(found, part):
            import_module(f"distillens.{'.'.join(name.split('.')[:depth])}")
        found = getattr(found, part)
    assert found.__doc__
