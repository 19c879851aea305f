"""Running a network in a single floating-point type, whatever types its forward asks for.

Many published networks enter `torch.autocast` in their forward or cast to bfloat16 and back. The
derivatives of functions that round are zero or rounded themselves. The kernel is therefore computed for
the network without rounding, in the requested type.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_TYPES = {each for each in vars(torch).values() if isinstance(each, torch.dtype)}
_CASTS: dict[Any, torch.dtype] = {
    getattr(Tensor, name): kind
    for name, kind in {
        "half": torch.float16,
        "bfloat16": torch.bfloat16,
        "float": torch.float32,
        "double": torch.float64,
        "chalf": torch.complex32,
        "cfloat": torch.complex64,
        "cdouble": torch.complex128,
    }.items()
}
_EMBEDDINGS = (functional.embedding, functional.embedding_bag)
_UNLIKE = ("max_norm", "scale_grad_by_freq")
"""The arguments with which an embedding changes its weight, or has other gradients than its function."""


class _Inside(threading.local):
    """How many nested kernel computations this thread is in."""

    depth = 0


_inside = _Inside()


def stand_ins(dtype: torch.dtype) -> dict[torch.dtype, torch.dtype]:
    """Return the replacement of every other floating-point type: ``dtype`` or its complex type."""
    kinds = {
        each: dtype.to_complex() if each.is_complex else dtype
        for each in _TYPES
        if each.is_complex or each.is_floating_point
    }
    return {each: kind for each, kind in kinds.items() if each != kind}


class OnePrecision(TorchFunctionMode):
    """Replaces the types that a network computes in, while it is entered.

    Casts to a replaced type and new tensors of it use the replacement, autocast is disabled, and
    gradients of embeddings are dense.

    Parameters
    ----------
    replaced
        Types and their replacements.
    device_type
        Type of the device that the network is on.
    reduced
        Receives descriptions of what the network would have computed in less than float32.
    altered_embeddings
        Receives names of arguments with which an embedding differs from its function.
    """

    def __init__(
        self,
        replaced: Mapping[torch.dtype, torch.dtype],
        device_type: str,
        reduced: set[str],
        altered_embeddings: set[str],
    ) -> None:
        super().__init__()
        self._altered_embeddings = altered_embeddings
        self._depth = _inside.depth
        self._types, self._device_type, self._reduced = replaced, device_type, reduced

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function with replaced types."""
        if _inside.depth != self._depth:
            # The network itself computes a kernel, in a type of its own.
            return func(*args, **(kwargs or {}))
        if torch.is_autocast_enabled(self._device_type):
            self._reduced.add("torch.autocast")
            # The autocast context restores this when it exits.
            torch.set_autocast_enabled(self._device_type, False)
        kwargs = kwargs or {}
        if (cast := _CASTS.get(func)) is not None:
            func, args = Tensor.to, (args[0], cast, *args[1:])
        elif func in _EMBEDDINGS:
            bound = signature(func).bind(*args, **kwargs)
            given = bound.arguments
            self._altered_embeddings.update(name for name in _UNLIKE if given.get(name))
            given["sparse"] = False  # the values are the same, and the gradients are dense
            args, kwargs = bound.args, bound.kwargs
        if func is not Tensor.view or args[0].is_floating_point() or args[0].is_complex():
            inplace = getattr(func, "__name__", "").endswith("_")
            args = tuple(
                each if inplace and not place else self._replaced(each)
                for place, each in enumerate(args)
            )
            kwargs = {
                name: each if name == "out" else self._replaced(each)
                for name, each in kwargs.items()
            }
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.dtype in self._types:
            return result.to(self._types[result.dtype])
        return result

    def _replaced(self, given: Any) -> Any:
        """Return an argument with its types replaced: a type, a tensor, or a list of tensors."""
        if isinstance(given, Tensor):
            return given.to(self._types[given.dtype]) if given.dtype in self._types else given
        if isinstance(given, torch.dtype):
            if given not in self._types:
                return given
            if given.itemsize < (8 if given.is_complex else 4):
                self._reduced.add(f"casts to {str(given).removeprefix('torch.')}")
            return self._types[given]
        if type(given) in (list, tuple):
            return type(given)(self._replaced(each) for each in given)
        return given


@contextmanager
def full_products() -> Iterator[None]:
    """Compute products and convolutions of float32 tensors in float32.

    A CUDA device may otherwise round their factors to TF32, with a mantissa of 10 bits: cuDNN's
    convolutions do so by default.
    """
    convolutions: Any = getattr(torch.backends.cudnn, "conv", None)
    if convolutions is not None:
        places = [(torch.backends.cuda.matmul, "fp32_precision", "ieee")]
        places += [(convolutions, "fp32_precision", "ieee")]
    else:  # torch before 2.9
        places = [(torch.backends.cuda.matmul, "allow_tf32", False)]
        places += [(torch.backends.cudnn, "allow_tf32", False)]
    before = [getattr(place, name) for place, name, _ in places]
    try:
        for place, name, value in places:
            setattr(place, name, value)
        yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


@contextmanager
def own_precision() -> Iterator[None]:
    """Disable autocast, and the type replacement of a network that is being called."""
    enabled = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    for kind in enabled:
        torch.set_autocast_enabled(kind, False)
    _inside.depth += 1
    try:
        yield
    finally:
        _inside.depth -= 1
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)
