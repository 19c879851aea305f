"""Choose one student of a run: by its name or by validation accuracy, never by test labels."""

from __future__ import annotations

from dataclasses import dataclass

from distillens.errors import RecipeError, RunError, nearest
from distillens.results.training import Cell, StudyResult, validation_means
from distillens.runs.layout import slug
from distillens.study.recipe import Recipe


@dataclass(frozen=True)
class Choice:
    """A trained student: the place of its supervision in the recipe, its numbers, and why it."""

    place: int
    cell: Cell
    why: str


def choose(recipe: Recipe, result: StudyResult, student: str | None, seed: int | None) -> Choice:
    """Return the student and the seed that were asked for, or those that are best on validation.

    Parameters
    ----------
    recipe, result
        Of one run.
    student
        A supervision's name in the recipe, or its short form in the run folder. None takes the one
        with the highest validation accuracy (mean over its seeds), or the only one.
    seed
        None takes the seed with the highest validation accuracy, or the recipe's first where the run
        has no validation examples.

    Raises
    ------
    RecipeError
        The run has no trained student of that name.
    RunError
        Nothing but test labels could tell which is best, or the seed was not trained.
    """
    done = {
        entry.title: [cell for cell in result.cells if cell.supervision == entry.title]
        for entry in recipe.supervisions
    }
    titles = [title for title, cells in done.items() if cells]
    if not titles and not result.open_cells:
        raise RunError(
            "the run's results hold none of the students that its recipe.yaml names; "
            "one of the two was changed"
        )
    if student is None:
        title, why = _best(titles, done, result)
    else:
        title, why = _named(student, titles), "named"
    cells = done[title]
    seeds = [cell.seed for cell in cells]
    if seed is not None:
        if seed not in seeds:
            raise RunError(f"{title!r} has no trained network of seed {seed}; it has {seeds}")
        cell = cells[seeds.index(seed)]
    elif any(cell.validation_accuracy is None for cell in cells):
        cell = min(cells, key=lambda cell: recipe.seeds.index(cell.seed))
    else:
        cell = max(cells, key=_validation)
        if len(cells) > 1:
            why += f"; of its {len(cells)} seeds the best on validation ({_validation(cell):.4f})"
    place = next(k for k, entry in enumerate(recipe.supervisions) if entry.title == title)
    return Choice(place, cell, why)


def _named(student: str, titles: list[str]) -> str:
    for title in titles:
        # A shell has no key for τ; the short form of the run folder's names will do.
        if student in (title, slug(title)):
            return title
    raise RecipeError(f"the run has no trained student {student!r}{nearest(student, titles)}")


def _best(titles: list[str], done: dict[str, list[Cell]], result: StudyResult) -> tuple[str, str]:
    listed = ", ".join(repr(title) for title in titles) or "none yet"
    if result.open_cells:
        raise RunError(
            f"{len(result.open_cells)} networks of the run are not trained yet, so none is the best; "
            f"name one with --student; trained: {listed}"
        )
    if len(titles) == 1:
        return titles[0], "the run's only supervision"
    means = validation_means(result)
    if not means:
        raise RunError(
            "the run has no validation examples to choose a student by, and test labels are not for "
            f"choosing; name one with --student: {listed}"
        )
    best = max(means, key=means.__getitem__)
    return best, f"highest mean validation accuracy of {len(titles)} students ({means[best]:.4f})"


def _validation(cell: Cell) -> float:
    assert cell.validation_accuracy is not None
    return cell.validation_accuracy
