"""Open a run folder: the only way to read what a run holds. Reads without torch.

A run may have grown: seeds and supervisions that were added later have a recipe and results of their
own, and `OpenRun` joins them with those of the first training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillens.errors import RecipeError, RunError, nearest
from distillens.results.base import from_json, schema_version
from distillens.results.records import AnalysisRecord
from distillens.results.training import TEACHER, Cell, NetworkId, Provenance, Row, StudyResult
from distillens.runs.folder import (
    find_run,
    more_seeds,
    read_recipe_values,
    students_of,
)
from distillens.runs.layout import NetworkFiles, Run, slug
from distillens.runs.read import read_data, read_json
from distillens.runs.records import StoredRecord, read_records


@dataclass(frozen=True)
class Addition:
    """Seeds or supervisions that were added to a run after it had been finished."""

    number: int
    students: tuple[NetworkId, ...]
    """The students that were added."""
    more_seeds: bool
    """Whether a supervision that the run had before got further seeds."""
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run folder that was opened and validated.

    Attributes
    ----------
    files
        The names of the files.
    recipe
        The plain values of the recipe, with everything that was added.
    result
        Results of the training of all networks.
    data
        The content of ``data.json``.
    additions
        Additions after the run had been finished, in order.
    """

    files: Run
    recipe: Mapping[str, Any]
    result: StudyResult
    data: Mapping[str, Any]
    additions: tuple[Addition, ...] = ()

    @classmethod
    def open(cls, folder: str | Path, *, unfinished: bool = False) -> OpenRun:
        """Open a run folder.

        Parameters
        ----------
        folder
            The run folder.
        unfinished
            Whether to accept a run some of whose networks are not trained yet.

        Raises
        ------
        RunError
            The folder is no run, or a file of it is missing or damaged, or the run is not finished.
        """
        run = find_run(Path(folder))
        if run.language.is_file():
            raise RunError(
                f"{run.folder} is a run of language models of version 0.1, which this version cannot "
                f"read; see its {run.language.name}, or run the recipe with another --out"
            )
        recipe = read_recipe_values(run)
        result = read_training(run)
        data = read_data(run)
        additions = []
        for stage in run.stages()[1:]:
            number = int(stage.folder.name)
            if not stage.results.is_file():
                if unfinished:
                    continue
                raise RunError(
                    f"addition {number} of {run.folder} is not finished; run its recipe "
                    f"{stage.recipe} again with --out {run.folder} to go on"
                )
            before, recipe = recipe, read_recipe_values(stage)
            result = read_training(run, stage)
            added = tuple(sorted(students_of(recipe) - students_of(before)))
            further = more_seeds(before, recipe)
            additions.append(Addition(number, added, further, result.provenance))
        if result.open_cells and not unfinished:
            raise RunError(
                f"{run.folder} is not finished: {len(result.open_cells)} network(s) are open, first "
                f"{result.open_cells[0]}; run its recipe again with the same --out to go on"
            )
        return cls(run, recipe, result, data, tuple(additions))

    def cell(self, network: NetworkId) -> Cell:
        """Return the numbers of a trained network.

        Raises
        ------
        RunError
            The run has no such network.
        """
        for cell in self.result.cells:
            if cell.id == network:
                return cell
        raise RunError(f"{self.files.folder} has no trained network {network}")

    def network(self, network: NetworkId) -> NetworkFiles:
        """Return the files of a network."""
        if network.is_teacher:
            return self.files.teacher
        title = self.row(network.supervision).name
        files = self.files.student(network.supervision, title, network.seed)
        return files.generation(network.generation) if network.generation else files

    def row(self, position: int) -> Row:
        """Return the row of the accuracy table of a supervision, or of the teacher.

        Raises
        ------
        RunError
            No network of that supervision is trained.
        """
        for row in self.result.rows:
            if row.position == position:
                return row
        raise RunError(f"{self.files.folder} has no trained network of supervision {position}")

    def position(self, supervision: str) -> int:
        """Return the position of a supervision, given by its title or its short form.

        The short form is the one in the names of folders, such as ``online-t4`` for "online τ=4".

        Raises
        ------
        RecipeError
            The run has no trained student of that name.
        """
        titles = {row.name: row.position for row in self.result.rows if row.position != TEACHER}
        if supervision in titles:
            return titles[supervision]
        for title, position in titles.items():
            if slug(title) == supervision:
                return position
        raise RecipeError(
            f"the run has no trained student {supervision!r}{nearest(supervision, titles)}"
        )

    def students(
        self, supervision: str | None = None, seed: int | None = None
    ) -> tuple[NetworkId, ...]:
        """Return the trained students, those of one supervision together.

        Parameters
        ----------
        supervision
            The title or short form of a supervision; None selects all.
        seed
            A seed; None selects all.

        Raises
        ------
        RecipeError
            There is no such student.
        """
        position = None if supervision is None else self.position(supervision)
        named = [
            cell.id
            for cell in self.result.cells
            if cell.position != TEACHER and position in (None, cell.position)
        ]
        found = tuple(one for one in named if seed in (None, one.seed))
        if not found:
            what = "no student" if supervision is None else f"{supervision!r} has no network"
            seeds = ", ".join(map(str, sorted({one.seed for one in named}))) or "none"
            raise RecipeError(f"{what} of seed {seed}; trained seeds: {seeds}")
        return found

    def check_data(self, fingerprint: str, where: str) -> None:
        """Check that data are those that the run was made from.

        Parameters
        ----------
        fingerprint
            The fingerprint of the data that were loaded.
        where
            Source of the data, for the message.

        Raises
        ------
        RunError
            The data differ.
        """
        check_fingerprint(self.files, fingerprint, where)

    def records(self, analysis: str | None = None) -> list[StoredRecord]:
        """Return the records of analyses, the newest last."""
        found = read_records(self.files, analysis)
        return (
            [*self._curves_of_version_0_1(), *found] if analysis in (None, "complexity") else found
        )

    def _curves_of_version_0_1(self) -> list[StoredRecord]:
        """Return the complexity curves that version 0.1 kept in files of the run folder."""
        found = []
        for path in sorted(self.files.folder.glob("complexity-*.json")):
            record = AnalysisRecord(
                schema_version=AnalysisRecord.SCHEMA_VERSION,
                analysis="complexity",
                settings={},
                networks=(),
                provenance=self.result.provenance,
                result=read_json(path),
            )
            found.append(StoredRecord(path.with_suffix(""), record))
        return found


