"""Records of analyses of finished runs: results, settings and provenance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distillens.results.base import Result
from distillens.results.training import NetworkId, Provenance


@dataclass(frozen=True)
class MeasuredNetwork(Result):
    """A network that an analysis read: its identity, its title and the digest of its weights."""

    id: NetworkId
    title: str
    weights_digest: str


@dataclass(frozen=True)
class AnalysisRecord(Result):
    """One analysis of a finished run: the ``record.json`` of its folder.

    Attributes
    ----------
    analysis
        The name of the analysis, such as "complexity".
    settings
        All settings of the analysis, defaults included.
    networks
        The networks that were measured.
    provenance
        Command, times, versions and machine of the analysis.
    result
        The result as JSON values, in the form of the analysis's result type.
    arrays
        Names of the npz files in the same folder.
    """

    schema_version: int
    analysis: str
    settings: dict[str, Any]
    networks: tuple[MeasuredNetwork, ...]
    provenance: Provenance
    result: dict[str, Any]
    arrays: tuple[str, ...] = ()
