"""What all results share: estimates with intervals, and their JSON. Nothing here needs torch.

Infinite values are written as the JSON strings "Infinity" and "NaN".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from distillens.errors import RunError

SCHEMA = 1

WRITE_AGAIN = "delete it and run the recipe again with the same --out"
"""What to do about a damaged file of a run that the run can write again."""

T = TypeVar("T")


class Result:
    """Base of all results: infinite values survive a round trip through JSON."""

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="strings")


@dataclass(frozen=True)
class Interval(Result):
    """An interval with its level (0.95 = 95 %) and the words for how it was made."""

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True)
class Estimate(Result):
    """A number with its interval. ``interval`` is None where too few points define none."""

    value: float
    interval: Interval | None = None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_json(result: object) -> str:
    """Return the JSON text of a result (any dataclass of this module)."""
    return _adapter(type(result)).dump_json(result, indent=1).decode() + "\n"


def from_json(kind: type[T], text: str | bytes, where: str, advice: str = WRITE_AGAIN) -> T:
    """Read a result of a known kind back; ``advice`` tells how to get it back if it is damaged.

    Raises
    ------
    RunError
        The text is damaged, or was written by a version with another schema.
    """
    try:
        result = _adapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the text"
        raise RunError(
            f"{where} is not a {kind.__name__}: {place}: {first['msg']}; {advice}"
        ) from None
    version = getattr(result, "schema_version", SCHEMA)
    if version != SCHEMA:
        raise RunError(f"{where} has schema version {version}, this version reads {SCHEMA}")
    return result
