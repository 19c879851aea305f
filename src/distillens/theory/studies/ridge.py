"""Self-distillation with kernel ridge regression, compared with gradient flow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.errors import TheoryError
from distillens.results.figure import Curve, Finding, Panel, Picture, Shown, Style
from distillens.theory.checks import shares
from distillens.theory.filters import distilled_filter, time_to_learn
from distillens.theory.ridge import RidgeRounds, ridge_filter, self_distil_ridge

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RidgeStudy:
    """Filters of rounds of ridge and of generations of gradient flow. K directions, G rounds."""

    eigenvalues_K: Array
    progress: float
    ridge_GK: Array
    """Rounds with one ridge each, chosen so that all keep ``progress`` of the first direction."""
    flow_GK: Array
    """Generations with one stop time each, chosen likewise."""
    rounds: RidgeRounds
    """Mobahi's rounds at one tolerance, on targets of equal size in every direction."""
    tolerance: float

    def shown(self) -> Shown:
        """Return the study as numbers in words, arrays and a picture."""
        sharper = all(
            bool((np.diff(kept, axis=0)[:, 1:] < 0).all()) for kept in (self.ridge_GK, self.flow_GK)
        )
        findings = (
            Finding(
                "rounds before collapse",
                len(self.rounds.ridges_R),
                "at one tolerance; 'collapsed' states whether the next fit is zero",
            ),
            Finding("collapsed", int(self.rounds.collapsed), "1: yes"),
            Finding("rounds that are sure", self.rounds.sure_rounds, "⌈‖y‖/√(Nε)⌉ − 1"),
            Finding(
                "each round keeps less, both ways",
                int(sharper),
                "1: at equal progress along the first direction, in every other direction",
            ),
            Finding(
                "directions in use, one round",
                float(self.ridge_GK[0].sum()),
                f"of ridge; gradient flow: {self.flow_GK[0].sum():.4g}",
            ),
            Finding(
                f"directions in use, {len(self.ridge_GK)} rounds",
                float(self.ridge_GK[-1].sum()),
                f"of ridge; gradient flow: {self.flow_GK[-1].sum():.4g}",
            ),
        )
        arrays = {name: np.asarray(value) for name, value in vars(self).items() if name != "rounds"}
        arrays |= {
            "ridges_R": self.rounds.ridges_R,
            "filters_RK": self.rounds.filters_RK,
            "norms_R": self.rounds.norms_R,
        }
        return Shown(
            "ridge",
            "Mobahi et al. 2020, arXiv 2002.05715; compared with arXiv 2301.12923",
            {
                "directions": len(self.eigenvalues_K),
                "progress": self.progress,
                "tolerance": self.tolerance,
            },
            findings,
            arrays,
            self._picture(),
        )

    def _picture(self) -> Picture:
        places = sorted({0, 1, len(self.ridge_GK) - 1})
        kinds: tuple[tuple[str, Array, Style], ...] = (
            ("gradient flow", self.flow_GK, "solid"),
            ("ridge", self.ridge_GK, "dashed"),
        )
        equal = [
            Curve(self.eigenvalues_K, kept[place], f"{who}, {place + 1} round(s)", colour, style)
            for colour, place in enumerate(places)
            for who, kept, style in kinds
        ]
        rows = np.unique(np.linspace(0, len(self.rounds.filters_RK) - 1, 5).astype(int))
        # Relative to the first direction, so that what all rounds lose does not hide what they sort.
        rounds = [
            Curve(
                self.eigenvalues_K,
                self.rounds.filters_RK[row] / self.rounds.filters_RK[row, 0],
                f"round {row + 1}",
                colour,
            )
            for colour, row in enumerate(rows)
        ]
        return Picture(
            "Self-distillation of kernel ridge and of gradient flow",
            (
                Panel(
                    f"equal progress ({self.progress:g}) along the first",
                    "eigenvalue", "share kept", tuple(equal), x_scale="log", y_scale="log",
                ),
                Panel(
                    "Mobahi's rounds at one tolerance",
                    "eigenvalue", "share kept, to the first", tuple(rounds),
                    x_scale="log", y_scale="log",
                ),
            ),
            f"Closed form; {len(self.eigenvalues_K)} directions; tolerance {self.tolerance:g} of a "
            "mean square of 1.",
        )  # fmt: skip


def ridge_study(
    directions: int = 64,
    eigenvalue_decay: float = 2.0,
    progress: float = 0.9,
    rounds: int = 5,
    tolerance: float = 0.02,
) -> RidgeStudy:
    """Run the study, with d_k = λ_k = k^−a and targets of size 1 in every direction.

    Parameters
    ----------
    directions, eigenvalue_decay
        K and a.
    progress
        Share of the first direction that all lines keep.
    rounds
        The longest line at equal progress.
    tolerance
        ε of Mobahi's rounds, in (0, 1), which go on until collapse, at most 100 of them.

    Raises
    ------
    TheoryError
        A number is not in its range.
    """
    if directions < 2 or rounds < 1:
        raise TheoryError("give at least 2 directions and 1 round")
    values = np.arange(1, directions + 1, dtype=np.float64) ** -float(eigenvalue_decay)
    wanted = float(shares(progress, "the progress"))
    flow, ridge = [], []
    for count in range(1, rounds + 1):
        stop = float(time_to_learn(values[0], wanted, count))
        flow.append(distilled_filter(values, [stop] * count))
        # (d/(c + d))^count = progress in the first direction.
        penalty = float(values[0] * np.expm1(-np.log(wanted) / count))
        ridge.append(ridge_filter(values, [penalty] * count))
    return RidgeStudy(
        eigenvalues_K=values,
        progress=wanted,
        ridge_GK=np.stack(ridge),
        flow_GK=np.stack(flow),
        rounds=self_distil_ridge(values, np.ones(directions), tolerance, 100),
        tolerance=tolerance,
    )
