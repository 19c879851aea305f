"""One-line errors of devices: a device that does not exist, or that has no free memory.

All entry points that take a device or compute on one use these functions.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from distillens.errors import DeviceError

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_cpu")
_CAPACITY = re.compile(r"total capacity of ([\d.]+ \wi?B) of which ([\d.]+ \wi?B) is free")

CONTEXT_BYTES = 6 * 10**8
"""Bytes of a GPU that a process needs in addition to its tensors."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether a device or the machine ran out of memory."""
    # On the CPU, torch has no exception type for it.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
    )


def checked_device(device: torch.device | str, asked_by: str = "device") -> torch.device:
    """Return a requested device, if it exists.

    Parameters
    ----------
    device
        As `torch.device` takes it.
    asked_by
        The option, argument or variable that names it, for the message.

    Raises
    ------
    DeviceError
        Torch knows no such device, or the machine does not have it.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise DeviceError(
            f"{asked_by} is {device!r}, which is no device of torch; give cpu, cuda or cuda:0"
        ) from None
    if found.type in ("cpu", "meta"):
        return found
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"{asked_by} is {str(found)!r}, but {why_no_cuda()}")
        if (found.index or 0) >= (count := torch.cuda.device_count()):
            raise DeviceError(
                f"{asked_by} is {str(found)!r}, but torch sees {count} CUDA device(s); give cuda:0"
                + (f" to cuda:{count - 1}" if count > 1 else "")
            )
        return found
    here = torch.accelerator.current_accelerator(check_available=True)
    if here is None or here.type != found.type:
        raise DeviceError(
            f"{asked_by} is {str(found)!r}, but torch sees no device of this type; give "
            f"{'cpu' if here is None else f'{here.type} or cpu'}"
        )
    return found


def why_no_cuda() -> str:
    """Return why torch sees no CUDA device and what to do about it, as the end of a message."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.backends.cuda.is_built():
        why = (
            f"because torch {torch.__version__} is a build for CPUs; install a CUDA build "
            "(https://pytorch.org/get-started)"
        )
    elif visible is not None:
        why = (
            f"with CUDA_VISIBLE_DEVICES={visible!r}; unset it or name a GPU that `nvidia-smi` lists"
        )
    else:
        why = (
            f"though torch {torch.__version__} is built for CUDA; see whether `nvidia-smi` lists one "
            "and its driver is new enough"
        )
    return f"torch sees no CUDA device, {why}, or ask for cpu"


@contextmanager
def device_errors(what: str, advice: str) -> Iterator[None]:
    """Turn errors of a device in the body into one-line errors; also a decorator.

    Parameters
    ----------
    what
        Description of the computation, such as "the logits of 128 examples".
    advice
        Remedy if memory ran out.

    Raises
    ------
    DeviceError
        Memory ran out, or an operation has no deterministic implementation.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        translated = translate(error, what, advice)
        if translated is None:
            raise
        raise translated from error


def translate(error: BaseException, what: str, advice: str) -> DeviceError | None:
    """Return the error of `device_errors`; None for one that does not come from the device."""
    if ran_out_of_memory(error):
        return DeviceError(f"memory ran out on {what}: {memory_there(error)}; {advice}")
    if not isinstance(error, RuntimeError):
        return None
    if "CUBLAS_WORKSPACE_CONFIG" in str(error):
        return DeviceError(
            "deterministic computation needs the environment variable "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8 before the GPU is first used; set it, or leave "
            "deterministic out"
        )
    operation, found, _ = str(error).partition(" does not have a deterministic implementation")
    if found:
        return DeviceError(
            f"the operation {operation.split()[-1]} has no deterministic implementation, which {what} "
            "was asked for with; replace the layer that uses it, or leave deterministic out"
        )
    return None


def memory_there(error: BaseException) -> str:
    """Return a description of the memory of the device of an error."""
    if match := _CAPACITY.search(str(error)):
        return f"the GPU has {match[1]}, of which {match[2]} are free"
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()} has {_size(total)}, of which {_size(free)} are free"
    if isinstance(error, torch.OutOfMemoryError):
        return "the device is full"
    machine = psutil.virtual_memory()
    return f"this machine has {_size(machine.total)}, of which {_size(machine.available)} are free"


def free_host_memory() -> int:
    """Return the bytes of memory that a process may still take on this machine."""
    return psutil.virtual_memory().available


def peak_host_memory() -> int:
    """Return the peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def limit_memory(device: torch.device, processes: int) -> None:
    """Limit this process to its share of a GPU's memory.

    A process that needs more fails without affecting other processes.
    """
    if processes < 2:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    share = (total / processes - CONTEXT_BYTES) / total
    if share <= 0:
        raise DeviceError(
            f"{processes} workers do not fit on a GPU of {_size(total)}, of which each takes "
            f"{_size(CONTEXT_BYTES)} before it trains; use fewer --workers"
        )
    torch.cuda.set_per_process_memory_fraction(share, device)


def _size(amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB"
