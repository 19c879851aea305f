"""Supervisions, which define what a student fits: labels, teachers and mixtures."""

from typing import Any

import lazy_loader

from distillens.errors import REMOVED_NAMES, missing_name

# The names are listed in the stub file; each loads its module when it is first used.
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if f"{__name__}.{name}" in REMOVED_NAMES:
        raise missing_name(__name__, name)
    return _load(name)
