"""Choose one student of a run: by its name or by validation accuracy, never by test labels."""

from __future__ import annotations

from dataclasses import dataclass

from distillens.errors import RunError
from distillens.results.training import TEACHER, Cell, StudyResult, validation_means
from distillens.runs.open import OpenRun


@dataclass(frozen=True)
class Choice:
    """A trained student: its numbers, and why it was chosen."""

    cell: Cell
    why: str


def choose(run: OpenRun, student: str | None, seed: int | None) -> Choice:
    """Return the requested student and seed, or those with the highest validation accuracy.

    Parameters
    ----------
    run
        The run, which may have networks that are not trained yet.
    student
        A supervision's title in the recipe, or its short form in the run folder. None takes the one
        with the highest validation accuracy (mean over its seeds), or the only one.
    seed
        None takes the seed with the highest validation accuracy, or the recipe's first where the run
        has no validation examples.

    Raises
    ------
    RecipeError
        The run has no trained student of that name or seed.
    RunError
        Nothing but test labels could tell which is best.
    """
    position, why = _best(run.result) if student is None else (run.position(student), "named")
    cells = [run.cell(one) for one in run.students(run.row(position).name, seed)]
    if seed is not None:
        return Choice(cells[0], why)
    if any(cell.validation_accuracy is None for cell in cells):
        return Choice(min(cells, key=lambda cell: run.recipe["seeds"].index(cell.seed)), why)
    cell = max(cells, key=_validation)
    if len(cells) > 1:
        why += f"; of its {len(cells)} seeds the best on validation ({_validation(cell):.4f})"
    return Choice(cell, why)


def _best(result: StudyResult) -> tuple[int, str]:
    students = {row.position: row.name for row in result.rows if row.position != TEACHER}
    listed = ", ".join(repr(title) for title in students.values()) or "none yet"
    if result.open_cells:
        raise RunError(
            f"{len(result.open_cells)} networks of the run are not trained yet, so none is the best; "
            f"name one with --supervision; trained: {listed}"
        )
    if len(students) == 1:
        return next(iter(students)), "the run's only supervision"
    means = validation_means(result)
    if not means:
        raise RunError(
            "the run has no validation examples to choose a student by, and test labels are not for "
            f"choosing; name one with --supervision: {listed}"
        )
    best = max(means, key=means.__getitem__)
    return best, f"highest mean validation accuracy of {len(students)} students ({means[best]:.4f})"


def _validation(cell: Cell) -> float:
    assert cell.validation_accuracy is not None
    return cell.validation_accuracy
