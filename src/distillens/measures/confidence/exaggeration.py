"""Does the student exaggerate its teacher's confidence? Slopes and shares beside their references.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923, the deviation plot. The robust fit, the
references on the same resamples and the verdicts are ours. Shapes: N examples, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from distillens.measures.confidence.deviation import FEWEST
from distillens.measures.confidence.resampled import Drawn, drawn_share, sure_share
from distillens.measures.confidence.verdicts import (
    NEGLIGIBLE_SHARE,
    NEGLIGIBLE_SLOPE,
    judge,
    particular,
    together,
)
from distillens.measures.statistics.bootstrap import Resampler
from distillens.measures.statistics.slopes import (
    huber_columns,
    huber_line,
    huber_slopes,
    least_squares_columns,
    least_squares_slope,
    least_squares_slopes,
)
from distillens.results.base import Estimate
from distillens.results.confidence import (
    Exaggeration,
    MislabelledPlace,
    PartSlope,
    ReferenceShare,
    ReferenceSlope,
    Underfit,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_NOTHING = float("nan")


def measure_exaggeration(
    x_N: Array,
    y_N: Array,
    references: Mapping[str, Array],
    mislabelled_N: Mask | None,
    clipped: int,
    resampler: Resampler,
) -> tuple[Exaggeration, list[str]]:
    """Fit all, low and high points, share out the underfit ones, and judge.

    The threshold is the median of x and stays where it is in resamples; points at it count as high.

    Parameters
    ----------
    x_N, y_N
        φ that teacher and student give to the teacher's top class.
    references
        The same of each reference, by name.
    mislabelled_N
        Where labels are wrong, or None where that is not known.
    clipped
        Points that had to be clipped, for the result.
    resampler
        Of these N examples.

    Returns
    -------
    tuple
        The result, and notes.
    """
    threshold = float(np.median(x_N))
    low_N = x_N < threshold
    notes: list[str] = []
    fits = [
        _part(part, mask_N, x_N, y_N, references, resampler, notes)
        for part, mask_N in (("all", np.ones_like(low_N)), ("low", low_N), ("high", ~low_N))
    ]
    underfit = _underfit(x_N, y_N, low_N, references, resampler)
    verdict, reading = together(
        {
            **{f"slope of {name}": fit.verdict for name, fit in zip(_NAMES, fits, strict=True)},
            "low-confidence underfitting": underfit.verdict,
        },
        bool(references),
    )
    place = None
    if mislabelled_N is not None and mislabelled_N.any():
        place = _place(x_N, y_N, low_N, mislabelled_N, resampler)
    found = Exaggeration(
        threshold, fits[0], fits[1], fits[2], underfit, verdict, reading, place, clipped
    )
    return found, notes


_NAMES = ("all points", "the low part", "the high part")


def _part(
    part,
    mask_N: Mask,
    x_N: Array,
    y_N: Array,
    references: Mapping[str, Array],
    resampler: Resampler,
    notes: list[str],
) -> PartSlope:
    points = int(np.count_nonzero(mask_N))
    inside = x_N[mask_N]
    if points < FEWEST or inside.min() == inside.max():
        why = f"fewer than {FEWEST}" if points < FEWEST else f"all at x = {inside[0]:.3g}"
        notes.append(f"{points} points of the {part} part ({why}) define no slope")
        nothing = Estimate(_NOTHING)
        return PartSlope(part, points, nothing, nothing, (), "too few examples")
    # Slopes don't change with the origin, but the sums of squares cancel less near it.
    x = x_N - inside.mean()
    own, own_robust = _both(x, y_N, mask_N, resampler, f"{part} part, student", notes)
    found = []
    for name, reference_N in references.items():
        one, robust = _both(x, reference_N, mask_N, resampler, f"{part} part, {name}", notes)
        found.append(
            ReferenceSlope(
                name,
                one.estimate(resampler),
                robust.estimate(resampler),
                own.minus(one, resampler),
                own_robust.minus(robust, resampler),
            )
        )
    ordinary, robust = own.estimate(resampler), own_robust.estimate(resampler)
    beyond = [value for one in found for value in (one.steeper, one.steeper_robust)]
    verdict = judge(points, (ordinary, robust), beyond, 1.0, NEGLIGIBLE_SLOPE)
    return PartSlope(part, points, ordinary, robust, tuple(found), verdict)


def _both(
    x: Array, y_N: Array, mask_N: Mask, resampler: Resampler, what: str, notes: list[str]
) -> tuple[Drawn, Drawn]:
    """Return the ordinary and the robust slope."""
    # Centred as x is, so that a student equal to its teacher has a slope of exactly 1.
    y = y_N - y_N[mask_N].mean()
    inside_x, inside_y = x[mask_N], y[mask_N]
    line = huber_line(inside_x, inside_y)
    if not line.converged:
        notes.append(f"the robust fit had not settled when it was stopped ({what})")
    columns = [*least_squares_columns(x, y, mask_N), *huber_columns(line, x, y, mask_N)]
    sums_R10 = resampler.sums(columns)
    ordinary = Drawn(least_squares_slope(inside_x, inside_y), least_squares_slopes(sums_R10[:, :5]))
    return ordinary, Drawn(line.slope, huber_slopes(line, sums_R10[:, 5:]))


def _underfit(
    x_N: Array, y_N: Array, low_N: Mask, references: Mapping[str, Array], resampler: Resampler
) -> Underfit:
    points = int(np.count_nonzero(low_N))
    if points == 0:
        return Underfit(0, Estimate(_NOTHING), (), "too few examples")
    # Points at the median count as high, so there always are some.
    own, high = (drawn_share(part_N, y_N < x_N, resampler) for part_N in (low_N, ~low_N))
    found = []
    for name, reference_N in references.items():
        one = drawn_share(low_N, reference_N < x_N, resampler)
        found.append(
            ReferenceShare(name, sure_share(one, points, resampler), own.minus(one, resampler))
        )
    share = sure_share(own, points, resampler)
    verdict = judge(points, (share,), [one.larger for one in found], 0.5, NEGLIGIBLE_SHARE)
    beyond_high = own.minus(high, resampler)
    return Underfit(points, share, tuple(found), particular(verdict, beyond_high), beyond_high)


def _place(
    x_N: Array, y_N: Array, low_N: Mask, mislabelled_N: Mask, resampler: Resampler
) -> MislabelledPlace:
    under_N = y_N < x_N
    count = int(np.count_nonzero(mislabelled_N))
    rest = len(x_N) - count
    low, own = (
        drawn_share(mislabelled_N, low_N, resampler),
        drawn_share(mislabelled_N, under_N, resampler),
    )
    nothing = Estimate(_NOTHING)
    others = drawn_share(~mislabelled_N, under_N, resampler) if rest else None
    return MislabelledPlace(
        count,
        sure_share(low, count, resampler),
        sure_share(own, count, resampler),
        nothing if others is None else sure_share(others, rest, resampler),
        nothing if others is None else own.minus(others, resampler),
    )
