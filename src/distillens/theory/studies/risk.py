"""Risk of student and teacher in closed form, for known signal and noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from distillens.errors import TheoryError
from distillens.results.figure import Curve, Finding, Panel, Picture, Shown, Surface
from distillens.theory.checks import positive
from distillens.theory.flow import learnt_share
from distillens.theory.risk import Spectra, best_time, best_times, spectra, time_grid

Array = NDArray[np.float64]


def risk_study(
    directions: int = 100,
    eigenvalue_decay: float = 1.0,
    signal_decay: float = 3.0,
    noise: float = 1e-3,
    decays: int = 13,
    generations: int = 3,
) -> Shown:
    """Compute risks over stop times, and of the best sequences over the decay of the signal.

    λ_k = k^−a and the signal is s_k ∝ k^−b with Σ s_k = 1. The arrays are of H teacher times, H
    student times, B decays and G generations: ``student_risk_HH`` has a row for each time of the
    teacher, ``best_student_H`` the lowest risk over student times (infinity included) of the
    teacher of each time, ``best_student_risk`` the risk at the best pair of times found, and
    ``best_risk_BG`` the risk of the best sequence of G generations at each decay.

    Parameters
    ----------
    directions
        K.
    eigenvalue_decay, signal_decay
        a and b in λ_k = k^−a and s_k ∝ k^−b.
    noise
        ν, the noise variance in each direction, to a signal of sum 1.
    decays
        Number of b between 0 and 6 at which sequences of generations are compared.
    generations
        The longest sequence; at least 2.

    Raises
    ------
    TheoryError
        A number is not in its range.
    """
    if directions < 2 or generations < 2 or decays < 1:
        raise TheoryError("give at least 2 directions, 2 generations and 1 decay")
    # Without noise the best risk is 0, of which no share can be taken.
    positive(noise, "the noise")
    values = np.arange(1, directions + 1, dtype=np.float64) ** -float(eigenvalue_decay)

    def problem_at(decay: float) -> Spectra:
        signal = np.arange(1, directions + 1) ** -float(decay)
        return spectra(values, signal / signal.sum(), noise)

    problem = problem_at(signal_decay)
    times = time_grid(problem, 81)
    kept_HK = learnt_share(values, times[:, None])
    teacher = best_time(problem)
    grid_B = np.linspace(0, 6, decays)
    arrays = {
        "eigenvalues_K": values,
        "times_H": times,
        "teacher_risk_H": problem.risk(kept_HK),
        "student_risk_HH": problem.risk(kept_HK[:, None] * kept_HK[None]),
        "best_student_H": np.array([best_time(problem, kept).risk for kept in kept_HK]),
        "best_teacher_time": np.asarray(teacher.times_G[0]),
        "best_teacher_risk": np.asarray(teacher.risk),
        "best_student_risk": np.asarray(best_times(problem, 2).risk),
        "wiener_risk": np.asarray(problem.risk(problem.best_filter())),
        "decays_B": grid_B,
        "best_risk_BG": np.array(
            [
                [best_times(problem_at(b), count + 1).risk for count in range(generations)]
                for b in grid_B
            ]
        ),
        "wiener_B": np.array([at.risk(at.best_filter()) for at in map(problem_at, grid_B)]),
        "noise": np.asarray(noise),
    }
    return Shown(
        "risk",
        "bias and variance of A(t) and A(t̃)A(T) of arXiv 2301.12923; comparison: ours",
        {"directions": directions, "noise": noise},
        _findings(arrays),
        arrays,
        _picture(arrays),
    )


def _findings(arrays: Mapping[str, Array]) -> tuple[Finding, ...]:
    best_BG, times_H = arrays["best_risk_BG"], arrays["times_H"]
    gain = best_BG[:, 1] / best_BG[:, 0]
    helped = arrays["best_student_H"] < arrays["teacher_risk_H"] * (1 - 1e-9)
    named = (
        ("best teacher's risk", "best_teacher_risk", "stopped at its best time"),
        ("best teacher's stop time", "best_teacher_time", ""),
        ("best student's risk", "best_student_risk", "best pair of stop times"),
        ("best filter's risk", "wiener_risk", "Wiener's, below which none can be"),
    )
    return (
        *(Finding(name, float(arrays[key]), meaning) for name, key, meaning in named),
        Finding(
            "earliest teacher that a student beats",
            float(times_H[helped].min()) if helped.any() else float("nan"),
            "stop time; it has overfit its slowest directions at least",
        ),
        Finding(
            "decays where a student beats the best teacher",
            int((gain < 1 - 1e-6).sum()),
            f"of {len(gain)} decays of the signal, by more than 1e-6 of the risk",
        ),
        Finding("largest reduction", float(1 - gain.min()), "share of the best teacher's risk"),
    )


def _picture(arrays: Mapping[str, Array]) -> Picture:
    times_H, best_BG = arrays["times_H"], arrays["best_risk_BG"]
    over_time = (
        Curve(times_H, arrays["teacher_risk_H"], "teacher", 0),
        Curve(times_H, arrays["best_student_H"], "its best student", 1, "dashed"),
    )
    gain = np.log10(arrays["student_risk_HH"] / arrays["teacher_risk_H"][:, None])
    # If the student is a copy of its teacher, signs of rounding errors would look like a border.
    shown = np.where(np.abs(gain) < 1e-9, np.nan, np.clip(gain, -1, 1))
    surface = Surface(times_H, times_H, shown, "log₁₀(student/teacher)")
    lines = [
        Curve(
            arrays["decays_B"],
            risk_B / best_BG[:, 0],
            f"generation {place}" if place else "teacher",
            place,
        )
        for place, risk_B in enumerate(best_BG.T)
    ]
    wiener = arrays["wiener_B"] / best_BG[:, 0]
    lines.append(Curve(arrays["decays_B"], wiener, "Wiener", 5, "dotted"))
    return Picture(
        "When a student generalises better than its teacher",
        (
            Panel(
                "one teacher, its best student", "teacher's stop time T", "excess risk",
                over_time, x_scale="log", y_scale="log",
            ),
            Panel(
                "student against teacher", "student's stop time t̃", "teacher's stop time T",
                surface=surface, x_scale="log", y_scale="log",
            ),
            Panel(
                "best stop times of all", "decay b of the signal, s ∝ k⁻ᵇ",
                "risk/best teacher's risk", tuple(lines),
            ),
        ),
        f"Closed form; {len(arrays['eigenvalues_K'])} directions, noise {arrays['noise']:g} in each, "
        "signal of sum 1. Map: blue where the student is better, blank where it equals its teacher.",
    )  # fmt: skip
