"""Read what a run folder holds, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from distillens.errors import RunError
from distillens.files.npz import load_npz
from distillens.results.base import WRITE_AGAIN, from_json
from distillens.results.training import StudyResult
from distillens.runs.layout import Run


def read_result(run: Run) -> StudyResult:
    """Read a finished run's results.

    Raises
    ------
    RunError
        The run is not finished, or its results are damaged.
    """
    if run.language.is_file():
        raise RunError(f"{run.folder} is a run of language models; see its {run.language.name}")
    if not run.results.is_file():
        done = len(list(run.folder.glob("students/*/*/cell.json")))
        raise RunError(
            f"{run.folder} is not finished ({done} students done); "
            "run its recipe again with the same --out to go on"
        )
    return from_json(StudyResult, run.results.read_bytes(), str(run.results))


def read_finished(run: Run) -> StudyResult:
    """Read the results of a run whose networks are all trained.

    Raises
    ------
    RunError
        Networks are open, or as `read_result`.
    """
    result = read_result(run)
    if result.open_cells:
        raise RunError(
            f"{run.folder} is not finished: {len(result.open_cells)} network(s) are open, first "
            f"{result.open_cells[0]}; run its recipe again to go on"
        )
    return result


def read_arrays(path: Path, advice: str = "run the recipe again") -> dict[str, np.ndarray]:
    """Read an npz of plain arrays; ``advice`` tells how to get it back.

    Raises
    ------
    RunError
        It is missing or damaged.
    """
    try:
        return load_npz(path)
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}; {advice}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file of a run, which writes it again if it is deleted.

    Raises
    ------
    RunError
        It is missing or damaged.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing; {WRITE_AGAIN.removeprefix('delete it and ')}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}; {WRITE_AGAIN}") from None


class _Scale(BaseModel):
    mean: list[FiniteFloat]
    deviation: list[Annotated[FiniteFloat, Field(gt=0)]]


class _Origin(_Scale):
    origin: str = Field(alias="from")


class _Data(BaseModel):
    """What data.json holds. Earlier versions wrote no input_type, normalisations and vocabularies."""

    fingerprint: str
    classes: list[str] = Field(min_length=2)
    input_shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    input_type: str | None = None
    normalisation: _Scale | None = None
    teacher_normalisation: _Origin | None = None
    student_normalisation: _Origin | None = None
    vocabularies: list[Annotated[int, Field(ge=1)]] = []

    @model_validator(mode="after")
    def _a_number_a_channel(self) -> _Data:
        channels = self.input_shape[0]
        for scale in (self.normalisation, self.teacher_normalisation, self.student_normalisation):
            if scale is not None and not len(scale.mean) == len(scale.deviation) == channels:
                raise ValueError(f"normalisation needs {channels} means and deviations")
        return self


def read_data(run: Run) -> dict[str, Any]:
    """Read what a run says of its data.

    Raises
    ------
    RunError
        It is missing, damaged, or lacks a part.
    """
    content = read_json(run.data)
    try:
        _Data.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        said = [".".join(str(part) for part in first["loc"]), first["msg"]]
        text = ": ".join(part.removeprefix("Value error, ") for part in said if part)
        raise RunError(f"{run.data} is damaged: {text}; {WRITE_AGAIN}") from None
    return content
