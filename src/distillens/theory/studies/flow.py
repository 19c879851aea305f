"""Learning speed of teacher, student and later generations in each direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from distillens.errors import TheoryError
from distillens.results.figure import Curve, Finding, Panel, Picture, Shown, Style
from distillens.theory.checks import positive
from distillens.theory.flow import distilled_filter, learnt_share, time_to_learn

Array = NDArray[np.float64]


def flow_study(
    eigenvalues: Sequence[float] | None = None, progress: float = 0.9, generations: int = 5
) -> Shown:
    """Compute shares learnt over time, and filters of generations.

    Its arrays are of H times, K directions and G generations: ``stop_times_G`` has the stop time of
    each member of a sequence of 1, 2, … generations, and ``dimensions_G`` is Σ_k f_k, the number of
    directions in use. The student's teacher was stopped at ``teacher_time``.

    Parameters
    ----------
    eigenvalues
        λ > 0, largest first; by default k⁻² for k = 1 … 64.
    progress
        Share of the first direction at which sequences of generations are compared.
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
    teacher_time = time_to_learn(values[0], progress)
    teacher_HK = learnt_share(values, times[:, None])
    stops = [float(time_to_learn(values[0], progress, 1 + place)) for place in range(generations)]
    filters = np.stack(
        [distilled_filter(values, [stop] * (place + 1)) for place, stop in enumerate(stops)]
    )
    arrays = {
        "eigenvalues_K": values,
        "progress": np.asarray(progress),
        "times_H": times,
        "teacher_HK": teacher_HK,
        "student_HK": teacher_HK * learnt_share(values, teacher_time),
        "teacher_time": np.asarray(teacher_time),
        "stop_times_G": np.array(stops),
        "filters_GK": filters,
        "dimensions_G": filters.sum(axis=1),
    }
    first, *_, last = arrays["dimensions_G"]
    findings = (
        Finding(
            "directions in use, teacher", float(first), "Σ of the shares learnt of all directions"
        ),
        Finding(
            f"directions in use, {generations} generations",
            float(last),
            "at the same progress along the first",
        ),
        Finding(
            "each generation learns less of all others",
            int((np.diff(filters, axis=0)[:, 1:] < 0).all()),
            "1: at equal progress along the first direction, in every other direction",
        ),
    )
    return Shown(
        "flow",
        "Nagarajan et al. 2023, arXiv 2301.12923: A(t) and A(t̃)A(T)",
        {"directions": len(values), "progress": progress},
        findings,
        arrays,
        _picture(arrays),
    )


def _picture(arrays: Mapping[str, Array]) -> Picture:
    values = arrays["eigenvalues_K"]
    networks: tuple[tuple[str, Style], ...] = (("teacher", "solid"), ("student", "dashed"))
    moving = [
        Curve(
            arrays["times_H"],
            arrays[f"{who}_HK"][:, place],
            f"{who}, λ = {values[place]:.2g}",
            colour,
            style,
        )
        for colour, place in enumerate(np.unique(np.geomspace(1, len(values), 4).astype(int) - 1))
        for who, style in networks
    ]
    kept = [
        Curve(values, row, f"generation {place}" if place else "teacher", place)
        for place, row in enumerate(arrays["filters_GK"])
    ]
    return Picture(
        "Gradient flow: what is learnt of each direction",
        (
            Panel("over time", "time", "share learnt", tuple(moving), x_scale="log"),
            Panel(
                f"equal progress ({arrays['progress']:g}) along the first",
                "eigenvalue λ",
                "share learnt",
                tuple(kept),
                x_scale="log",
                y_scale="log",
            ),
        ),
        f"Closed form; λ falls from {values[0]:g} to {values[-1]:.2g}; "
        f"the student's teacher was stopped at {arrays['teacher_time']:.3g}.",
    )
