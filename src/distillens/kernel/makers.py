"""The makers of a network's gradients, and the look at it that they need, once for a shape of examples.

Shapes: C outputs that the kernel is taken of, O of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.blocks import BlockMaker
from distillens.kernel.coverage import (
    Coverage,
    find_coverage,
    near,
    still_covers,
    unlike_examples,
)
from distillens.kernel.directions import Directions, Outputs, directions, pairing_of
from distillens.kernel.gradients import real_numbers
from distillens.kernel.known import Known, forget, known_of, remember
from distillens.kernel.memory import LiveBytes
from distillens.kernel.network import First, Prepared, explained
from distillens.kernel.passes import Passes
from distillens.kernel.plan import Job, Plan, Sizes, make_plan, plan_at_once
from distillens.kernel.ways import Purpose, Speed

SAMPLE = 2
"""Examples that the shapes are read from."""
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}
"""How far outputs may differ by rounding, of the largest."""
_ROOMY = 2
"""How many times a bound from shapes has to fit a budget for nothing to be counted."""


class Makers:
    """What makes the gradients of a network's outputs, for one Gram or product after another."""

    def __init__(self, prepared: Prepared, outputs: Outputs) -> None:
        self._prepared = prepared
        self._outputs: Outputs = outputs
        self._firsts: dict[torch.Size, First] = {}
        self._known: Known | None = None
        self._known_of: Hashable = None
        self.unverified = False
        """Whether the coverage was found by an earlier look, and not compared again."""
        self._makers: dict[tuple[Purpose, torch.Size], BlockMaker] = {}
        """What was measured of making gradients stays with their makers."""
        self._last: BlockMaker | None = None
        self.look_bytes: int | None = None
        """What looking at the network takes, once it was counted."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of how the last maker's gradients were made."""
        made = self._last.notes if self._last is not None else ()
        return (*self._prepared.notes, *made)

    def count(self, rows: Tensor) -> int:
        """Return O for such examples."""
        return self.first(rows).outputs

    def first(self, rows: Tensor) -> First:
        """Return what one such example shows of the network."""
        shape = rows.shape[1:]
        if shape not in self._firsts:
            self._firsts[shape] = self._prepared.first(rows[:1])[0]
        return self._firsts[shape]

    def begun(self, rows: Tensor, numbers_R: Tensor) -> Tensor | None:
        """Return the logits of some examples with their graph, where they show what `first` returns.

        None where that is known already, or where the network fails on them: `first` then says why.
        """
        shape = rows.shape[1:]
        if shape in self._firsts:
            return None
        try:
            self._firsts[shape], logits_RO = self._prepared.first(rows[numbers_R])
        except KernelError:
            return None
        return logits_RO

    def directions(self, rows: Tensor) -> Directions:
        """Return the outputs that gradients are made of."""
        prepared = self._prepared
        return directions(self._outputs, self.count(rows), prepared.dtype, prepared.device)

    def look_at(self, rows: Tensor, checked: bool = True) -> None:
        """Find out where the parameters are used, unless that is known of such examples.

        Parameters
        ----------
        rows
            Examples.
        checked
            What is computed will be compared with plain autograd. Otherwise what an earlier look found
            is compared, even if the weights are those that it was found for.
        """
        self.directions(rows)  # first of all, since it says what a network without logits gave
        prepared = self._prepared
        # Where examples lie among the axes of a call can depend on their shape.
        examples = rows.shape[1:], rows.dtype
        if (
            self._known is not None
            and self._known_of == examples
            and (checked or not self.unverified)
        ):
            return
        model, signature = prepared.model(), (prepared.built, self._outputs, *examples)
        known = known_of(model, signature)
        self.unverified = checked and known is not None and known.state == prepared.state
        if known is not None and not self.unverified:
            with explained("on a few examples in float64"):
                held = still_covers(prepared.network, prepared.parameters, rows, known.coverage)
            known = replace(known, state=prepared.state) if held else None
        if known is None:
            known = Known(self._look(rows), prepared.state)
        remember(model, signature, known)
        self._known, self._known_of, self.look_bytes = known, examples, known.look_bytes
        self._makers = {key: each for key, each in self._makers.items() if key[0].jacobians}

    def look_again(self, rows: Tensor) -> None:
        """Look at the network anew, whatever was known of it."""
        forget(self._prepared.model())
        self._known = None
        self.look_at(rows)

    def _look(self, rows: Tensor) -> Coverage:
        with explained("on a few examples in float64"):
            return find_coverage(self._prepared.network, self._prepared.parameters, rows)

    def count_look(self, rows: Tensor) -> int:
        """Return the bytes that looking at the network takes, counted in a second look."""
        if self.look_bytes is None:
            with LiveBytes() as live:
                self._look(rows)
            self.look_bytes = live.peak
            if self._known is not None:
                self._known.look_bytes = live.peak
        return self.look_bytes

    def bounded_setup(self, rows: Tensor) -> int:
        """Return a bound on the bytes that the look and the products to check against take.

        Float64 gradients of three examples twice, their sums, and the copy of the network; the
        passes of three and of two examples; and passes of sixteen examples in the network's type.
        """
        kept, item = self.first(rows).kept_bytes, self._prepared.dtype.itemsize
        numbers = sum(real_numbers(each) for each in self._prepared.parameters.values())
        return 80 * numbers + max(15 * 8 // item, 48) * kept

    def maker(
        self,
        rows: Tensor,
        speed: Speed,
        pairs_each: float | None,
        at_once: bool = False,
        jacobians: bool = False,
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
        jacobians
            Plain Jacobians are made, which needs no look.
        """
        purpose = Purpose(pairing_of(self._outputs), speed, pairs_each, at_once, jacobians)
        key = purpose, rows.shape[1:]
        if key not in self._makers:
            known = None if jacobians else self._known
            assert jacobians or known is not None
            coverage = (
                known.coverage if known else Coverage((), (), tuple(self._prepared.parameters))
            )
            self._makers[key] = BlockMaker(
                self._prepared,
                coverage,
                self.directions(rows),
                purpose,
                rows[:SAMPLE],
                self.first(rows).kept_bytes,
                known,
            )
        self._last = self._makers[key]
        return self._last

    def passes(self, maker: BlockMaker, rows: Tensor, budget: int) -> Passes:
        """Return what making gradients takes; counted where the budget is tight."""
        bounded = maker.passes(rows[:SAMPLE], counted=False)
        if _ROOMY * (bounded.fixed + bounded.each) <= budget:
            return bounded
        return maker.passes(rows[:SAMPLE], counted=True)

    def alike(self, rows: Tensor, alone_1C: Tensor | None, among_1O: Tensor | None) -> bool:
        """Return whether the first example has the same outputs alone and among others.

        Up to rounding, in the network's type. Where it has not, a look at the network in float64 says
        why: outputs may depend on other examples or on chance, or rounding may be large. A dependence
        below rounding changes a kernel in the same type by no more than rounding does. None stands for
        outputs among examples unlike those given, which may all be equal.
        """
        if among_1O is None:
            among = unlike_examples(rows)
            with torch.no_grad(), explained("on a few examples"):
                found_1O = self._prepared.network(among)[:1]
        else:
            found_1O = among_1O
        assert alone_1C is not None
        found_1C = self.directions(rows).of(found_1O)
        return near(found_1C, alone_1C, _ROUNDING[self._prepared.dtype])

    def jacobians_planned(
        self, rows: Tensor, job: Job, speed: Speed, timed: bool = False
    ) -> tuple[BlockMaker, Plan] | None:
        """Return what makes plain Jacobians for a Gram, and its plan; None where room is tight."""
        maker = self.maker(rows, speed, job.across / 2, jacobians=True)
        try:
            plan = make_plan(maker, rows[:SAMPLE], job, speed, timed=timed)
        except KernelError:
            return None
        return (maker, plan) if _ROOMY * plan.memory <= job.budget else None

    def planned(
        self,
        rows: Tensor,
        job: Job,
        speed: Speed,
        counted_setup: Callable[[], int],
        kept: Sizes | None = None,
        timed: bool = False,
    ) -> tuple[BlockMaker, Plan]:
        """Return what makes the gradients of a Gram, and its plan.

        Where a bound from shapes takes no more than half of the budget, nothing is counted.

        Parameters
        ----------
        rows
            Examples.
        job, speed, kept, timed
            See `make_plan`. The set-up in ``job`` is a bound.
        counted_setup
            Counts what the set-up takes.
        """
        try:
            found = self._planned(rows, job, speed, kept, timed)
            if _ROOMY * found[1].memory <= job.budget:
                return found
        except KernelError:
            pass  # A bound is too large; what is counted may fit.
        job = replace(job, setup_bytes=counted_setup(), counted=True)
        return self._planned(rows, job, speed, kept, timed)

    def _planned(
        self, rows: Tensor, job: Job, speed: Speed, kept: Sizes | None, timed: bool
    ) -> tuple[BlockMaker, Plan]:
        sample, pairs_each = rows[:SAMPLE], job.across / 2
        if job.small:
            maker = self.maker(rows, speed, pairs_each, at_once=True)
            if plan := plan_at_once(maker, sample, job, speed, timed=timed):
                return maker, plan
        maker = self.maker(rows, speed, pairs_each)
        return maker, make_plan(maker, sample, job, speed, kept, timed=timed)
