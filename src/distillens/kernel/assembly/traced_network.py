"""A network with its traces: it hands out what makes its gradients, and plans of its Grams.

Shapes: C outputs that the kernel is taken of, O outputs of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.assembly.block_maker import BlockMaker
from distillens.kernel.factors.cost import Speed
from distillens.kernel.factors.limits import Limits
from distillens.kernel.planning.cost_model import Purpose
from distillens.kernel.planning.plan import Job, Plan, Sizes, make_plan, plan_single_tile
from distillens.kernel.planning.trace_cache import CachedTrace, cache_trace, traces_of
from distillens.kernel.tracing.coverage import (
    Coverage,
    find_coverage,
    near,
    still_covers,
    unlike_examples,
)
from distillens.kernel.tracing.directions import Directions, Outputs
from distillens.kernel.tracing.memory import LiveBytes, PassMemory
from distillens.kernel.tracing.network import Prepared, explained

_SAMPLE = 2
"""Examples that shapes are read from."""
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}
"""How far outputs may differ by rounding, relative to the largest."""
_ROOMY = 2
"""A bound from shapes that fits the budget this number of times is not replaced by counting."""


class TracedNetwork:
    """Makes the gradients of a network's outputs for one Gram or product after another."""

    def __init__(self, prepared: Prepared, outputs: Outputs, limits: Limits) -> None:
        self._prepared, self._limits = prepared, limits
        self._outputs: Outputs = outputs
        self._trace: CachedTrace | None = None
        self._trace_of: Hashable = None
        self.unverified = False
        """Whether the trace was found earlier, and not compared with autograd again."""
        self._makers: dict[tuple[Purpose, torch.Size], BlockMaker] = {}
        """What was measured about making gradients stays with their makers."""
        self._last: BlockMaker | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on how the last maker's gradients were computed."""
        made = self._last.notes if self._last is not None else ()
        return (*self._prepared.notes, *made)

    def directions(self, rows: Tensor) -> Directions:
        """Return the outputs that gradients are made of."""
        return self._prepared.directions(self._outputs, rows)

    def trace(self, rows: Tensor, checked: bool = True) -> None:
        """Find out where the parameters are used, unless that is known for such examples.

        Parameters
        ----------
        rows
            Examples.
        checked
            Whether the result of the computation will be compared with plain autograd. If not, a cached
            trace is compared, even if it was found for the same weights.
        """
        self.directions(rows)  # raises for a network without logits
        prepared = self._prepared
        # The layouts of examples in calls can depend on the shape of an example.
        kind = rows.shape[1:], rows.dtype
        if self._trace and self._trace_of == kind and (checked or not self.unverified):
            return
        known, signature = traces_of(prepared.model()), (prepared.structure, self._outputs, *kind)
        trace = known.get(signature)
        self.unverified = checked and trace is not None and trace.version == prepared.version
        if trace is not None and not self.unverified:
            with explained("on a few examples in float64"):
                holds = still_covers(prepared.network, prepared.parameters, rows, trace.coverage)
            trace = replace(trace, version=prepared.version) if holds else None
        if trace is None:
            trace = CachedTrace(self._find_coverage(rows), prepared.version)
        cache_trace(known, signature, trace)
        self._trace, self._trace_of = trace, kind
        self._makers = {key: each for key, each in self._makers.items() if key[0].jacobians}

    def retrace(self, rows: Tensor) -> None:
        """Trace the network without the cache."""
        traces_of(self._prepared.model()).clear()
        self._trace = None
        self.trace(rows)

    def _find_coverage(self, rows: Tensor) -> Coverage:
        with explained("on a few examples in float64"):
            return find_coverage(self._prepared.network, self._prepared.parameters, rows)

    def setup_bytes(self, rows: Tensor) -> int:
        """Return a bound on the memory of a trace and of the products that a Gram is checked against.

        It is that of float64 gradients of three examples twice, their sums, and the copy of the network;
        of the passes of three and of two examples; and of passes of sixteen examples in the network's
        type.
        """
        if not self._limits.reserve_setup:
            return 0
        saved, item = self._prepared.size(rows).saved_bytes, self._prepared.dtype.itemsize
        return 80 * self._prepared.numbers + max(15 * 8 // item, 48) * saved

    def counted_trace_bytes(self, rows: Tensor) -> int:
        """Return the memory of a trace, counted by tracing once more."""
        trace = self._trace
        if not self._limits.reserve_setup:
            return 0
        if trace is None or trace.trace_bytes is None:
            with LiveBytes() as live:
                self._find_coverage(rows)
            if trace is None:
                return live.peak
            trace.trace_bytes = live.peak
        return trace.trace_bytes

    def maker(
        self,
        rows: Tensor,
        speed: Speed,
        pairs_each: float | None,
        at_once: bool = False,
        jacobians: bool = False,
    ) -> BlockMaker:
        """Return what makes the gradients of such examples, for which the network was traced.

        Plain Jacobians need no trace. For the other parameters see `Purpose`.
        """
        purpose = Purpose(
            "full" if self._outputs == "full" else "diagonal", speed, pairs_each, at_once, jacobians
        )
        key = purpose, rows.shape[1:]
        if key not in self._makers:
            trace = self._trace
            if jacobians:
                trace = CachedTrace(Coverage((), (), tuple(self._prepared.parameters)), None)
            assert trace is not None
            self._makers[key] = BlockMaker(
                self._prepared,
                trace,
                self.directions(rows),
                purpose,
                rows[:_SAMPLE],
                self._limits,
            )
        self._last = self._makers[key]
        return self._last

    @staticmethod
    def pass_memory(maker: BlockMaker, budget: int) -> PassMemory:
        """Return the memory of making gradients; it is counted if the budget is tight."""
        bound = maker.pass_memory(counted=False)
        roomy = _ROOMY * (bound.fixed + bound.each) <= budget
        return bound if roomy else maker.pass_memory(counted=True)

    def same_alone(self, rows: Tensor, alone_1C: Tensor, among_1O: Tensor | None) -> bool:
        """Return whether the first example has the same outputs alone and among other examples.

        The comparison is up to rounding, in the network's type. If they differ, a trace in float64 tells
        why: outputs may depend on other examples or on chance, or rounding may be large. A dependence
        below rounding changes a kernel in the same type by no more than rounding does.

        Parameters
        ----------
        rows
            Examples.
        alone_1C
            The outputs of the first example alone, in the directions of the kernel.
        among_1O
            The network's outputs of the first example among others; None to compute them among examples
            that are unlike those given, which may all be equal.
        """
        found_1O = among_1O
        if found_1O is None:
            with torch.no_grad(), explained("on a few examples"):
                found_1O = self._prepared.network(unlike_examples(rows))[:1]
        found_1C = self.directions(rows).of(found_1O)
        return near(found_1C, alone_1C, _ROUNDING[self._prepared.dtype])

    def plan_jacobians(
        self, rows: Tensor, job: Job, speed: Speed, timed: bool = False
    ) -> tuple[BlockMaker, Plan] | None:
        """Return what makes plain Jacobians for a Gram, and its plan; None if memory is tight."""
        maker = self.maker(rows, speed, job.columns / 2, jacobians=True)
        try:
            plan = make_plan(maker, job, timed=timed)
        except KernelError:
            return None
        return (maker, plan) if _ROOMY * plan.memory <= job.budget else None

    def plan(
        self,
        rows: Tensor,
        job: Job,
        speed: Speed,
        counted_setup: Callable[[], int],
        kept: Sizes | None = None,
        timed: bool = False,
    ) -> tuple[BlockMaker, Plan]:
        """Return what makes the gradients of a Gram, and its plan.

        If a bound from shapes takes no more than half of the budget, no memory is counted.

        Parameters
        ----------
        rows
            Examples.
        job, kept, timed
            See `make_plan`. The setup memory in ``job`` is a bound.
        speed
            Speed of this machine.
        counted_setup
            Counts the setup memory.
        """
        try:
            found = self._plan(rows, job, speed, kept, timed)
            if _ROOMY * found[1].memory <= job.budget:
                return found
        except KernelError:
            pass  # The bound may be too large; a counted memory may fit.
        job = replace(job, setup_bytes=counted_setup(), counted=True)
        return self._plan(rows, job, speed, kept, timed)

    def _plan(
        self, rows: Tensor, job: Job, speed: Speed, kept: Sizes | None, timed: bool
    ) -> tuple[BlockMaker, Plan]:
        pairs_each = job.columns / 2
        small = job.symmetric and job.rows <= self._limits.single_tile_examples
        # One process, and a Gram in memory.
        if small and job.shares == 1 and job.gram_bytes > 0:
            maker = self.maker(rows, speed, pairs_each, at_once=True)
            if plan := plan_single_tile(maker, job, timed=timed):
                return maker, plan
        maker = self.maker(rows, speed, pairs_each)
        return maker, make_plan(maker, job, kept, timed=timed)
