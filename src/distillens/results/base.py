"""Base of all results: estimates with intervals, and their JSON form. Does not import torch.

Infinite values are written as the JSON strings "Infinity" and "NaN".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from distillens.errors import RunError

SCHEMA = 1

WRITE_AGAIN = "delete it and run the recipe again with the same --out"
"""Advice for a damaged file that running the recipe again restores."""

T = TypeVar("T")


class Result:
    """Base of all results: infinite values survive a round trip through JSON.

    A type that is stored in a separate file has a field ``schema_version``, whose value is the
    ``SCHEMA_VERSION`` of its class.
    """

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="strings")

    SCHEMA_VERSION: ClassVar[int] = 1


@dataclass(frozen=True)
class Interval(Result):
    """An interval with its level (0.95 = 95 %) and a description of its method."""

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True)
class Estimate(Result):
    """A number with its interval. ``interval`` is None if there are too few points."""

    value: float
    interval: Interval | None = None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_json(result: object) -> str:
    """Return the JSON text of a result (any dataclass of this module)."""
    return _adapter(type(result)).dump_json(result, indent=1).decode() + "\n"


def from_json(kind: type[T], text: str | bytes, where: str, advice: str = WRITE_AGAIN) -> T:
    """Parse a result of a known type; ``advice`` is the remedy that errors name.

    Raises
    ------
    RunError
        The text is damaged, or was written by a version with another schema.
    """
    found, expected = schema_version(text), getattr(kind, "SCHEMA_VERSION", None)
    if found is not None and expected is not None and found != expected:
        age = "an earlier" if found < expected else "a later"
        raise RunError(
            f"{where} has schema version {found} of {kind.__name__}, which {age} version of distillens "
            f"wrote; this version reads schema version {expected}"
        )
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the text"
        raise RunError(
            f"{where} is not a {kind.__name__}: {place}: {first['msg']}; {advice}"
        ) from None


def schema_version(text: str | bytes) -> int | None:
    """Return the schema version that a JSON text names; None if it names none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    version = content.get("schema_version") if isinstance(content, dict) else None
    return version if isinstance(version, int) else None
