"""The best time to stop a teacher, a student of a given teacher, and a whole line of generations.

Shapes: K directions, G generations. The risk is that of `theory.risk`. As a function of one stop time it
may have several minima, so it is evaluated on a grid of the logarithm of time and refined around
each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar

from distillens.errors import TheoryError
from distillens.theory.filters import learnt_share
from distillens.theory.risk import Spectra

Array = NDArray[np.float64]

_GRID = 400


@dataclass(frozen=True)
class Stop:
    """Stop times of all generations, the teacher first, and the risk of the last one."""

    times_G: tuple[float, ...]
    """Infinity where training to the end is best."""
    risk: float


def best_time(problem: Spectra, teacher_filter_K: ArrayLike | None = None) -> Stop:
    """Return the stop time with the lowest risk: of a teacher, or of a student of a given teacher.

    Parameters
    ----------
    problem
        The spectra.
    teacher_filter_K
        Filter of the teacher, (K,); by default the labels themselves are fitted.

    Raises
    ------
    TheoryError
        The filter has another shape.
    """
    above = np.ones_like(problem.eigenvalues_K)
    if teacher_filter_K is not None:
        above = np.asarray(teacher_filter_K, dtype=np.float64)
        if above.shape != problem.eigenvalues_K.shape:
            raise TheoryError(
                f"a teacher's filter of shape {above.shape} does not fit "
                f"{len(problem.eigenvalues_K)} eigenvalues"
            )
    grid = np.concatenate([time_grid(problem, _GRID), [np.inf]])
    risks = problem.risk(above * learnt_share(problem.eigenvalues_K, grid[:, None]))
    # The refined minima can be no worse than the grid, whose ends and whose infinity are candidates.
    lowest = int(np.argmin(risks))
    found = [(float(risks[lowest]), float(grid[lowest]))]

    def risk_at(log_time: float) -> float:
        return float(
            problem.risk(above * learnt_share(problem.eigenvalues_K, float(np.exp(log_time))))
        )

    inner = np.arange(1, _GRID - 1)
    for place in inner[(risks[inner] <= risks[inner - 1]) & (risks[inner] < risks[inner + 1])]:
        found.append(_refine(risk_at, float(grid[place - 1]), float(grid[place + 1])))
    risk, time = min(found)
    # Late times differ from the end by rounding only; then the end is the answer.
    if risks[-1] <= risk * (1 + 1e-15):
        risk, time = float(risks[-1]), np.inf
    return Stop((time,), risk)


def best_times(problem: Spectra, generations: int) -> Stop:
    """Return the stop times of a line of generations that give the last one the lowest risk.

    Each generation fits the one before it. One more generation can be no worse: trained to the end it
    copies its teacher. The search starts from the best shorter line and from equal times; it is a local
    one in G dimensions, so for G > 1 the result is an upper bound on the lowest risk.

    Raises
    ------
    TheoryError
        There is no generation.
    """
    if generations < 1:
        raise TheoryError(f"{generations} generations; give at least 1")
    if generations == 1:
        return best_time(problem)
    shorter = best_times(problem, generations - 1)
    best = Stop((*shorter.times_G, np.inf), shorter.risk)
    grid = time_grid(problem, _GRID)
    bounds = (float(np.log(grid[0])), float(np.log(grid[-1])))

    def risk_at(log_times: Array) -> float:
        kept = learnt_share(problem.eigenvalues_K, np.exp(log_times)[:, None]).prod(axis=0)
        return float(problem.risk(kept))

    equal = np.log(grid)[:, None].repeat(generations, axis=1)
    starts = [
        equal[int(np.argmin([risk_at(times) for times in equal]))],
        np.clip(np.log(best.times_G), *bounds),
    ]
    for start in starts:
        found = minimize(
            risk_at,
            start,
            method="Nelder-Mead",
            bounds=[bounds] * generations,
            options={"xatol": 1e-8, "fatol": 1e-14, "maxiter": 4000},
        )
        if found.fun < best.risk:
            # Generations commute, so the order is free; the teacher is the one trained longest.
            times = sorted((float(time) for time in np.exp(found.x)), reverse=True)
            best = Stop(tuple(times), float(found.fun))
    return best


def time_grid(problem: Spectra, count: int) -> Array:
    """Return times from long before the fastest direction moves to when the slowest is learnt."""
    values = problem.eigenvalues_K[problem.eigenvalues_K > 0]
    return np.geomspace(1e-4 / values.max(), 50 / values.min(), count)


def _refine(risk_at: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    found = minimize_scalar(
        risk_at, bounds=(np.log(low), np.log(high)), method="bounded", options={"xatol": 1e-10}
    )
    return float(found.fun), float(np.exp(found.x))
