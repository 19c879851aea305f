"""Write an audit into a folder: its numbers, and the points of the confidence plot."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillens.atomic import write_atomically
from distillens.audit_results import Audit
from distillens.results import to_json


def write_audit(
    audit: Audit, points: Mapping[str, Mapping[str, NDArray]], folder: Path
) -> list[Path]:
    """Write ``audit.json`` and, for each split, ``points-<split>.npz`` (x, y, who); return the paths.

    Raises
    ------
    RunError
        The folder cannot be written.
    """
    written = [folder / "audit.json"]
    write_atomically(written[0], to_json(audit))
    for place, (split, arrays) in enumerate(points.items()):
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", split).strip("-.") or str(place)
        path = folder / f"points-{name}.npz"
        if path in written:
            path = folder / f"points-{name}-{place}.npz"
        memory = io.BytesIO()
        np.savez(memory, allow_pickle=False, **{key: arrays[key] for key in ("x", "y", "who")})
        write_atomically(path, memory.getvalue())
        written.append(path)
    return written
