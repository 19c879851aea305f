"""Read the files of a run folder without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from distillens.errors import RunError
from distillens.files.npz import load_npz
from distillens.results.base import WRITE_AGAIN
from distillens.runs.layout import NetworkFiles, Run


def read_arrays(path: Path, advice: str = "run the recipe again") -> dict[str, np.ndarray]:
    """Read an npz of plain arrays; ``advice`` is the remedy that errors name.

    Raises
    ------
    RunError
        It is missing or damaged.
    """
    try:
        return load_npz(path)
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}; {advice}") from None


def stored_arrays(path: Path, files: NetworkFiles) -> dict[str, np.ndarray]:
    """Return what a run stored of a finished network's outputs, by split.

    Raises
    ------
    RunError
        The file is missing or damaged, or lacks a split.
    """
    advice = f"delete {files.cell} and run the recipe again with the same --out"
    arrays = read_arrays(path, advice)
    if not {"train", "test"} <= set(arrays):
        raise RunError(f"{path} lacks train or test; {advice}")
    return arrays


def read_json(path: Path) -> Any:
    """Read a JSON file of a run, which running the recipe again restores.

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
    """Content of data.json. Earlier versions wrote no input_type, normalisations and vocabularies."""

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
    """Read the description of a run's data.

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
        parts = [".".join(str(part) for part in first["loc"]), first["msg"]]
        text = ": ".join(part.removeprefix("Value error, ") for part in parts if part)
        raise RunError(f"{run.data} is damaged: {text}; {WRITE_AGAIN}") from None
    return content
