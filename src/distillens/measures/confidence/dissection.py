"""The confidence plot by who is right and whether the label was wrong.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923: points that only the student gets right, and
mislabelled examples, lie among the underfit ones. Shapes: N examples.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from distillens.measures.confidence.log_odds import Points
from distillens.measures.statistics.intervals import observed_share
from distillens.results.confidence import DissectedPart

Who = Literal["both right", "only the student", "only the teacher", "neither"]
_WHO: tuple[Who, ...] = ("both right", "only the student", "only the teacher", "neither")


def dissect(points: Points) -> tuple[DissectedPart, ...]:
    """Return where the points of each kind lie; kinds without examples are left out."""
    mislabelled_N = points.mislabelled_N
    low_N = points.x_N < np.median(points.x_N)
    under_N = points.y_N < points.x_N
    found = []
    for code, who in enumerate(_WHO):
        for wrong in (None,) if mislabelled_N is None else (False, True):
            inside_N = points.who_N == code
            if wrong is not None and mislabelled_N is not None:
                inside_N = inside_N & (mislabelled_N == wrong)
            if inside_N.any():
                low, under = observed_share(low_N[inside_N]), observed_share(under_N[inside_N])
                found.append(DissectedPart(who, wrong, int(inside_N.sum()), low, under))
    return tuple(found)
