"""Default selection of the students of a finished run that an analysis measures."""

from __future__ import annotations

from distillens.analyses.finished import FinishedRun, FinishedStudent

RANDOM_SEED = 0
"""Seed of the examples that analyses sample, and of the bootstrap."""


def all_seeds(
    run: FinishedRun, supervision: str | None, seed: int | None
) -> tuple[FinishedStudent, ...]:
    """Return the requested students; without a seed those of all seeds.

    Raises
    ------
    RecipeError
        The run has no such student.
    """
    return run.chosen(supervision, seed)


def first_seeds(
    run: FinishedRun, supervision: str | None, seed: int | None
) -> tuple[FinishedStudent, ...]:
    """Return the requested students; without a seed the first of each supervision.

    Raises
    ------
    RecipeError
        The run has no such student.
    """
    found = run.chosen(supervision, seed)
    firsts = {one.id.supervision: one.id for one in reversed(found)}
    return found if seed is not None else tuple(one for one in found if one.id in firsts.values())
