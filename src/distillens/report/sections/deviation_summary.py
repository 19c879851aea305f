"""Whether students exaggerate their teacher's confidence on test, beside the one-hot reference."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from distillens.report.sections import ranking
from distillens.report.tables.text import fixed, listed, plural, slope
from distillens.results.base import Estimate
from distillens.results.confidence import Deviation
from distillens.results.training import StudyResult

_PARTS: tuple[tuple[str, Callable[[Deviation], Estimate]], ...] = (
    ("low half", lambda deviation: deviation.slope_low),
    ("high half", lambda deviation: deviation.slope_high),
)

_VERDICTS = ("above 1", "includes 1", "below 1", "no interval", "differs between seeds")


def deviation_summary(result: StudyResult) -> list[tuple[str, str]]:
    """Return a sentence for the low and for the high half of the test split."""
    if not result.deviations:
        return []
    found: dict[str, list[Deviation]] = {}
    for deviation in result.deviations:
        if deviation.split == "test":
            found.setdefault(deviation.student, []).append(deviation)
    if not found:
        return [("Confidence", "Deviations were not measured on the test split.")]
    reference = found.pop(ranking.reference_name(result), [])
    return [
        (f"Slope on test, {part}", _sentences(found, reference, read, result))
        for part, read in _PARTS
    ]


def _sentences(
    found: dict[str, list[Deviation]],
    reference: list[Deviation],
    read: Callable[[Deviation], Estimate],
    result: StudyResult,
) -> str:
    grouped: dict[str, list[str]] = {}
    for name, deviations in found.items():
        slopes = [read(deviation) for deviation in deviations]
        against = _against(deviations, reference, read)
        told = f"{name} {_value(slopes)}" + (f" ({against})" if against else "")
        grouped.setdefault(_verdict(slopes), []).append(told)
    parts = [
        f"{_LEADS[verdict]}: {'; '.join(grouped[verdict])}."
        for verdict in _VERDICTS
        if verdict in grouped
    ]
    if not reference:
        return " ".join([*parts, "No one-hot reference was measured, so read these with care."])
    slopes = [read(deviation) for deviation in reference]
    name = ranking.reference_name(result)
    parts.append(f"One-hot reference: {name} {_value(slopes)} ({_verdict(slopes)}).")
    return " ".join(parts)


_LEADS = {
    "above 1": "Interval above 1 (exaggerates)",
    "includes 1": "Interval includes 1",
    "below 1": "Interval below 1",
    "no interval": "Without an interval",
    "differs between seeds": "Seeds disagree",
}


def _side(value: Estimate) -> str:
    if value.interval is None:
        return "no interval"
    if value.interval.low > 1:
        return "above 1"
    return "below 1" if value.interval.high < 1 else "includes 1"


def _verdict(slopes: list[Estimate]) -> str:
    sides = {_side(value) for value in slopes}
    return sides.pop() if len(sides) == 1 else "differs between seeds"


def _value(slopes: list[Estimate]) -> str:
    if len(slopes) == 1:
        return slope(slopes[0])
    values = [one.value for one in slopes]
    return (
        f"{fixed(fmean(values), 2)}, mean of {plural(len(values), 'seed')} from "
        f"{fixed(min(values), 2)} to {fixed(max(values), 2)}"
    )


def _against(
    deviations: list[Deviation],
    reference: list[Deviation],
    read: Callable[[Deviation], Estimate],
) -> str:
    """Return how the intervals lie to the reference's of the same seed, "" where one is missing."""
    by_seed = {deviation.seed: read(deviation).interval for deviation in reference}
    found: dict[str, int] = {}
    for deviation in deviations:
        own, other = read(deviation).interval, by_seed.get(deviation.seed)
        if own is None or other is None:
            return ""
        relation = "overlaps"
        if own.low > other.high:
            relation = "above"
        elif own.high < other.low:
            relation = "below"
        found[relation] = found.get(relation, 0) + 1
    if len(found) == 1:
        return f"{next(iter(found))} the reference{' in each' * (len(deviations) > 1)}"
    told = [f"{relation} the reference in {times}" for relation, times in found.items()]
    return f"{listed(told)} of {plural(len(deviations), 'seed')}"
