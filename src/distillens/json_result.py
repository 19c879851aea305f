"""What all results share."""

from __future__ import annotations

from pydantic import ConfigDict


class Result:
    """Base of all results: infinities survive the way through JSON."""

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="strings")
