"""The processes of torch.distributed that share a kernel's work, or a single process.

All processes make the same calls with the same inputs, and each ends with the whole result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, distributed

from distillens.errors import DistillensError, KernelError

T = TypeVar("T")

_PIECE = 2**22
"""Numbers that are exchanged at a time, so that an exchange takes little memory."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process and the number of processes."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def here(alone: bool) -> Ranks:
        """Return the processes of torch.distributed, or this one alone."""
        if alone or not (distributed.is_available() and distributed.is_initialized()):
            return Ranks()
        return Ranks(distributed.get_rank(), distributed.get_world_size())

    @property
    def neighbours(self) -> int:
        """How many of the processes share this machine; all of them if the launcher does not say."""
        return min(self.count, int(os.environ.get("LOCAL_WORLD_SIZE", self.count)))

    def gathered(self, value: T) -> list[T]:
        """Return the value of every process, ordered by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def agreed(self, value: T) -> T:
        """Return the first process's value."""
        if self.count == 1:
            return value
        held: list[Any] = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def require_same(self, facts: dict[str, Any]) -> None:
        """Raise KernelError if the processes do not compute the same.

        Raises
        ------
        KernelError
            A fact differs between the first process and another.
        """
        for number, other in enumerate(self.gathered(facts)):
            for name, value in facts.items():
                first = self.agreed(value)
                if other[name] != first:
                    raise KernelError(
                        f"process {number} has other {name} ({other[name]}) than process 0 "
                        f"({first}); give all processes the same, or compute alone=True"
                    )

    @contextmanager
    def together(self) -> Iterator[None]:
        """End all processes with an error of one of them, for which the others would wait forever.

        Raises
        ------
        DistillensError
            The body raised it, in this process or in another.
        """
        error: DistillensError | None = None
        try:
            yield
        except DistillensError as caught:
            error = caught
        lines = self.gathered(None if error is None else str(error))
        if error is not None:
            raise error
        for number, line in enumerate(lines):
            if line is not None:
                raise KernelError(f"process {number} stopped: {line}")

    def add_up(self, values: Tensor) -> None:
        """Replace contiguous values by their sum over the processes, piece by piece."""
        if self.count == 1:
            return
        for part in values.view(-1).split(_PIECE):
            distributed.all_reduce(part)

    def share(self, costs: Sequence[float]) -> list[int]:
        """Return which pieces of work this process takes.

        The largest piece left goes to the process with the least work, so that loads are nearly equal.
        """
        loads = [0.0] * self.count
        mine: list[int] = []
        for piece in sorted(range(len(costs)), key=lambda number: -costs[number]):
            least = loads.index(min(loads))
            loads[least] += costs[piece]
            if least == self.rank:
                mine.append(piece)
        return sorted(mine)
