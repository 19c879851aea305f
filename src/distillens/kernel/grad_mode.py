"""Kernels are made of derivatives in one type, whatever modes they are asked for in.

Under `torch.no_grad` or `torch.inference_mode` autograd would fail, or say that nothing depends on
any parameter; under `torch.autocast` it would compute in less precise types.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.forward.device_errors import free_cached_memory, free_host_memory, translate
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
            try:
                return function(*args, **kwargs)
            except (RuntimeError, MemoryError) as error:
                what = f"{function.__name__}{_sizes(args)} of the kernel"
                bounded = "max_memory" in signature(function).parameters or "." in _place(function)
                said = translate(error, what, _advice(error) if bounded else "give fewer examples")
                if said is None:
                    raise
                raise KernelError(str(said)) from error

    return called


def _sizes(args: tuple[object, ...]) -> str:
    """Return how many examples a call was given, as a part of a message."""
    counts = [f"{len(each):,}" for each in args if isinstance(each, Tensor) and each.ndim > 1]
    return f" of {' and '.join(counts)} examples" if counts else ""


def _place(function: Callable[..., object]) -> str:
    return function.__qualname__.rpartition("<locals>.")[2]


def _advice(error: BaseException) -> str:
    """Return what fits: tiles are planned for a bound on memory, which the failure says is too high."""
    free_cached_memory()
    on_gpu = isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else free_host_memory()
    return (
        f"give max_memory={int(free // 2)} (bytes, half of what is free now), with which fewer examples "
        "go through at a time, or fewer examples"
    )


def _eager() -> AbstractContextManager[object]:
    """Let compiled parts of a network run as they were written, so that rules see their calls."""
    # Where nothing was compiled, the compiler need not be imported, which takes seconds.
    return torch.compiler.set_stance("force_eager") if _COMPILER in sys.modules else nullcontext()


def usable(inputs: Tensor) -> Tensor:
    """Return inputs without a graph, as autograd can keep them: those of inference mode in a copy."""
    return inputs.clone() if inputs.is_inference() else inputs.detach()
