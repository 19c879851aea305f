"""Formats of names and numbers in the terminal, in Markdown and in HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distillens.results.base import Estimate, Interval

DASH = "–"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def visible(text: str) -> str:
    """Return the text with control and direction characters made visible as "�".

    A run folder may be somebody else's: an escape sequence in a name must not reach the terminal.
    """
    return "".join(letter if letter.isprintable() or letter.isspace() else "�" for letter in text)


def printable(text: str) -> str:
    """Return the text as one line of `visible` characters."""
    return visible(" ".join(text.split()))


def fixed(value: float | None, digits: int, signed: bool = False) -> str:
    """Write a number with a fixed count of decimals, a true minus, and ∞ or – where it is none."""
    if value is None:
        return DASH
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    # + 0.0 turns the "-0.0" that rounding can leave into "0.0".
    rounded = round(value, digits) + 0.0
    return format(rounded, f"{'+' if signed else ''},.{digits}f").replace("-", "−")


def number(value: float | None, significant: int = 3) -> str:
    """Write a number of unknown size with a few significant digits: 0.0312, 48,200, 3.1·10⁻⁸."""
    if value is None or not math.isfinite(value):
        return fixed(value, 0)
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{significant - 1}e}".split("e")
    power = int(exponent)
    if -4 < power < 6:
        return fixed(value, max(0, significant - 1 - power))
    return f"{mantissa}·10{str(power).translate(_SUPERSCRIPTS)}".replace("-", "−")


def percent(share: float | None, digits: int) -> str:
    """Write a share in [0, 1] as a percentage without its sign."""
    return fixed(None if share is None else 100 * share, digits)


def bracket(
    interval: Interval | None, digits: int, scale: float = 1.0, signed: bool = False
) -> str:
    """Write an interval as ``[low, high]``, or – where there is none."""
    if interval is None:
        return DASH
    low = fixed(scale * interval.low, digits, signed)
    high = fixed(scale * interval.high, digits, signed)
    return f"[{low}, {high}]"


def estimate(
    value: Estimate | None, digits: int = 2, scale: float = 1.0, signed: bool = False
) -> str:
    """Write an estimate as ``value [low, high]``; the bracket is left out where none is defined."""
    if value is None:
        return DASH
    written = fixed(scale * value.value, digits, signed)
    if value.interval is None:
        return written
    return f"{written} {bracket(value.interval, digits, scale, signed)}"


def slope(value: Estimate) -> str:
    """Write a slope with its interval, with enough decimals to see on which side of 1 it lies."""
    bounds = () if value.interval is None else (value.interval.low, value.interval.high)
    digits = 2
    while digits < 4 and any(bound != 1 and round(bound, digits) == 1 for bound in bounds):
        digits += 1
    return estimate(value, digits)


def count(amount: int) -> str:
    """Write a count of parameters: 61,706 below a million, 11.7M and 1.3B above."""
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if amount >= size:
            return f"{amount / size:.1f}{letter}"
    return f"{amount:,}"


def seconds(amount: float | None) -> str:
    """Write seconds without their unit: one decimal below ten, none above."""
    small = amount is not None and abs(amount) < 10
    return fixed(amount, 1 if small else 0)


def duration(amount: float) -> str:
    """Write a time span with units: 8.4 s, 3 min 20 s, 2 h 05 min."""
    if not math.isfinite(amount) or amount < 60:
        return f"{seconds(amount)} s"
    minutes, rest = divmod(round(amount), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def listed(words: Sequence[str]) -> str:
    """Join words as a sentence does: "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def plural(amount: int, word: str, many: str = "") -> str:
    """Write "1 seed", "3 seeds"; ``many`` is given where the plural has no plain s."""
    return f"{amount:,} {word if amount == 1 else many or f'{word}s'}"
