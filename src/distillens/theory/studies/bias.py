"""Thm. 4.1 on random eigenvalues and stop times, with its premise and without."""

from __future__ import annotations

import numpy as np

from distillens.errors import TheoryError
from distillens.results.figure import Curve, Finding, Panel, Picture, Shown
from distillens.theory.equal_progress import (
    compare_at_equal_progress,
    student_time,
    witness,
)
from distillens.theory.flow import learnt_share


def bias_study(draws: int = 10_000, seed: int = 0) -> Shown:
    """Draw (λ_{k1}, λ_{k2}, α*, T) with t̃ such that both networks reach α*, and compare.

    λ_{k1} is log-uniform over nine decades; half of the ratios λ_{k2}/λ_{k1} are uniform, half are as
    close to 1 as 1e-12 (log-uniform). α* is uniform or close to 0 or 1 (a third each), T log-uniform
    among the times at which the teacher has learnt more than α*.

    Its arrays have one number for each draw: ``log_shortfall_M`` is ln(one-hot share/student share)
    of the bottom direction, by the theorem > 0; ``swapped_M`` the same with the eigenvalues
    swapped, so that the premise λ_{k1} > λ_{k2} does not hold; ``earlier_M`` the same with a one-
    hot network stopped at half the time, whose progress is below α*.

    Raises
    ------
    TheoryError
        There is nothing to draw.
    """
    if draws < 1:
        raise TheoryError(f"{draws} draws; give at least 1")
    rng = np.random.default_rng(seed)
    top = 10 ** rng.uniform(-6, 3, draws)
    near = rng.random(draws) < 0.5
    gap = np.where(near, 10 ** rng.uniform(-12, -1, draws), rng.uniform(1e-3, 0.999, draws))
    bottom = top * (1 - gap)
    small = 10 ** rng.uniform(-8, -1, draws)
    kind = rng.integers(3, size=draws)
    progress = np.choose(kind, [rng.uniform(0.001, 0.999, draws), small, 1 - small])
    # λ₁T between its least value and 600, above which everything is learnt.
    least = -np.log1p(-progress) * (1 + 1e-6)
    teacher = least * (600 / least) ** rng.random(draws) / top
    student = student_time(top, teacher, progress)
    found = compare_at_equal_progress(top, bottom, teacher, student)
    half = learnt_share(bottom, found.one_hot_time / 2)
    arrays = {
        "top_M": top,
        "bottom_M": bottom,
        "progress_M": progress,
        "teacher_time_M": teacher,
        "student_time_M": student,
        "one_hot_bottom_M": found.one_hot_bottom,
        "student_bottom_M": found.student_bottom,
        "log_shortfall_M": found.log_shortfall,
        "swapped_M": compare_at_equal_progress(bottom, top, teacher, student).log_shortfall,
        "earlier_M": np.log(half / found.student_bottom),
        "seed": np.asarray(seed),
    }
    held, equal = found.log_shortfall > 0, 1 - bottom / top < 1e-6
    findings = (
        Finding("draws", draws, "random λ_{k1}, λ_{k2}, α*, T; t̃ from equal progress"),
        Finding("held", int(held.sum()), "student below the one-hot one"),
        Finding("near-equal draws", int(equal.sum()), "1 − λ_{k2}/λ_{k1} below 1e-6"),
        Finding("held, near-equal", int(held[equal].sum()), "among those"),
        Finding(
            "smallest shortfall",
            float(found.log_shortfall.min()),
            "ln of the ratio of the bottom shares; 0 would be a tie",
        ),
        Finding(
            "held with swapped eigenvalues",
            int((arrays["swapped_M"] > 0).sum()),
            "premise λ_{k1} > λ_{k2} removed: all of them fail",
        ),
        Finding(
            "held against less progress",
            int((arrays["earlier_M"] > 0).sum()),
            "premise of equal progress removed: the one-hot network at half its time",
        ),
    )
    few = slice(0, 3000)
    cloud = Curve(((top - bottom) / top)[few], found.log_shortfall[few], "", 0, "points")
    return Shown(
        "bias",
        "Nagarajan et al. 2023, arXiv 2301.12923, Thm. 4.1; for every T and t̃: ours",
        {"draws": draws, "seed": seed},
        findings,
        arrays,
        _picture(cloud, draws, seed),
    )


def _picture(cloud: Curve, draws: int, seed: int) -> Picture:
    progress = np.linspace(0.001, 0.999, 400)
    paths = []
    for colour, ratio in enumerate((0.8, 0.4, 0.1)):
        found = witness(1.0, ratio, progress)
        label = f"λ₂/λ₁ = {ratio:g}"
        paths += [
            Curve(progress, found.one_hot_bottom, f"one-hot, {label}", colour),
            Curve(progress, found.student_bottom, f"student, {label}", colour, "dashed"),
        ]
    return Picture(
        "Thm. 4.1: equally far along the top direction, the student has less of the bottom one",
        (
            Panel("T = t̃", "top share learnt", "bottom share learnt", tuple(paths)),
            Panel(
                "random draws, near-equal eigenvalues included",
                "1 − λ₂/λ₁",
                "ln(one-hot/student), bottom",
                (cloud,),
                x_scale="log",
                y_scale="log",
            ),
        ),
        f"Closed form; right: {len(cloud.x_M):,} of {draws:,} draws, seed {seed}.",
    )
