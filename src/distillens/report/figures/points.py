"""The points of a confidence plot: checked, and thinned to keep the page small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from distillens.errors import RunError

Points: TypeAlias = Mapping[str, np.ndarray]
"""The arrays of a confidence plot: x and y (floats) and who (0 both right, 1 only the student,
2 only the teacher, 3 neither), all of length N."""

PANEL_LIMIT = 2_000
_PAGE_LIMIT = 60_000


@dataclass(frozen=True)
class Sample:
    """Points to draw, out of ``total`` in the run.

    ``low`` and ``high`` are the mean (x, y) of all finite points below and from the threshold on,
    which a least-squares line passes through; None where a part is empty.
    """

    x: np.ndarray
    y: np.ndarray
    who: np.ndarray
    total: int
    dropped: int
    low: tuple[float, float] | None
    high: tuple[float, float] | None


def panel_limit(panels: int) -> int:
    """Return how many points a panel may show so that all of them together stay near 1 MB."""
    return min(PANEL_LIMIT, _PAGE_LIMIT // max(1, panels))


def sample(points: Points, where: str, threshold: float, limit: int = PANEL_LIMIT) -> Sample:
    """Check the points of one panel and thin them, the same way in each run.

    Parameters
    ----------
    points
        Arrays x, y, who.
    where
        The file's name, for messages.
    threshold
        The x that separates the low- from the high-confidence part.
    limit
        The most points to keep; of more, that many are chosen uniformly at random with a fixed seed.

    Raises
    ------
    RunError
        An array is missing, has another shape or another kind of numbers.
    """
    x, y, who = (column(points, key, where) for key in ("x", "y", "who"))
    if not len(x) == len(y) == len(who):
        raise RunError(
            f"{where}: x, y and who have lengths {len(x)}, {len(y)}, {len(who)}; measure again"
        )
    if not np.isin(who, range(4)).all():
        raise RunError(f"{where}: who holds values other than 0, 1, 2, 3; measure the run again")
    finite = np.isfinite(x) & np.isfinite(y)
    dropped = int(len(x) - finite.sum())
    x, y, who = x[finite], y[finite], who[finite].astype(np.int8)
    low = _centre(x, y, x < threshold)
    high = _centre(x, y, x >= threshold)
    total = len(x)
    if total > limit:
        chosen = np.sort(np.random.default_rng(0).choice(total, limit, replace=False))
        x, y, who = x[chosen], y[chosen], who[chosen]
    return Sample(x, y, who, total, dropped, low, high)


def column(points: Points, key: str, where: str) -> np.ndarray:
    """Return an array of a confidence plot as floating-point numbers, shape (N,).

    Raises
    ------
    RunError
        It is missing, or has another shape or another kind of numbers.
    """
    if key not in points:
        raise RunError(f"{where} has no array {key!r}; measure the run again")
    array = np.asarray(points[key])
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise RunError(
            f"{where}: {key} is {array.dtype} of shape {array.shape}, expected numbers of shape (N,); "
            "measure the run again"
        )
    return array.astype(np.float64)


def _centre(x: np.ndarray, y: np.ndarray, part: np.ndarray) -> tuple[float, float] | None:
    if not part.any():
        return None
    return float(x[part].mean()), float(y[part].mean())
