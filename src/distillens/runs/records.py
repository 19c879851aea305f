"""The records of analyses in a run folder, read and written without torch.

Each analysis has a folder ``analyses/<name>-<digest>`` of its own, so measuring again adds a record and
changes none. The digest is that of the settings and of the networks that were measured.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from distillens.errors import RunError
from distillens.files.atomic import write_atomically
from distillens.files.npz import write_npz
from distillens.results.base import from_json, to_json
from distillens.results.records import AnalysisRecord, MeasuredNetwork
from distillens.runs.layout import Run
from distillens.runs.read import read_arrays

RECORD = "record.json"
MEASURE_AGAIN = "delete its folder and measure again"

T = TypeVar("T")


@dataclass(frozen=True)
class StoredRecord:
    """A record and the folder that holds it."""

    folder: Path
    content: AnalysisRecord

    @property
    def name(self) -> str:
        """The name of the record within its run, such as ``complexity-1a2b3c4d5e6f``."""
        return self.folder.name

    def result(self, kind: type[T]) -> T:
        """Return the result of the analysis as the dataclass that it was written from.

        Raises
        ------
        RunError
            The record is damaged, or another version wrote its result.
        """
        text = json.dumps(self.content.result)
        return from_json(kind, text, str(self.folder / RECORD), MEASURE_AGAIN)

    def has(self, name: str) -> bool:
        """Say whether there is something under the name of an npz file."""
        return (self.folder / f"{name}.npz").exists()

    def arrays(self, name: str) -> dict[str, NDArray]:
        """Return the arrays of an npz file of the record.

        Raises
        ------
        RunError
            The file is missing or damaged, or lies outside the record.
        """
        if Path(name).name != name:
            raise RunError(
                f"{name!r} of {self.folder / RECORD} lies outside the record; not opened"
            )
        return read_arrays(self.folder / f"{name}.npz", MEASURE_AGAIN)


def record_folder(
    run: Run, analysis: str, settings: Mapping[str, Any], networks: Sequence[MeasuredNetwork]
) -> Path:
    """Return the folder of the record of an analysis with these settings on these networks."""
    measured = [f"{one.id} {one.weights_digest}" for one in networks]
    made_of = json.dumps([analysis, settings, measured], sort_keys=True)
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    return run.analyses / f"{analysis}-{digest}"


def write_record(
    folder: Path, record: AnalysisRecord, arrays: Mapping[str, Mapping[str, NDArray]]
) -> StoredRecord:
    """Write a record; ``record.json`` is written last and marks the record as complete.

    Raises
    ------
    RunError
        The folder cannot be written.
    """
    for name, content in arrays.items():
        write_npz(folder / f"{name}.npz", content)
    write_atomically(folder / RECORD, to_json(record))
    return StoredRecord(folder, record)


def read_record(folder: Path) -> StoredRecord | None:
    """Return the record in a folder; None where there is no complete one.

    Raises
    ------
    RunError
        The record is damaged, or was written by a version with another schema.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    content = from_json(AnalysisRecord, path.read_bytes(), str(path), MEASURE_AGAIN)
    return StoredRecord(folder, content)


def read_records(run: Run, analysis: str | None = None) -> list[StoredRecord]:
    """Return the records of a run, those that were measured last at the end.

    Raises
    ------
    RunError
        A record is damaged.
    """
    folders = sorted(path.parent for path in run.analyses.glob(f"*/{RECORD}"))
    found = [record for folder in folders if (record := read_record(folder)) is not None]
    chosen = [one for one in found if analysis is None or one.content.analysis == analysis]
    return sorted(chosen, key=lambda one: one.content.provenance.finished)


def delete_record(run: Run, name: str) -> Path:
    """Delete a record of a run, given by its name, and return the folder that it was in.

    Raises
    ------
    RunError
        The run has no such record.
    """
    names = [path.parent.name for path in run.analyses.glob(f"*/{RECORD}")]
    if name not in names:
        listed = ", ".join(sorted(names)) or "none"
        raise RunError(f"{run.folder} has no record {name!r}; its records: {listed}")
    folder = run.analyses / name
    try:
        # Without record.json, the rest of the folder is not a record.
        (folder / RECORD).unlink()
        shutil.rmtree(folder)
    except OSError as error:
        raise RunError(f"cannot delete {folder}: {error.strerror}") from None
    return folder
