"""The theory lab: each study evaluates closed forms and returns findings, arrays and a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distillens.errors import TheoryError, nearest
from distillens.results.figure import Shown
from distillens.theory.studies.bias import bias_study
from distillens.theory.studies.denoising import denoising_study
from distillens.theory.studies.generations import flow_study, ridge_study
from distillens.theory.studies.risk import risk_study

__all__ = [
    "STUDIES",
    "bias_study",
    "denoising_study",
    "flow_study",
    "ridge_study",
    "risk_study",
    "run_study",
]

STUDIES: Mapping[str, Callable[[], Shown]] = {
    "flow": flow_study,
    "bias": bias_study,
    "risk": risk_study,
    "ridge": ridge_study,
    "denoising": denoising_study,
}
"""Each study by the name that the command line knows, with its default settings."""


def run_study(name: str) -> Shown:
    """Run a study by name.

    Raises
    ------
    TheoryError
        There is no study of that name.
    """
    if name not in STUDIES:
        raise TheoryError(f"there is no study {name!r}{nearest(name, STUDIES)}")
    return STUDIES[name]()
