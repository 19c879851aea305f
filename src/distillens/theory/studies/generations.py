"""Generations of self-distillation: with gradient flow, and with kernel ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from distillens.errors import TheoryError
from distillens.results.figure import Curve, Finding, Panel, Picture, Shown, Style
from distillens.theory.checks import positive, shares
from distillens.theory.flow import distilled_filter, learnt_share, time_to_learn
from distillens.theory.ridge import ridge_filter, self_distil_ridge

Array = NDArray[np.float64]
Filter = Callable[[Array, Sequence[float]], Array]


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
    filters = _filters(distilled_filter, values, stops)
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
    dimensions = arrays["dimensions_G"]
    findings = (
        Finding(
            "directions in use, teacher",
            float(dimensions[0]),
            "Σ of the shares learnt of all directions",
        ),
        Finding(
            f"directions in use, {generations} generations",
            float(dimensions[-1]),
            "at the same progress along the first",
        ),
        Finding(
            "each generation learns less of all others",
            int(_falls(filters)),
            "1: at equal progress along the first direction, in every other direction",
        ),
    )
    return Shown(
        "flow",
        "Nagarajan et al. 2023, arXiv 2301.12923: A(t) and A(t̃)A(T)",
        {"directions": len(values), "progress": progress},
        findings,
        arrays,
        _flow_picture(arrays),
    )


def _flow_picture(arrays: Mapping[str, Array]) -> Picture:
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
    flow = _filters(distilled_filter, values, stops)
    ridge = _filters(ridge_filter, values, penalties)
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
            int(_falls(ridge) and _falls(flow)),
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
        _ridge_picture(arrays),
    )


def _ridge_picture(arrays: Mapping[str, Array]) -> Picture:
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


def _filters(filter_of: Filter, values: Array, settings: Sequence[float]) -> Array:
    """Return the filters of 1, 2, … equal generations, each number of them with a setting of its own."""
    return np.stack([filter_of(values, [each] * (k + 1)) for k, each in enumerate(settings)])


def _falls(filters_GK: Array) -> bool:
    """Return whether each generation keeps less of every direction but the first."""
    return bool((np.diff(filters_GK, axis=0)[:, 1:] < 0).all())
