"""distillens: distil small neural networks from large ones, and see why a student turned out so.

Names load when they are first used, so that ``import distillens`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from distillens.array_files import Rows as Rows
    from distillens.array_files import read_rows as read_rows
    from distillens.data import Batches as Batches
    from distillens.data import Examples as Examples
    from distillens.data import LoaderBatches as LoaderBatches
    from distillens.data import examples_from_arrays as examples_from_arrays
    from distillens.errors import DistillensError as DistillensError
    from distillens.kernel import EmpiricalNTK as EmpiricalNTK
    from distillens.kernel import ntk_similarity as ntk_similarity
    from distillens.kernel import oracle_gram as oracle_gram
    from distillens.measures import audit as audit
    from distillens.measures import deviation as deviation
    from distillens.measures import supervision_complexity as supervision_complexity
    from distillens.report import write_report as write_report
    from distillens.study import read_recipe as read_recipe
    from distillens.study import run as run
    from distillens.study.audit_run import audit_run as audit_run
    from distillens.study.kernel_complexity import kernel_complexity as kernel_complexity
    from distillens.study.settings import measure_settings as measure_settings
    from distillens.supervision import Distillation as Distillation
    from distillens.supervision import FixedTeacher as FixedTeacher
    from distillens.supervision import Mixed as Mixed
    from distillens.supervision import OneHot as OneHot
    from distillens.supervision import OnlineTeacher as OnlineTeacher
    from distillens.supervision import RecordedTeacher as RecordedTeacher
    from distillens.supervision import TeacherCheckpoint as TeacherCheckpoint
    from distillens.training import TrainingRecipe as TrainingRecipe
    from distillens.training import fit as fit

_HOME = {
    "array_files": ("Rows", "read_rows"),
    "data": ("Batches", "Examples", "LoaderBatches", "examples_from_arrays"),
    "errors": ("DistillensError",),
    "kernel": ("EmpiricalNTK", "ntk_similarity", "oracle_gram"),
    "measures": ("audit", "deviation", "supervision_complexity"),
    "report": ("write_report",),
    "study": ("read_recipe", "run"),
    "study.audit_run": ("audit_run",),
    "study.kernel_complexity": ("kernel_complexity",),
    "study.settings": ("measure_settings",),
    "supervision": (
        "Distillation",
        "FixedTeacher",
        "Mixed",
        "OneHot",
        "OnlineTeacher",
        "RecordedTeacher",
        "TeacherCheckpoint",
    ),
    "training": ("TrainingRecipe", "fit"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'distillens' has no attribute {name!r}")
    return getattr(import_module(f"distillens.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE])