def check_fingerprint(run: Run, here: str, where: str) -> None:
    """Refuse data whose fingerprint is not that of the data of a run.

    Raises
    ------
    RunError
        The fingerprints differ.
    """
    if (there := str(read_data(run)["fingerprint"])) != here:
        raise RunError(
            f"the data {where} are not those that {run.folder} was made from: fingerprint "
            f"{here[:12]}, the run has {there[:12]}; give the data of the run"
        )


def read_training(run: Run, stage: Run | None = None) -> StudyResult:
    """Read the results of a run, or of an addition to it; those of version 0.1 are converted.

    Raises
    ------
    RunError
        No network is trained yet, or the file is damaged.
    """
    path = (stage or run).results
    if not path.is_file():
        done = len(list(run.folder.glob("students/*/*/cell.json")))
        raise RunError(
            f"{run.folder} is not finished ({done} students done); "
            "run its recipe again with the same --out to go on"
        )
    text = path.read_bytes()
    if schema_version(text) == 1:
        text = json.dumps(_from_schema_1(json.loads(text), run))
    return from_json(StudyResult, text, str(path))


def _from_schema_1(content: dict[str, Any], run: Run) -> dict[str, Any]:
    """Convert results of version 0.1, which told networks apart by the titles of their supervisions.

    Complexity curves, which have separate files, and deviations, whose definition has changed, are
    left out.
    """
    positions: dict[str, int] = {}
    for place, entry in enumerate(read_recipe_values(run)["supervisions"]):
        folders = list(run.folder.glob(f"students/{place:02d}-*/seed-*/cell.json"))
        names = {read_json(path)["supervision"] for path in folders}
        positions |= dict.fromkeys(names or {str(entry.get("name"))}, place)

    def position(title: str) -> int:
        if title not in positions:
            raise RunError(
                f"{run.results} names the supervision {title!r}, which {run.recipe} and students/ lack; "
                "one of them was changed"
            )
        return positions[title]

    # The first row and the first cell are those of the teacher.
    for entries, key in ((content["cells"], "supervision"), (content["rows"], "name")):
        for number, entry in enumerate(entries):
            entry["position"] = position(entry[key]) if number else TEACHER
    left_out = ("complexity", "deviations")
    kept = {key: value for key, value in content.items() if key not in left_out}
    return {**kept, "schema_version": StudyResult.SCHEMA_VERSION}
