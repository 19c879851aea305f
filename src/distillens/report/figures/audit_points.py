"""The confidence plot taken apart: which points a panel shows, and how they are grouped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from distillens.report.figures.deviation import BY_MISLABELLED, BY_WHO, Group
from distillens.report.figures.points import PANEL_LIMIT, Points, Sample, sample
from distillens.results.confidence import SplitAudit, StudentAudit


@dataclass(frozen=True, eq=False)
class Apart:
    """One panel: a split's points by who is right, or by mislabelled or not."""

    title: str
    split: SplitAudit
    sample: Sample
    groups: tuple[Group, ...]


def taken_apart(
    student: StudentAudit, points: Mapping[str, Points], limit: int = PANEL_LIMIT
) -> list[Apart]:
    """Return the panels of a student; mislabelled examples have one where there are some.

    Raises
    ------
    RunError
        The points do not fit each other.
    """
    found = []
    for split in student.audit.splits:
        arrays, threshold = points[split.split], split.exaggeration.threshold
        where = f"points of {split.split}"
        thinned = sample(arrays, where, threshold, limit)
        found.append(Apart(f"{split.split}, by who is right", split, thinned, BY_WHO))
        if "mislabelled" in arrays and np.any(arrays["mislabelled"]):
            marked = {**arrays, "who": np.asarray(arrays["mislabelled"], dtype=np.uint8)}
            thinned = sample(marked, where, threshold, limit)
            title = f"{split.split}, by mislabelled or not"
            found.append(Apart(title, split, thinned, BY_MISLABELLED))
    return found
