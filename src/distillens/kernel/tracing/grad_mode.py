"""The modes that kernels are computed in, whatever the caller's modes are.

Under `torch.no_grad` or `torch.inference_mode` autograd would fail or return zeros; under
`torch.autocast` it would compute in less precise types.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.forward.device_errors import free_host_memory, translate
from distillens.kernel.tracing.precision import full_products, own_precision

Given = ParamSpec("Given")
Found = TypeVar("Found")


def differentiating(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Decorate a function so that it computes derivatives in any grad mode and under autocast.

    Memory that runs out is reported as a `KernelError` with advice.
    """

    @wraps(function)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        with ExitStack() as modes:
            for mode in (torch.inference_mode(mode=False), torch.enable_grad(), own_precision()):
                modes.enter_context(mode)
            modes.enter_context(full_products())
            if "torch._dynamo" in sys.modules:
                # Compiled parts of a network run eagerly, so that rules see their calls. Importing the
                # compiler takes seconds, and is not needed if nothing was compiled.
                modes.enter_context(torch.compiler.set_stance("force_eager"))
            try:
                return function(*args, **kwargs)
            except (RuntimeError, MemoryError) as error:
                what = f"{function.__name__}{_sizes(args)} of the kernel"
                bounded = not {"max_memory", "self"}.isdisjoint(signature(function).parameters)
                message = translate(
                    error, what, _advice(error) if bounded else "give fewer examples"
                )
                if message is None:
                    raise
                raise KernelError(str(message)) from error

    return called


def _sizes(args: tuple[object, ...]) -> str:
    """Return the numbers of examples among a call's arguments, as a part of a message."""
    counts = [f"{len(each):,}" for each in args if isinstance(each, Tensor) and each.ndim > 1]
    return f" of {' and '.join(counts)} examples" if counts else ""


def _advice(error: BaseException) -> str:
    """Return advice for a computation whose tiles were planned for more memory than there is."""
    torch.cuda.empty_cache()
    on_gpu = isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else free_host_memory()
    return (
        f"give max_memory={int(free // 2)} (bytes, half of what is free now), with which fewer examples "
        "go through at a time, or fewer examples"
    )
