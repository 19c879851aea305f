"""Learning speed of teacher, student and later generations in each direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.errors import TheoryError
from distillens.results.figure import Curve, Finding, Panel, Picture, Shown, Style
from distillens.theory.checks import positive
from distillens.theory.filters import distilled_filter, learnt_share, time_to_learn

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FlowStudy:
    """Shares learnt over time, and filters of generations. H times, K directions, G generations."""

    eigenvalues_K: Array
    progress: float
    """Share of the first direction that each sequence of generations has learnt at its stop time."""
    times_H: Array
    teacher_HK: Array
    student_HK: Array
    """The student of a teacher that was stopped at ``teacher_time``."""
    teacher_time: float
    stop_times_G: Array
    """Stop time of each member of a sequence of 1, 2, … generations."""
    filters_GK: Array
    dimensions_G: Array
    """Σ_k f_k, the number of directions in use."""

    def shown(self) -> Shown:
        """Return the study as numbers in words, arrays and a picture."""
        generations = len(self.filters_GK)
        below = bool((np.diff(self.filters_GK, axis=0)[:, 1:] < 0).all())
        last = f"directions in use, {generations} generations"
        findings = (
            Finding(
                "directions in use, teacher",
                float(self.dimensions_G[0]),
                "Σ of the shares learnt of all directions",
            ),
            Finding(last, float(self.dimensions_G[-1]), "at the same progress along the first"),
            Finding(
                "each generation learns less of all others",
                int(below),
                "1: at equal progress along the first direction, in every other direction",
            ),
        )
        chosen = np.unique(np.geomspace(1, len(self.eigenvalues_K), 4).astype(int) - 1)
        networks: tuple[tuple[str, Array, Style], ...] = (
            ("teacher", self.teacher_HK, "solid"),
            ("student", self.student_HK, "dashed"),
        )
        moving = [
            Curve(
                self.times_H,
                shares[:, place],
                f"{who}, λ = {self.eigenvalues_K[place]:.2g}",
                colour,
                style,
            )
            for colour, place in enumerate(chosen)
            for who, shares, style in networks
        ]
        kept = [
            Curve(self.eigenvalues_K, row, "teacher" if not place else f"generation {place}", place)
            for place, row in enumerate(self.filters_GK)
        ]
        picture = Picture(
            "Gradient flow: what is learnt of each direction",
            (
                Panel("over time", "time", "share learnt", tuple(moving), x_scale="log"),
                Panel(
                    f"equal progress ({self.progress:g}) along the first",
                    "eigenvalue λ",
                    "share learnt",
                    tuple(kept),
                    x_scale="log",
                    y_scale="log",
                ),
            ),
            f"Closed form; λ falls from {self.eigenvalues_K[0]:g} to {self.eigenvalues_K[-1]:.2g}; "
            f"the student's teacher was stopped at {self.teacher_time:.3g}.",
        )
        arrays = {name: np.asarray(value) for name, value in vars(self).items()}
        return Shown(
            "flow",
            "Nagarajan et al. 2023, arXiv 2301.12923: A(t) and A(t̃)A(T)",
            {"directions": len(self.eigenvalues_K), "progress": self.progress},
            findings,
            arrays,
            picture,
        )


def flow_study(
    eigenvalues: Sequence[float] | None = None, progress: float = 0.9, generations: int = 5
) -> FlowStudy:
    """Run the study.

    Parameters
    ----------
    eigenvalues
        λ > 0, largest first; by default k⁻² for k = 1 … 64.
    progress
        Share of the first direction at which lines of generations are compared.
    generations
        Number of sequences: the teacher alone, with a student, and so on.

    Raises
    ------
    TheoryError
        A number is not in its range, or the eigenvalues do not fall.
    """
    given = np.arange(1, 65) ** -2.0 if eigenvalues is None else eigenvalues
    values = positive(given, "the spectrum")
    if values.ndim != 1 or len(values) < 2 or (np.diff(values) > 0).any():
        raise TheoryError("give two eigenvalues or more, largest first")
    times = np.geomspace(1e-2 / values[0], 10 / values[-1], 240)
    teacher_time = float(time_to_learn(values[0], progress))
    teacher_HK = learnt_share(values, times[:, None])
    stops = [
        float(time_to_learn(values[0], progress, count)) for count in range(1, generations + 1)
    ]
    filters = np.stack(
        [distilled_filter(values, [stop] * (place + 1)) for place, stop in enumerate(stops)]
    )
    return FlowStudy(
        eigenvalues_K=values,
        progress=progress,
        times_H=times,
        teacher_HK=teacher_HK,
        student_HK=teacher_HK * learnt_share(values, teacher_time),
        teacher_time=teacher_time,
        stop_times_G=np.array(stops),
        filters_GK=filters,
        dimensions_G=filters.sum(axis=1),
    )
