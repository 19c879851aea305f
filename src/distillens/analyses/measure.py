"""Measure a finished run with a registered analysis, and store the result as a record."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from distillens.analyses.finished import FinishedRun, FinishedStudent, finished_run
from distillens.analyses.registry import ANALYSES, Analysis
from distillens.errors import RecipeError, nearest
from distillens.progress import Progress, silent
from distillens.results.base import to_json
from distillens.results.records import AnalysisRecord, MeasuredNetwork
from distillens.runs.records import StoredRecord, read_record, record_folder, write_record
from distillens.study.provenance import now, provenance
from distillens.study.recipe import Recipe


def measure(
    run: FinishedRun,
    analysis: str,
    settings: BaseModel | Mapping[str, Any] | None = None,
    *,
    supervision: str | None = None,
    seed: int | None = None,
) -> StoredRecord:
    """Measure a finished run and return the record, which is stored in the run folder.

    A record with the same settings of the same networks is returned as it is. Nothing else in the run
    folder is changed.

    Parameters
    ----------
    run
        The run, with its data.
    analysis
        The name of a registered analysis, such as "complexity".
    settings
        Settings of the analysis, or some of their values; the others are those of the recipe, or the
        defaults.
    supervision, seed
        Students to measure; None leaves the choice to the analysis.

    Raises
    ------
    RecipeError
        There is no such analysis, setting or student.
    DistillensError
        The analysis does not apply to this run.
    """
    chosen = ANALYSES.get(analysis)
    if not isinstance(settings, BaseModel):
        settings = settings_of(chosen, run.recipe, settings or {})
    run.recipe.refuse_unavailable(analysis)
    students = chosen.choose(run, supervision, seed)
    networks = _networks(run, students)
    values = settings.model_dump(mode="json")
    folder = record_folder(run.opened.files, chosen.name, values, networks)
    if (known := read_record(folder)) is not None:
        return known
    began, clock = now(), time.perf_counter()
    found = chosen.measure(run, students, settings)
    made = provenance(
        began,
        time.perf_counter() - clock,
        run.context.splits.fingerprint,
        run.teacher.cell.weights_digest,
    )
    record = AnalysisRecord(
        schema_version=AnalysisRecord.SCHEMA_VERSION,
        analysis=chosen.name,
        settings=values,
        networks=networks,
        provenance=made,
        result=json.loads(to_json(found.result)),
        arrays=tuple(found.arrays),
    )
    return write_record(folder, record, found.arrays)


def measure_run(
    folder: str | Path,
    analysis: str,
    settings: Mapping[str, Any] | None = None,
    *,
    supervision: str | None = None,
    seed: int | None = None,
    data_path: str | Path | None = None,
    trust_code: bool = False,
    progress: Progress = silent,
) -> StoredRecord:
    """Open a finished run, measure it and return the record; see `measure`.

    Parameters
    ----------
    folder
        The run folder.
    analysis, settings, supervision, seed
        As for `measure`.
    data_path
        Path of the data, if they have been moved since the training.
    trust_code, progress
        As for `distillens.run`.

    Raises
    ------
    RunError
        The folder is no finished run, or the data are not those of the run.
    DistillensError
        As `measure`.

    Examples
    --------
    >>> record = measure_run("runs/demo", "complexity", {"examples": 512})  # doctest: +SKIP
    >>> record.content.result["examples"]  # doctest: +SKIP
    512
    """
    path = None if data_path is None else Path(data_path)
    run = finished_run(Path(folder), data_path=path, trust_code=trust_code, progress=progress)
    return measure(run, analysis, settings, supervision=supervision, seed=seed)


def plan(
    run: FinishedRun,
    analysis: str,
    settings: Mapping[str, Any],
    *,
    supervision: str | None = None,
    seed: int | None = None,
) -> str:
    """Return the expected time and memory of `measure` as text.

    Raises
    ------
    RecipeError
        As `measure`, or the analysis provides no estimate.
    """
    chosen = ANALYSES.get(analysis)
    run.recipe.refuse_unavailable(analysis)
    if chosen.plan is None:
        raise RecipeError(f"--plan is not available for {analysis}; leave it out")
    students = chosen.choose(run, supervision, seed)
    return chosen.plan(run, students, settings_of(chosen, run.recipe, settings))


def settings_of(analysis: Analysis, recipe: Recipe, values: Mapping[str, Any]) -> BaseModel:
    """Return the settings of an analysis: those of the recipe, changed by plain values.

    Raises
    ------
    RecipeError
        A setting is not known, or a value has the wrong type or range.
    """
    known = analysis.settings.model_fields
    for key in values:
        if key not in known:
            raise RecipeError(f"{analysis.name} has no setting {key!r}{nearest(key, known)}")
    made = None if analysis.from_recipe is None else analysis.from_recipe(recipe)
    given = {} if made is None else made.model_dump(mode="json")
    try:
        return analysis.settings.model_validate({**given, **values})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"setting {place} of {analysis.name} is {first['input']!r}: {first['msg']}"
        ) from None


def _networks(run: FinishedRun, students: Sequence[FinishedStudent]) -> tuple[MeasuredNetwork, ...]:
    cells = (run.teacher.cell, *(student.cell for student in students))
    return tuple(MeasuredNetwork(c.id, c.supervision, c.weights_digest) for c in cells)
