"""Check a recipe without running it: all problems, and expected time, memory and disk space."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from distillens.errors import DistillensError, one_line
from distillens.results.check import RecipeCheck
from distillens.runs.folder import check_folder
from distillens.runs.layout import run_folder
from distillens.study.reading import (
    as_of_today,
    missing_places,
    override_key,
    part_errors,
    read_content,
    recipe_type,
    validated,
)

T = TypeVar("T")


@dataclass
class Findings:
    """Problems and notes that have been found so far."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Return the result of work; if it fails, note the problem of the recipe and return None."""
        try:
            return work()
        except DistillensError as error:
            problem = one_line(error)
            if not any(problem in known for known in self.problems):
                self.problems.append(problem)
            return None


def check(
    recipe: str | Path | dict[str, Any],
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    trust_code: bool = False,
) -> RecipeCheck:
    """Check a recipe: read its data and networks, time a few steps, write and keep nothing.

    Parameters
    ----------
    recipe
        A YAML file, the name of a recipe that comes with distillens, or plain values.
    out
        The folder that the run would go to; by default ``runs/<name of the recipe>``.
    overrides
        ``key=value`` with dotted keys, as on the command line.
    trust_code
        Allow ``module:function`` models, which run code that the recipe names.

    Returns
    -------
    RecipeCheck
        All problems that were found, not only the first one. Values that depend on
        a part with a problem are left out.

    Raises
    ------
    RecipeError
        The file is missing or is no YAML of keys.
    """
    if isinstance(recipe, dict):
        content = copy.deepcopy(recipe)
        for override in overrides:
            override_key(content, override)
    else:
        content, _ = read_content(recipe, overrides)
    recipe_type(content).refuse_unavailable("check")
    parsed, problems = validated(content)
    if parsed is None:
        return RecipeCheck(str(content.get("name", recipe)), tuple(problems), ())
    errors = part_errors(parsed, trust_code=trust_code)
    found = Findings([one_line(error) for error in errors])
    named = len(found.problems)
    missing, folder = missing_places(parsed), run_folder(out, parsed.name)
    found.problems += missing
    found.attempt(lambda: check_folder(folder, parsed.as_written_in(folder), as_of_today))
    if named or any("data.path" in problem for problem in missing):
        return RecipeCheck(parsed.name, tuple(found.problems), ())
    # Imports torch, which takes seconds.
    from distillens.study.planning.check_networks import check_networks

    return check_networks(parsed, folder, trust_code, found)
