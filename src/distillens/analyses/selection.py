"""The students of a finished run that an analysis measures."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from distillens.analyses.finished import FinishedRun, FinishedStudent
from distillens.errors import RecipeError, nearest
from distillens.runs.layout import slug

RANDOM_SEED = 0
"""Seed of the examples that analyses sample, and of the bootstrap."""


class StudentSettings(BaseModel):
    """Which students an analysis measures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    supervision: str | None = None
    """A supervision's name in the recipe, or its short form; None for all."""
    seeds: tuple[int, ...] | Literal["first", "all"] = "first"
    """Seeds of the students, "first" for the first seed of each supervision, or "all"."""

    def chosen(self, run: FinishedRun) -> list[FinishedStudent]:
        """Return the students in the order of the recipe.

        Raises
        ------
        RecipeError
            The run has no such supervision, or no student of these seeds.
        """
        titles = dict.fromkeys(one.entry.title for one in run.students)
        wanted = self.supervision
        if wanted is not None and wanted not in titles:
            # Greek letters are hard to type in a shell; the names of the run's folders are accepted too.
            named = next((title for title in titles if slug(title) == wanted), None)
            if named is None:
                raise RecipeError(f"the run has no student {wanted!r}{nearest(wanted, titles)}")
            wanted = named
        those = [one for one in run.students if wanted in (None, one.entry.title)]
        if self.seeds == "all":
            return those
        if self.seeds == "first":
            return list({one.entry.title: one for one in reversed(those)}.values())[::-1]
        found = [one for one in those if one.cell.seed in self.seeds]
        if not found:
            seeds = ", ".join(map(str, sorted({one.cell.seed for one in those})))
            what = "no student" if wanted is None else f"{wanted!r} has no network"
            asked = ", ".join(map(str, self.seeds))
            raise RecipeError(f"{what} of seed {asked}; there are {seeds}")
        return found
