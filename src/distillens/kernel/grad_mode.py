"""Kernels are made of derivatives, whatever grad mode they are asked for in.

Under `torch.no_grad` or `torch.inference_mode` autograd would fail, or say that nothing depends on
any parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Given = ParamSpec("Given")
Found = TypeVar("Found")


def differentiating(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Let a function compute derivatives, in whatever grad mode it is called."""

    @wraps(function)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        with torch.inference_mode(mode=False), torch.enable_grad():
            return function(*args, **kwargs)

    return called


def usable(inputs: Tensor) -> Tensor:
    """Return inputs without a graph, as autograd can keep them: those of inference mode in a copy."""
    return inputs.clone() if inputs.is_inference() else inputs.detach()
