"""How training uses a device: streams, checks of the losses, and numerical settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

CHECK_EVERY = 50
"""Steps between two checks of the losses on a CPU."""

CHECK_EVERY_ON_ACCELERATORS = 1000
"""The same on an accelerator, for which the host waits at each check and after every epoch."""


def check_every(device: torch.device) -> int:
    """Return the number of steps between two checks of the losses within an epoch."""
    return CHECK_EVERY if device.type == "cpu" else CHECK_EVERY_ON_ACCELERATORS


class Lane:
    """The CUDA stream of one network; without effect on other devices."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def current(self) -> AbstractContextManager[object]:
        """Make the stream the current one in a block."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def begin(self) -> None:
        """Let the stream wait for what was launched before."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def end(self) -> None:
        """Let what is launched from now on wait for the stream."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


@contextmanager
def numerics(*, deterministic: bool) -> Iterator[None]:
    """Set how torch chooses among implementations of an operation, and restore it afterwards.

    By default cuDNN measures which of its convolutions is fastest. ``deterministic`` allows only
    implementations that give the same bits whenever they are run.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
    if deterministic:
        # cuBLAS reads it when it is first used; see torch.use_deterministic_algorithms.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = deterministic or before[3]
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[2:]
