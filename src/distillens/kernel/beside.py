"""Passes through a network beside each other, each in a thread of its own.

Threads that have work of their own wait for each other less than threads that share each operation.
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

from distillens.kernel.uses import Tracer

Found = TypeVar("Found")


def passes_beside(device: torch.device) -> int:
    """Return how many passes are made beside each other on this machine: two, or one."""
    # Only OpenMP lets the threads of an operation be set while others run; and two passes share an
    # odd number of threads badly.
    if device.type != "cpu" or "OpenMP" not in torch.__config__.parallel_info():
        return 1
    return 2 if torch.get_num_threads() % 2 == 0 else 1


@lru_cache
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """Return threads that stay: what the allocator and the libraries keep for each is made once."""
    return ThreadPoolExecutor(count, "distillens-kernel")


class _Here(threading.local):
    """Whether this thread is one of the pool's."""

    working = False


_here = _Here()


class Beside:
    """Some threads, each with the network in a copy that shares its parameters.

    The network itself would not do: modules may keep something from a call.
    """

    def __init__(self, tracer: Tracer, count: int) -> None:
        self._count = count
        self._tracers: SimpleQueue[Tracer] = SimpleQueue()
        for each in (tracer, *(tracer.twin() for _ in range(count - 1))):
            self._tracers.put(each)

    def run(self, work: Callable[[Tracer, slice], Found], passes: Sequence[slice]) -> list[Found]:
        """Return what the work makes of each pass; they share this thread's share of the machine."""
        if _here.working:
            # A network that computes a Gram of its own: all threads could wait for each other.
            tracer = self._tracers.get()
            try:
                return [work(tracer, rows) for rows in passes]
            finally:
                self._tracers.put(tracer)
        threads = torch.get_num_threads()
        each = max(1, threads // self._count)

        def one(rows: slice) -> Found:
            # How many threads an operation takes is kept by the thread that calls it.
            torch.set_num_threads(each)
            tracer = self._tracers.get()
            _here.working = True
            try:
                return work(tracer, rows)
            finally:
                _here.working = False
                self._tracers.put(tracer)

        torch.set_num_threads(each)
        # The process is in the key, since threads do not follow into a fork.
        pool = _pool(self._count, os.getpid())
        futures = [pool.submit(one, rows) for rows in passes]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
            torch.set_num_threads(threads)
        return [future.result() for future in futures]
