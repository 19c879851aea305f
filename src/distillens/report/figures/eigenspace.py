"""Figures of eigenspace dynamics: trajectories over pairs, and predictions along eigenvectors.

Shapes: E checkpoints, K eigenvectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from distillens.report.tables.eigenspace import PROJECTED
from distillens.report.tables.text import printable
from distillens.results.eigenspace import Eigenspace, Projected
from distillens.results.figure import Curve, Panel, Picture, Style

Arrays = Mapping[str, NDArray[np.float64]]

_TEACHER = 6
"""The grey of the palette."""

_SHOWN = 2
"""Number of pairs that get a panel."""

_STYLE: Mapping[str, Style] = {
    "weights": "dashed",
    "change": "solid",
    "teacher": "dashed",
    "student": "solid",
}

_LEAST_PART = 0.001
"""Smallest share of the targets' energy in a band that is plotted."""


def pairs_picture(result: Eigenspace, arrays: Arrays) -> Picture:
    """Return the first pairs' trajectories in the first run, and each teacher's share of pairs."""
    first = _first_run(result)
    pairs = list(dict.fromkeys((pair.top, pair.bottom) for pair in result.students[0].pairs))
    kinds: tuple[Projected, ...] = ("weights", "change")
    panels = [
        _trajectories(result, arrays, first, pair, projected)
        for projected in kinds
        for pair in pairs[:_SHOWN]
    ]
    if len({one.run for one in result.students}) > 1:
        panels.append(_shares(result))
    one = result.students[first[0]]
    return Picture(
        title=f"Components along pairs of eigenvectors, {printable(result.layer)}",
        panels=tuple(panels),
        caption=(
            f"{result.examples:,} {result.split} examples; trajectories: teacher seed "
            f"{one.teacher_seed}, student seed {one.seed}; one point per checkpoint"
        ),
    )


def predictions_picture(result: Eigenspace, arrays: Arrays) -> Picture:
    """Return how much of the labels is learnt in bands of eigenvectors, over the epochs."""
    panels = [_learnt(result, arrays, place) for place in _first_run(result)]
    panels.append(_sizes(result, arrays))
    kernel = "the data kernel" if result.kernel == "data" else "the tangent kernel"
    return Picture(
        title=f"Predictions along the eigenvectors of {kernel}",
        panels=tuple(panels),
        caption=(
            f"{result.examples:,} {result.split} examples; probabilities and labels, less 1/C; "
            "0: nothing learnt, 1: the labels' whole part"
        ),
    )


def _first_run(result: Eigenspace) -> list[int]:
    """Return the places of one student of each supervision, all of the first run."""
    found: dict[str, int] = {}
    for place, one in enumerate(result.students):
        if one.run == result.students[0].run:
            found.setdefault(one.student, place)
    return list(found.values())


def _trajectories(
    result: Eigenspace, arrays: Arrays, places: list[int], pair: tuple[int, int], kind: Projected
) -> Panel:
    top, bottom = pair[0] - 1, pair[1] - 1

    def curve(who: str, place: int, label: str, colour: int) -> Curve:
        course_EK = arrays[f"s{place:03d}_{who}_{kind}"]
        return Curve(course_EK[:, top], course_EK[:, bottom], label, colour)

    curves = [curve("teacher", places[0], "teacher", _TEACHER)]
    curves += [
        curve("student", place, printable(result.students[place].student), number)
        for number, place in enumerate(places)
    ]
    name = PROJECTED[kind]
    return Panel(
        title=f"{name}, pair ({pair[0]}, {pair[1]})",
        x_label=f"‖({name})ᵀv‖, eigenvector {pair[0]}",
        y_label=f"‖({name})ᵀv‖, eigenvector {pair[1]}",
        curves=tuple(curves),
    )


def _shares(result: Eigenspace) -> Panel:
    curves = []
    for number, title in enumerate(dict.fromkeys(one.student for one in result.students)):
        for kind in PROJECTED:
            shares = []
            for one in result.students:
                marks = [p.stronger for p in one.pairs if p.projected == kind]
                decided = [mark for mark in marks if mark is not None]
                if one.student == title and decided:
                    shares.append(float(np.mean(decided)))
            ranks = np.arange(1, len(shares) + 1, dtype=np.float64)
            label = f"{printable(title)}, {PROJECTED[kind]}"
            curves.append(Curve(ranks, np.sort(shares), label, number, _STYLE[kind]))
    return Panel(
        title="Share of pairs with a stronger bias",
        x_label="students, in order of the share",
        y_label="share of decided pairs",
        curves=tuple(curves),
    )


def _learnt(result: Eigenspace, arrays: Arrays, place: int) -> Panel:
    target_K = arrays[f"s{place:03d}_target_sizes"]
    curves = []
    for colour, (low, high) in enumerate(_bands(len(target_K))):
        weights_K = target_K[low - 1 : high] ** 2
        if weights_K.sum() < _LEAST_PART * np.sum(target_K**2):
            continue
        for who in ("teacher", "student"):
            learnt_EK = arrays[f"s{place:03d}_{who}_learnt"][:, low - 1 : high]
            # A direction without a part of the target has weight 0 and no learnt share.
            mean_E = np.nansum(learnt_EK * weights_K, axis=1) / weights_K.sum()
            name = f"{low}" if low == high else f"{low}–{high}"
            label = f"eigenvectors {name}" if who == "student" else ""
            epochs_E = arrays[f"s{place:03d}_{who}_epochs"]
            curves.append(Curve(epochs_E, mean_E, label, colour, _STYLE[who]))
    return Panel(
        title=f"{printable(result.students[place].student)} (teacher dashed)",
        x_label="epoch",
        y_label="share of the labels' part that is learnt",
        curves=tuple(curves),
    )


def _sizes(result: Eigenspace, arrays: Arrays) -> Panel:
    places = _first_run(result)
    number_K = np.arange(1, len(arrays[f"s{places[0]:03d}_target_sizes"]) + 1, dtype=np.float64)
    curves = [
        Curve(number_K, arrays[f"s{places[0]:03d}_target_sizes"], "labels", 4, "dotted"),
        Curve(
            number_K, arrays[f"s{places[0]:03d}_teacher_prediction_sizes"][-1], "teacher", _TEACHER
        ),
    ]
    for colour, place in enumerate(places):
        sizes_K = arrays[f"s{place:03d}_student_prediction_sizes"][-1]
        curves.append(Curve(number_K, sizes_K, printable(result.students[place].student), colour))
    return Panel(
        title="Size of the predictions at the last epoch",
        x_label="number of the eigenvector u",
        y_label="size of the predictions F, ‖uᵀF‖",
        curves=tuple(curves),
        y_scale="log",
    )


def _bands(count: int) -> list[tuple[int, int]]:
    ends = [end for end in (1, 5, 15) if end < count]
    return [(low + 1, high) for low, high in zip([0, *ends], [*ends, count], strict=True)]
