"""Passes through a network that run in parallel, each in its own thread.

Threads with separate passes wait for each other less than threads that share each operation.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import lru_cache
from queue import SimpleQueue
from typing import TypeVar

import torch

from distillens.kernel.tracing.uses import Tracer

Found = TypeVar("Found")

_POOL = "distillens-kernel"
"""Prefix of the names of the threads."""


def parallel_pass_count(device: torch.device) -> int:
    """Return how many passes run in parallel on this machine: two, or one."""
    # Only with OpenMP can the threads of an operation be set while others run. Two passes cannot share
    # an odd number of threads evenly.
    # If the network itself computes a Gram, all threads of the pool could wait for each other.
    nested = threading.current_thread().name.startswith(_POOL)
    if nested or device.type != "cpu" or "OpenMP" not in torch.__config__.parallel_info():
        return 1
    return 2 if torch.get_num_threads() % 2 == 0 else 1


@lru_cache
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """Return persistent threads, so that allocator and libraries set up their state for each once."""
    return ThreadPoolExecutor(count, _POOL)


class ParallelPasses:
    """Threads that each have a copy of the network's modules, which shares the parameters.

    The network itself cannot be shared, since modules may keep state from a call.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._first, self._count = tracer, 0
        self._tracers: SimpleQueue[Tracer] = SimpleQueue()

    def run(
        self, work: Callable[[Tracer, slice], Found], passes: Sequence[slice], count: int
    ) -> list[Found]:
        """Return the result of each pass; ``count`` of them share the threads that torch may use."""
        for number in range(self._count, count):
            self._tracers.put(self._first if number == 0 else self._first.twin())
        self._count = max(self._count, count)
        threads = torch.get_num_threads()
        each = max(1, threads // count)

        def one(rows: slice) -> Found:
            # The number of threads of an operation is a setting of the thread that calls it.
            torch.set_num_threads(each)
            tracer = self._tracers.get()
            try:
                return work(tracer, rows)
            finally:
                self._tracers.put(tracer)

        torch.set_num_threads(each)
        # The key includes the process, since a fork does not copy threads.
        pool = _pool(count, os.getpid())
        futures = [pool.submit(one, rows) for rows in passes]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
            torch.set_num_threads(threads)
        return [future.result() for future in futures]
