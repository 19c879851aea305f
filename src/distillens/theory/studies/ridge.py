"""Self-distillation with kernel ridge regression, compared with gradient flow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from distillens.errors import TheoryError
from distillens.results.figure import Curve, Finding, Panel, Picture, Shown, Style
from distillens.theory.checks import shares
from distillens.theory.flow import distilled_filter, time_to_learn
from distillens.theory.ridge import ridge_filter, self_distil_ridge

Array = NDArray[np.float64]


def ridge_study(
    directions: int = 64,
    eigenvalue_decay: float = 2.0,
    progress: float = 0.9,
    rounds: int = 5,
    tolerance: float = 0.02,
) -> Shown:
    """Compare rounds of ridge with generations of gradient flow.

    d_k = λ_k = k^−a, and the targets are of size 1 in every direction. ``ridge_GK`` are rounds with
    one ridge each, ``flow_GK`` generations with one stop time each, chosen such that all keep
    ``progress`` of the first direction. ``ridges_R``, ``filters_RK`` and ``norms_R`` are those of
    `RidgeRounds`.

    Parameters
    ----------
    directions, eigenvalue_decay
        K and a.
    progress
        Share of the first direction that all sequences keep.
    rounds
        The longest sequence at equal progress.
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
    counts = range(1, rounds + 1)
    stops = [float(time_to_learn(values[0], wanted, count)) for count in counts]
    # (d/(c + d))^count = progress in the first direction.
    penalties = [float(values[0] * np.expm1(-np.log(wanted) / count)) for count in counts]
    flow, ridge = (
        np.stack([filter_of(values, [each] * (place + 1)) for place, each in enumerate(settings)])
        for filter_of, settings in ((distilled_filter, stops), (ridge_filter, penalties))
    )
    mobahi = self_distil_ridge(values, np.ones(directions), tolerance, 100)
    arrays = {
        "eigenvalues_K": values,
        "progress": np.asarray(wanted),
        "ridge_GK": ridge,
        "flow_GK": flow,
        "tolerance": np.asarray(tolerance),
        "ridges_R": mobahi.ridges_R,
        "filters_RK": mobahi.filters_RK,
        "norms_R": mobahi.norms_R,
    }
    sharper = all(bool((np.diff(kept, axis=0)[:, 1:] < 0).all()) for kept in (ridge, flow))
    findings = (
        Finding(
            "rounds before collapse",
            len(mobahi.ridges_R),
            "at one tolerance; 'collapsed' states whether the next fit is zero",
        ),
        Finding("collapsed", int(mobahi.collapsed), "1: yes"),
        Finding("rounds that are sure", mobahi.sure_rounds, "⌈‖y‖/√(Nε)⌉ − 1"),
        Finding(
            "each round keeps less, both ways",
            int(sharper),
            "1: at equal progress along the first direction, in every other direction",
        ),
        *(
            Finding(
                f"directions in use, {count}",
                float(ridge[place].sum()),
                f"of ridge; gradient flow: {flow[place].sum():.4g}",
            )
            for place, count in ((0, "one round"), (-1, f"{rounds} rounds"))
        ),
    )
    return Shown(
        "ridge",
        "Mobahi et al. 2020, arXiv 2002.05715; compared with arXiv 2301.12923",
        {"directions": directions, "progress": wanted, "tolerance": tolerance},
        findings,
        arrays,
        _picture(arrays),
    )


def _picture(arrays: Mapping[str, Array]) -> Picture:
    values, filters_RK = arrays["eigenvalues_K"], arrays["filters_RK"]
    kinds: tuple[tuple[str, Array, Style], ...] = (
        ("gradient flow", arrays["flow_GK"], "solid"),
        ("ridge", arrays["ridge_GK"], "dashed"),
    )
    equal = [
        Curve(values, kept[place], f"{who}, {place + 1} round(s)", colour, style)
        for colour, place in enumerate(sorted({0, 1, len(arrays["ridge_GK"]) - 1}))
        for who, kept, style in kinds
    ]
    # Relative to the first direction, so that what all rounds lose does not hide what they sort.
    rounds = [
        Curve(values, filters_RK[row] / filters_RK[row, 0], f"round {row + 1}", colour)
        for colour, row in enumerate(np.unique(np.linspace(0, len(filters_RK) - 1, 5).astype(int)))
    ]
    panels = (
        (f"equal progress ({arrays['progress']:g}) along the first", "share kept", equal),
        ("Mobahi's rounds at one tolerance", "share kept, to the first", rounds),
    )
    return Picture(
        "Self-distillation of kernel ridge and of gradient flow",
        tuple(
            Panel(title, "eigenvalue", share, tuple(curves), x_scale="log", y_scale="log")
            for title, share, curves in panels
        ),
        f"Closed form; {len(values)} directions; tolerance {arrays['tolerance']:g} of a mean square "
        "of 1.",
    )
