"""Log-odds of the teacher's top class, the coordinates of the confidence plot.

φ(u) = ln(u / (1 − u)) of the probability u that a network gives to the teacher's top class. Source:
Nagarajan et al., NeurIPS 2023, arXiv 2301.12923. Shapes: N examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.special
from numpy.typing import ArrayLike, NDArray

from distillens.files.array_likes import as_array

Array = NDArray[np.float64]

_EDGE = float(np.log(1e7 - 1))
"""Least |φ| at which points with an infinite φ are placed: that of a probability of 1e-7."""


@dataclass(frozen=True, eq=False)
class Points:
    """The points of the confidence plot: x = φ(p_teacher[k]), y = φ(p_student[k]).

    k is the teacher's top class. ``who_N`` is the network that predicts the label: 0 both, 1 only the
    student, 2 only the teacher, 3 neither. Labels are the true ones where they are known.
    """

    x_N: Array
    y_N: Array
    who_N: NDArray[np.uint8]
    mislabelled_N: NDArray[np.bool_] | None = None
    """Mask of the examples whose given label is wrong; None if that is not known."""
    teacher_class_N: NDArray[np.integer] | None = None
    student_class_N: NDArray[np.integer] | None = None
    """The top classes of teacher and student; None if they were not kept."""

    def arrays(self) -> dict[str, NDArray]:
        """Return the arrays x, y and who, and the others where they are known, as files hold them."""
        known = {
            "x": self.x_N,
            "y": self.y_N,
            "who": self.who_N,
            "mislabelled": self.mislabelled_N,
            "teacher_class": self.teacher_class_N,
            "student_class": self.student_class_N,
        }
        return {name: values for name, values in known.items() if values is not None}


def phi_from_logits(logits_NC: ArrayLike, classes_N: ArrayLike) -> Array:
    """Return φ(p[k]) = z_k − logsumexp_{j≠k} z_j, which does not saturate where p[k] does.

    Parameters
    ----------
    logits_NC
        (N, C) with C ≥ 2, or (N, 1) for one output whose sigmoid is the probability of class 1.
    classes_N
        The class k of each example, in 0 … C−1 (0 or 1 for one output).
    """
    logits = as_array(logits_NC).astype(np.float64)
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    rows = np.arange(len(logits))
    k = as_array(classes_N)
    rest = logits.copy()
    rest[rows, k] = -np.inf
    return logits[rows, k] - scipy.special.logsumexp(rest, axis=1)


def place_infinite(*phi: Array) -> tuple[int, float]:
    """Replace infinite φ, of probabilities of exactly 0 or 1, by the largest finite |φ|, in place.

    Returns
    -------
    tuple
        The number of examples with an infinite φ, and the number that replaces infinity, at least
        16.1.
    """
    infinite_N = np.zeros(len(phi[0]), dtype=bool)
    edge = _EDGE
    for values_N in phi:
        finite_N = np.isfinite(values_N)
        infinite_N |= ~finite_N
        edge = max(edge, float(np.abs(values_N[finite_N]).max(initial=0)))
    for values_N in phi:
        np.clip(values_N, -edge, edge, out=values_N)
    return int(np.count_nonzero(infinite_N)), edge
