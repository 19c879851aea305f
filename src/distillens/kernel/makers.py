"""The makers of a network's gradients, and the look at it that they need, once for a shape of examples.

Shapes: C outputs that the kernel is taken of, O of the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillens.kernel.blocks import BlockMaker
from distillens.kernel.coverage import Coverage, find_coverage
from distillens.kernel.directions import Directions, Outputs, directions, pairing_of
from distillens.kernel.memory import LiveBytes
from distillens.kernel.network import Prepared, explained
from distillens.kernel.plan import Job, Plan, Sizes, make_plan, plan_at_once
from distillens.kernel.ways import Purpose, Speed

SAMPLE = 2
"""Examples that the shapes are read from."""


class Makers:
    """What makes the gradients of a network's outputs, for one Gram or product after another."""

    def __init__(self, prepared: Prepared, outputs: Outputs) -> None:
        self._prepared = prepared
        self._outputs: Outputs = outputs
        self._counts: dict[torch.Size, int] = {}
        self._coverage: Coverage | None = None
        self._covered_shape: torch.Size | None = None
        self._makers: dict[Purpose, BlockMaker] = {}
        """What was measured of making gradients stays with their makers."""
        self._last: BlockMaker | None = None
        self.look_bytes = 0
        """What looking at the network took."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of how the last maker's gradients were made."""
        made = self._last.notes if self._last is not None else ()
        return (*self._prepared.notes, *made)

    def count(self, rows: Tensor) -> int:
        """Return O for such examples."""
        if rows.shape[1:] not in self._counts:
            self._counts[rows.shape[1:]] = self._prepared.count_outputs(rows[:1])
        return self._counts[rows.shape[1:]]

    def directions(self, rows: Tensor) -> Directions:
        """Return the outputs that gradients are made of."""
        prepared = self._prepared
        return directions(self._outputs, self.count(rows), prepared.dtype, prepared.device)

    def look_at(self, rows: Tensor) -> None:
        """Find out where the parameters are used, unless that is known of such examples."""
        self.directions(rows)  # first of all, since it says what a network without logits gave
        if self._coverage is not None and self._covered_shape == rows.shape[1:]:
            return
        # Where examples lie among the axes of a call can depend on their shape.
        with LiveBytes() as live, explained("on a few examples in float64"):
            self._coverage = find_coverage(self._prepared.network, self._prepared.parameters, rows)
        self.look_bytes = live.peak
        self._covered_shape = rows.shape[1:]
        self._makers.clear()

    def maker(
        self,
        rows: Tensor,
        speed: Speed,
        pairs_each: float | None,
        at_once: bool = False,
    ) -> BlockMaker:
        """Return what makes the gradients of such examples, which were looked at.

        Parameters
        ----------
        rows
            Examples.
        speed
            Of this machine.
        pairs_each
            With how many others an example is paired; None for gradients that take the least room.
        at_once
            All examples are contracted at once, so that gradients can be written late.
        """
        assert self._coverage is not None
        purpose = Purpose(pairing_of(self._outputs), speed, pairs_each, at_once)
        if purpose not in self._makers:
            self._makers[purpose] = BlockMaker(
                self._prepared, self._coverage, self.directions(rows), purpose, rows[:SAMPLE]
            )
        self._last = self._makers[purpose]
        return self._last

    def planned(
        self, rows: Tensor, job: Job, speed: Speed, kept: Sizes | None = None, timed: bool = False
    ) -> tuple[BlockMaker, Plan]:
        """Return what makes the gradients of a Gram, and its plan.

        For the parameters see `make_plan`.
        """
        sample, pairs_each = rows[:SAMPLE], job.across / 2
        if job.small:
            maker = self.maker(rows, speed, pairs_each, at_once=True)
            if plan := plan_at_once(maker, sample, job, speed, timed=timed):
                return maker, plan
        maker = self.maker(rows, speed, pairs_each)
        return maker, make_plan(maker, sample, job, speed, kept, timed=timed)
