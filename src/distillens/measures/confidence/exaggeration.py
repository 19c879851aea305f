"""Does the student exaggerate its teacher's confidence? Slopes and shares, compared with references.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923, the deviation plot. The robust fit, the
references on the same resamples and the verdicts are ours. Shapes: N examples, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distillens.measures.confidence.log_odds import Points
from distillens.measures.statistics.bootstrap import (
    FEWEST_POINTS,
    Resampler,
    resampled_huber_slope,
    resampled_share,
    resampled_slope,
    share_estimate,
    slope_is_defined,
)
from distillens.measures.statistics.intervals import observed_share
from distillens.results.base import Estimate
from distillens.results.confidence import (
    DissectedPart,
    Exaggeration,
    MislabelledPlace,
    PartSlope,
    ReferenceShare,
    ReferenceSlope,
    Underfit,
    Verdict,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Part = Literal["all", "low", "high"]
Who = Literal["both right", "only the student", "only the teacher", "neither"]

FEWEST_FOR_A_VERDICT = 30
"""Fewer points get no verdict, because percentile intervals of so few points are too narrow."""

NEGLIGIBLE_SLOPE = 0.05
"""The verdict is "no" if the interval of a slope ends below 1.05."""

NEGLIGIBLE_SHARE = 0.02
"""The verdict is "no" if the interval of the underfit share ends below 0.52."""

_UNDEFINED = Estimate(float("nan"))
_WHO: tuple[Who, ...] = ("both right", "only the student", "only the teacher", "neither")


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
    cloud = _Cloud(x_N, y_N, references, resampler)
    parts: tuple[tuple[Part, str, Mask], ...] = (
        ("all", "all points", np.ones_like(low_N)),
        ("low", "the low part", low_N),
        ("high", "the high part", ~low_N),
    )
    fits = {name: cloud.slope(part, mask_N, notes) for part, name, mask_N in parts}
    of_all, of_low, of_high = fits.values()
    underfit = cloud.underfit(low_N)
    verdict, reading = together(
        {
            **{f"slope of {name}": fit.verdict for name, fit in fits.items()},
            "low-confidence underfitting": underfit.verdict,
        },
        bool(references),
    )
    place = None
    if mislabelled_N is not None and mislabelled_N.any():
        place = cloud.place(low_N, mislabelled_N)
    found = Exaggeration(
        threshold, of_all, of_low, of_high, underfit, verdict, reading, place, clipped
    )
    return found, notes


@dataclass(frozen=True, eq=False)
class _Cloud:
    """The points of the confidence plot, with those of references at the same x."""

    x_N: Array
    y_N: Array
    references: Mapping[str, Array]
    resampler: Resampler

    def slope(self, part: Part, mask_N: Mask, notes: list[str]) -> PartSlope:
        """Fit slopes to a part of the points."""
        resampler, points, inside = self.resampler, int(mask_N.sum()), self.x_N[mask_N]
        if not slope_is_defined(inside):
            few = points < FEWEST_POINTS
            why = f"fewer than {FEWEST_POINTS}" if few else f"all at x = {inside[0]:.3g}"
            notes.append(f"{points} points of the {part} part ({why}) define no slope")
            return PartSlope(part, points, _UNDEFINED, _UNDEFINED, (), "too few examples")
        fits = {}
        for name, values_N in {"student": self.y_N, **self.references}.items():
            robust, converged = resampled_huber_slope(self.x_N, values_N, mask_N, resampler)
            fits[name] = resampled_slope(self.x_N, values_N, mask_N, resampler), robust
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

    def underfit(self, low_N: Mask) -> Underfit:
        """Return the share of the low part at which the student is less confident."""
        resampler, points = self.resampler, int(low_N.sum())
        if points == 0:
            return Underfit(0, _UNDEFINED, (), "too few examples")
        under_N = self.y_N < self.x_N
        # Points at the median count as high, so there always are some.
        own, high = (resampled_share(part_N, under_N, resampler) for part_N in (low_N, ~low_N))
        found = []
        for name, reference_N in self.references.items():
            one = resampled_share(low_N, reference_N < self.x_N, resampler)
            share = share_estimate(one, points, resampler)
            found.append(ReferenceShare(name, share, own.minus(one, resampler)))
        share = share_estimate(own, points, resampler)
        verdict = judge(points, (share,), [one.larger for one in found], 0.5, NEGLIGIBLE_SHARE)
        beyond = own.minus(high, resampler)
        return Underfit(points, share, tuple(found), particular(verdict, beyond), beyond)

    def place(self, low_N: Mask, mislabelled_N: Mask) -> MislabelledPlace:
        """Return where the mislabelled examples lie."""
        under_N, count = self.y_N < self.x_N, int(mislabelled_N.sum())
        low, own, others = (
            resampled_share(of_N, which_N, self.resampler)
            for of_N, which_N in (
                (mislabelled_N, low_N), (mislabelled_N, under_N), (~mislabelled_N, under_N),
            )
        )  # fmt: skip
        return MislabelledPlace(
            count,
            share_estimate(low, count, self.resampler),
            share_estimate(own, count, self.resampler),
            share_estimate(others, len(under_N) - count, self.resampler),
            own.minus(others, self.resampler),
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


def judge(
    points: int,
    estimates: Sequence[Estimate],
    beyond: Sequence[Estimate],
    edge: float,
    negligible: float,
) -> Verdict:
    """Return whether estimates lie above an edge and above all references.

    Parameters
    ----------
    points
        Number of points that the estimates were made from.
    estimates
        All of them must lie above the edge for "yes": the ordinary and the robust fit.
    beyond
        Differences to references, which must lie above 0.
    edge
        1 for slopes, one half for shares.
    negligible
        The verdict is "no" if all intervals end below ``edge + negligible``.
    """
    known = [one.interval for one in estimates if one.interval and not math.isnan(one.value)]
    if points < FEWEST_FOR_A_VERDICT or len(known) < len(estimates):
        return "too few examples"
    if all(interval.high < edge + negligible for interval in known):
        return "no"
    if not all(interval.low > edge for interval in known):
        return "undecided"
    if all(one.interval is not None and one.interval.low > 0 for one in beyond):
        return "yes"
    return "no more than a reference"


def particular(verdict: Verdict, beyond_high: Estimate) -> Verdict:
    """Return the verdict on the underfit share, given its difference to that of the high part.

    A student that is less confident than its teacher also where the teacher is confident does not
    exaggerate.
    """
    if verdict not in ("yes", "no more than a reference"):
        return verdict
    interval = beyond_high.interval
    if interval is None or interval.low > 0:
        return verdict
    return "undecided" if interval.high > NEGLIGIBLE_SHARE else "less confident throughout"


def together(verdicts: dict[str, Verdict], references: bool) -> tuple[Verdict, str]:
    """Return the strongest of several verdicts, and a sentence; the keys name the quantities."""
    # From the strongest to the weakest.
    words: dict[Verdict, str] = {
        "yes": "The student exaggerates its teacher's confidence ({where}).",
        "no more than a reference": "The student exaggerates its teacher's confidence, but no more "
        "than a reference does ({where}).",
        "undecided": "Undecided: an interval includes both answers ({where}).",
        "less confident throughout": "The student does not exaggerate its teacher's confidence: it is "
        "less confident, but no more so where the teacher is unsure.",
        "no": "The student does not exaggerate its teacher's confidence.",
        "too few examples": "Too few examples for a verdict (fewer than "
        f"{FEWEST_FOR_A_VERDICT} in each part, or the teacher is equally confident on all of them).",
    }
    found: Verdict = next(verdict for verdict in words if verdict in verdicts.values())
    where = ", ".join(name for name, verdict in verdicts.items() if verdict == found)
    sentence = words[found].format(where=where)
    if found == "yes" and not references:
        sentence += " No reference was given, and regression to the mean alone biases slopes."
    return found, sentence
