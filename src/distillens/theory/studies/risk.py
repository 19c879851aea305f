"""Risk of student and teacher in closed form, for known signal and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.errors import TheoryError
from distillens.results.figure import Curve, Finding, Panel, Picture, Shown, Surface
from distillens.theory.checks import positive
from distillens.theory.filters import learnt_share
from distillens.theory.risk import Spectra, spectra
from distillens.theory.stopping import best_time, best_times, time_grid

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RiskStudy:
    """Risks over stop times, and of best lines over the decay of the signal.

    H teacher times, H student times, B decays, G generations. Ratios are to the best risk without a
    student; λ_k = k^−a and the signal is s_k ∝ k^−b with Σ s_k = 1.
    """

    eigenvalues_K: Array
    times_H: Array
    teacher_risk_H: Array
    student_risk_HH: Array
    """Row: the teacher's time; column: the student's."""
    best_student_H: Array
    """Lowest risk over student times, infinity included, of the teacher of each time."""
    best_teacher_time: float
    best_teacher_risk: float
    best_student_risk: float
    """Risk at the best pair of times found."""
    wiener_risk: float
    decays_B: Array
    best_risk_BG: Array
    """Risk of the best sequence of G generations at each decay of the signal."""
    wiener_B: Array
    noise: float

    def shown(self) -> Shown:
        """Return the study as numbers in words, arrays and a picture."""
        gain = self.best_risk_BG[:, 1] / self.best_risk_BG[:, 0]
        helped = self.best_student_H < self.teacher_risk_H * (1 - 1e-9)
        findings = (
            Finding("best teacher's risk", self.best_teacher_risk, "stopped at its best time"),
            Finding("best teacher's stop time", self.best_teacher_time, ""),
            Finding("best student's risk", self.best_student_risk, "best pair of stop times"),
            Finding("best filter's risk", self.wiener_risk, "Wiener's, below which none can be"),
            Finding(
                "earliest teacher that a student beats",
                float(self.times_H[helped].min()) if helped.any() else float("nan"),
                "stop time; it has overfit its slowest directions at least",
            ),
            Finding(
                "decays where a student beats the best teacher",
                int((gain < 1 - 1e-6).sum()),
                f"of {len(gain)} decays of the signal, by more than 1e-6 of the risk",
            ),
            Finding("largest reduction", float(1 - gain.min()), "share of the best teacher's risk"),
        )
        return Shown(
            "risk",
            "bias and variance of A(t) and A(t̃)A(T) of arXiv 2301.12923; comparison: ours",
            {"directions": len(self.eigenvalues_K), "noise": self.noise},
            findings,
            {name: np.asarray(value) for name, value in vars(self).items()},
            self._picture(),
        )

    def _picture(self) -> Picture:
        over_time = (
            Curve(self.times_H, self.teacher_risk_H, "teacher", 0),
            Curve(self.times_H, self.best_student_H, "its best student", 1, "dashed"),
        )
        gain = np.log10(self.student_risk_HH / self.teacher_risk_H[:, None])
        # If the student is a copy of its teacher, signs of rounding errors would look like a border.
        shown = np.where(np.abs(gain) < 1e-9, np.nan, np.clip(gain, -1, 1))
        surface = Surface(self.times_H, self.times_H, shown, "log₁₀(student/teacher)")
        lines = [
            Curve(
                self.decays_B,
                self.best_risk_BG[:, place] / self.best_risk_BG[:, 0],
                "teacher" if not place else f"generation {place}",
                place,
            )
            for place in range(self.best_risk_BG.shape[1])
        ]
        lines.append(
            Curve(self.decays_B, self.wiener_B / self.best_risk_BG[:, 0], "Wiener", 5, "dotted")
        )
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
            f"Closed form; {len(self.eigenvalues_K)} directions, noise {self.noise:g} in each, "
            "signal of sum 1. Map: blue where the student is better, blank where it equals its teacher.",
        )  # fmt: skip


def risk_study(
    directions: int = 100,
    eigenvalue_decay: float = 1.0,
    signal_decay: float = 3.0,
    noise: float = 1e-3,
    decays: int = 13,
    generations: int = 3,
) -> RiskStudy:
    """Run the study.

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
        The longest line; at least 2.

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
    lines = [
        [best_times(problem_at(b), count + 1).risk for count in range(generations)] for b in grid_B
    ]
    wiener = [float(at.risk(at.best_filter())) for at in map(problem_at, grid_B)]
    return RiskStudy(
        eigenvalues_K=values,
        times_H=times,
        teacher_risk_H=problem.risk(kept_HK),
        student_risk_HH=problem.risk(kept_HK[:, None] * kept_HK[None]),
        best_student_H=np.array([best_time(problem, kept).risk for kept in kept_HK]),
        best_teacher_time=teacher.times_G[0],
        best_teacher_risk=teacher.risk,
        best_student_risk=best_times(problem, 2).risk,
        wiener_risk=float(problem.risk(problem.best_filter())),
        decays_B=grid_B,
        best_risk_BG=np.array(lines),
        wiener_B=np.array(wiener),
        noise=noise,
    )
