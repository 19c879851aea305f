"""Provenance of a result: versions, machine, command and times."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from distillens.results.training import Provenance

PACKAGES = ("distillens", "torch", "numpy", "scipy", "accelerate", "datasets", "scikit-learn")


def now() -> datetime:
    """Return the current time with its time zone."""
    return datetime.now(UTC)


def provenance(began: datetime, seconds: float, fingerprint: str, teacher: str) -> Provenance:
    """Return the provenance of a result of this process."""
    return Provenance(
        command=" ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),  # noqa: PTH119
        started=began.isoformat(timespec="milliseconds"),
        finished=now().isoformat(timespec="milliseconds"),
        seconds=seconds,
        versions={"python": platform.python_version(), **_versions()},
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        data_fingerprint=fingerprint,
        teacher_digest=teacher,
    )


def own_version() -> str:
    """Return the version of distillens that is installed."""
    return _versions()["distillens"]


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
