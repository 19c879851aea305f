"""Does the student exaggerate its teacher's confidence? Slopes and shares, compared with references.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923, the deviation plot. The robust fit, the
references on the same resamples and the verdicts are ours. Shapes: N examples, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distillens.measures.confidence.log_odds import Points
from distillens.measures.confidence.verdicts import (
    NEGLIGIBLE_SHARE,
    NEGLIGIBLE_SLOPE,
    judge,
    particular,
    together,
)
from distillens.measures.statistics.bootstrap import Resampler
from distillens.measures.statistics.intervals import observed_share
from distillens.measures.statistics.resampled import (
    FEWEST_POINTS,
    resampled_huber_slope,
    resampled_share,
    resampled_slope,
    share_estimate,
    slope_is_defined,
)
from distillens.results.base import Estimate
from distillens.results.confidence import (
    DissectedPart,
    Exaggeration,
    MislabelledPlace,
    PartSlope,
    ReferenceShare,
    ReferenceSlope,
    Underfit,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Part = Literal["all", "low", "high"]
Who = Literal["both right", "only the student", "only the teacher", "neither"]

_UNDEFINED = Estimate(float("nan"))
_WHO: tuple[Who, ...] = ("both right", "only the student", "only the teacher", "neither")
_NAMES = ("all points", "the low part", "the high part")


def measure_exaggeration(
    x_N: Array,
    y_N: Array,
    references: Mapping[str, Array],
    mislabelled_N: Mask | None,
    clipped: int,
    resampler: Resampler,
) -> tuple[Exaggeration, list[str]]:
    """Fit slopes to all, the low and the high points, and give the verdict.

    The threshold between low and high is the median of x; it is the same in all resamples, and points
    at it count as high.

    Parameters
    ----------
    x_N, y_N
        φ of the teacher and of the student for the teacher's top class, (N,).
    references
        φ of each reference for the same class, by name.
    mislabelled_N
        Mask of wrong labels, or None if that is not known.
    clipped
        Number of points with an infinite φ, which were placed at a finite one.
    resampler
        A resampler of these N examples.

    Returns
    -------
    tuple
        The result, and notes.
    """
    threshold = float(np.median(x_N))
    low_N = x_N < threshold
    notes: list[str] = []
    parts: tuple[tuple[Part, Mask], ...] = (
        ("all", np.ones_like(low_N)),
        ("low", low_N),
        ("high", ~low_N),
    )
    fits = [_part(part, mask_N, x_N, y_N, references, resampler, notes) for part, mask_N in parts]
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


def _part(
    part: Part,
    mask_N: Mask,
    x_N: Array,
    y_N: Array,
    references: Mapping[str, Array],
    resampler: Resampler,
    notes: list[str],
) -> PartSlope:
    points = int(np.count_nonzero(mask_N))
    inside = x_N[mask_N]
    if not slope_is_defined(inside):
        few = points < FEWEST_POINTS
        why = f"fewer than {FEWEST_POINTS}" if few else f"all at x = {inside[0]:.3g}"
        notes.append(f"{points} points of the {part} part ({why}) define no slope")
        return PartSlope(part, points, _UNDEFINED, _UNDEFINED, (), "too few examples")
    fits = {}
    for name, values_N in {"student": y_N, **references}.items():
        robust, converged = resampled_huber_slope(x_N, values_N, mask_N, resampler)
        fits[name] = resampled_slope(x_N, values_N, mask_N, resampler), robust
        if not converged:
            notes.append(f"the robust fit did not converge ({part} part, {name})")
    own, own_robust = fits.pop("student")
    found = tuple(
        ReferenceSlope(
            name,
            one.estimate(resampler),
            robust.estimate(resampler),
            own.minus(one, resampler),
            own_robust.minus(robust, resampler),
        )
        for name, (one, robust) in fits.items()
    )
    ordinary, robust = own.estimate(resampler), own_robust.estimate(resampler)
    beyond = [value for one in found for value in (one.steeper, one.steeper_robust)]
    verdict = judge(points, (ordinary, robust), beyond, 1.0, NEGLIGIBLE_SLOPE)
    return PartSlope(part, points, ordinary, robust, found, verdict)


def _underfit(
    x_N: Array, y_N: Array, low_N: Mask, references: Mapping[str, Array], resampler: Resampler
) -> Underfit:
    points = int(np.count_nonzero(low_N))
    if points == 0:
        return Underfit(0, _UNDEFINED, (), "too few examples")
    # Points at the median count as high, so there always are some.
    own, high = (resampled_share(part_N, y_N < x_N, resampler) for part_N in (low_N, ~low_N))
    found = []
    for name, reference_N in references.items():
        one = resampled_share(low_N, reference_N < x_N, resampler)
        share = share_estimate(one, points, resampler)
        found.append(ReferenceShare(name, share, own.minus(one, resampler)))
    share = share_estimate(own, points, resampler)
    verdict = judge(points, (share,), [one.larger for one in found], 0.5, NEGLIGIBLE_SHARE)
    beyond_high = own.minus(high, resampler)
    return Underfit(points, share, tuple(found), particular(verdict, beyond_high), beyond_high)


def _place(
    x_N: Array, y_N: Array, low_N: Mask, mislabelled_N: Mask, resampler: Resampler
) -> MislabelledPlace:
    under_N = y_N < x_N
    count = int(np.count_nonzero(mislabelled_N))
    low, own, others = (
        resampled_share(of_N, which_N, resampler)
        for of_N, which_N in (
            (mislabelled_N, low_N), (mislabelled_N, under_N), (~mislabelled_N, under_N),
        )
    )  # fmt: skip
    return MislabelledPlace(
        count,
        share_estimate(low, count, resampler),
        share_estimate(own, count, resampler),
        share_estimate(others, len(x_N) - count, resampler),
        own.minus(others, resampler),
    )


def dissect(points: Points) -> tuple[DissectedPart, ...]:
    """Return where the points lie by who is right and by mislabelled or not, without empty groups.

    In the source, points that only the student gets right, and mislabelled examples, lie among the
    underfit ones.
    """
    mislabelled_N = points.mislabelled_N
    low_N = points.x_N < np.median(points.x_N)
    under_N = points.y_N < points.x_N
    found = []
    for code, who in enumerate(_WHO):
        for wrong in (None,) if mislabelled_N is None else (False, True):
            inside_N = points.who_N == code
            if wrong is not None and mislabelled_N is not None:
                inside_N = inside_N & (mislabelled_N == wrong)
            if inside_N.any():
                low, under = observed_share(low_N[inside_N]), observed_share(under_N[inside_N])
                found.append(DissectedPart(who, wrong, int(inside_N.sum()), low, under))
    return tuple(found)
