"""Kernels are made of derivatives in one type, whatever modes they are asked for in.

Under `torch.no_grad` or `torch.inference_mode` autograd would fail, or say that nothing depends on
any parameter; under `torch.autocast` it would compute in less precise types.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from distillens.kernel.precision import full_products, own_precision

_COMPILER = "torch._dynamo"

Given = ParamSpec("Given")
Found = TypeVar("Found")


def differentiating(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Let a function compute derivatives, whatever grad mode or autocast it is called in."""

    @wraps(function)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        modes = torch.inference_mode(mode=False), torch.enable_grad(), own_precision()
        with modes[0], modes[1], modes[2], full_products(), _eager():
            return function(*args, **kwargs)

    return called


def _eager() -> AbstractContextManager[object]:
    """Let compiled parts of a network run as they were written, so that rules see their calls."""
    # Where nothing was compiled, the compiler need not be imported, which takes seconds.
    return torch.compiler.set_stance("force_eager") if _COMPILER in sys.modules else nullcontext()


def usable(inputs: Tensor) -> Tensor:
    """Return inputs without a graph, as autograd can keep them: those of inference mode in a copy."""
    return inputs.clone() if inputs.is_inference() else inputs.detach()
