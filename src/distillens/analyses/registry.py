"""The analyses of finished runs, by name.

An analysis reads a finished run and returns a result; `distillens.analyses.measure` stores it as a
record in the run folder. To add one, write a module that registers an `Analysis`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from pydantic import BaseModel

from distillens.registry import Registry

if TYPE_CHECKING:
    from distillens.analyses.finished import FinishedRun, FinishedStudent
    from distillens.study.recipe import Recipe


@dataclass(frozen=True)
class Measured:
    """Result of an analysis.

    Attributes
    ----------
    result
        A dataclass of the analysis's result type.
    arrays
        Arrays by name, for each npz file of the record.
    """

    result: Any
    arrays: Mapping[str, Mapping[str, NDArray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Analysis:
    """An analysis of finished runs.

    Attributes
    ----------
    name
        The name on the command line and in the names of records.
    summary
        One line for the help.
    settings
        A pydantic model whose fields have defaults; a user sets them by ``key=value``.
    result
        The result type, a frozen dataclass.
    measure
        Called with the run, the students and the settings.
    choose
        Returns the students that are measured, from the run, the supervision and the seed that the
        user asked for (each may be None).
    plan
        Returns the expected time and memory as text; None if they cannot be estimated.
    from_recipe
        Returns the settings that a recipe gives, which those of a user change; None where it gives
        none.
    lines
        Returns the result as lines of text for the terminal, for analyses whose result the report
        does not know.
    """

    name: str
    summary: str
    settings: type[BaseModel]
    result: type
    measure: Callable[[FinishedRun, Sequence[FinishedStudent], Any], Measured]
    choose: Callable[[FinishedRun, str | None, int | None], Sequence[FinishedStudent]]
    plan: Callable[[FinishedRun, Sequence[FinishedStudent], Any], str] | None = None
    from_recipe: Callable[[Recipe], BaseModel | None] | None = None
    lines: Callable[[Any], Sequence[str]] | None = None


ANALYSES: Registry[Analysis] = Registry("analysis", "distillens.analyses")


def register_analysis(analysis: Analysis) -> Analysis:
    """Register an analysis under its name and return it.

    Raises
    ------
    RecipeError
        Another analysis has the name.
    """
    return ANALYSES.register(analysis.name)(analysis)
