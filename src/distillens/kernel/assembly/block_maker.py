"""Making the gradients of blocks of examples: forward and backward passes, and what becomes of them.

Shapes: B examples, C outputs, O outputs of the network, P materialised numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.assembly.block import Block
from distillens.kernel.assembly.fallback import FallbackGradients
from distillens.kernel.assembly.parallel_passes import ParallelPasses, parallel_pass_count
from distillens.kernel.factors.factored import Factored
from distillens.kernel.factors.limits import Limits
from distillens.kernel.factors.outer_products import OuterProducts
from distillens.kernel.factors.streamed import Streamed
from distillens.kernel.planning.cost_model import (
    KEEPS_FACTORS,
    Purpose,
    UsePlans,
    plan_uses,
)
from distillens.kernel.planning.trace_cache import CachedTrace
from distillens.kernel.tracing.coverage import repeated_uses
from distillens.kernel.tracing.directions import Directions
from distillens.kernel.tracing.memory import PassMemory, counted_memory, timed_pass
from distillens.kernel.tracing.network import Prepared
from distillens.kernel.tracing.uses import Tracer, output_gradients

Found = TypeVar("Found")

_SMALL_BYTES = 2**16
"""A bound on the memory of a pass that does not grow with its examples: indices, masks, sums."""


class BlockMaker:
    """Makes the blocks of a network's gradients.

    Parameters
    ----------
    prepared
        The network.
    trace
        Where its parameters are used.
    directions
        The outputs.
    purpose
        What the gradients are made for.
    sample
        Examples that shapes are read from.
    limits
        Limits of passes and contractions.
    """

    def __init__(
        self,
        prepared: Prepared,
        trace: CachedTrace,
        directions: Directions,
        purpose: Purpose,
        sample: Tensor,
        limits: Limits,
    ) -> None:
        known, coverage = prepared.parameters, trace.coverage
        covered = {name: known[name] for name in coverage.covered}
        uncovered = {name: known[name] for name in coverage.uncovered}
        self.directions, self.purpose, self.limits = directions, purpose, limits
        self._trace, self._sample = trace, sample
        self._saved_bytes = prepared.size(sample).saved_bytes
        repeated = repeated_uses(coverage.covered_sites())
        self._tracer = Tracer(prepared.network, covered, repeated)
        self._fallback = FallbackGradients(uncovered, chosen=purpose.jacobians)
        self._parallel = ParallelPasses(self._tracer)
        self._seconds: dict[tuple[int, int], float] = {}
        """Times of passes, by number of outputs and of examples."""

    def some(self, start: int, stop: int) -> BlockMaker:
        """Return a maker for some of the outputs, which shares everything else with this one."""
        if (start, stop) == (0, self.outputs):
            return self
        made = copy.copy(self)
        made.directions = self.directions.part(start, stop)
        return made

    @property
    def outputs(self) -> int:
        """C."""
        return len(self.directions)

    @property
    def on_accelerator(self) -> bool:
        """Whether the device is an accelerator, where many examples take as long as few."""
        return self.limits.on_accelerator(self.directions.device)

    @property
    def item_size(self) -> int:
        """Bytes of a number."""
        return self.directions.dtype.itemsize

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on how the gradients were computed."""
        return self._fallback.notes

    @property
    def uses(self) -> UsePlans:
        """How gradients are contracted, which depends on the number of outputs."""
        coverage, plans = self._trace.coverage, self._trace.plans
        if not coverage.covered:
            return UsePlans()
        if self._key not in plans:
            sites, options = coverage.covered_sites(), (self.directions, self.purpose, self.limits)
            plans[self._key] = plan_uses(self._tracer, sites, self._sample, *options)
        return plans[self._key]

    @property
    def _key(self) -> tuple[Purpose, int, Limits]:
        return self.purpose, self.outputs, self.limits

    @property
    def materialised(self) -> int:
        """P."""
        return self.uses.materialised + self._fallback.numbers

    @property
    def held(self) -> int:
        """Numbers that the gradients of an example take."""
        choices = [plan.choice for plan in self.uses.each]
        kept = sum(int(each.cost.held) for each in choices if each.strategy in KEEPS_FACTORS)
        return self.outputs * self.materialised + kept

    @property
    def parallel_passes(self) -> int:
        """How many passes are best run in parallel."""
        # torch.func replaces the parameters of the network's copy, by which rules recognise uses.
        if self._fallback.numbers and not self.purpose.jacobians:
            return 1
        return parallel_pass_count(self.directions.device)

    def pass_memory(self, counted: bool) -> PassMemory:
        """Return the memory of making gradients: counted once, or a bound from shapes."""
        uses = self.uses  # planning the uses is not a part of a pass
        counts = self._trace.memory
        if counted:
            if self._key not in counts:
                counts[self._key] = counted_memory(self.make, self._sample)
            return counts[self._key]
        C, item, sample = self.outputs, self.item_size, self._sample
        saved, uncovered = self._saved_bytes, self._fallback.numbers
        each = sample[0].numel() * sample.element_size() + item * self.held
        if uncovered:
            # Activations and their gradients, for as many outputs as torch.func takes at once; and the
            # gradients by parameters, as they are made and as they are written.
            at_once = C if self.purpose.jacobians else 1
            each += (2 + at_once) * saved + 2 * item * C * uncovered
        if uses.each:
            # One backward pass for all outputs also holds all gradients by activations.
            at_once = C if self.on_accelerator else 1
            each += (1 + at_once) * saved + item * ((1 + C) * uses.output_numbers + uses.forming)
        return PassMemory(_SMALL_BYTES, each)

    def timed(self, count: int) -> float:
        """Return the seconds of a pass of ``count`` examples, measured once."""
        seconds = self._seconds
        if (self.outputs, count) not in seconds:
            seconds[self.outputs, count] = timed_pass(self.make, self._sample, count)
        return seconds[self.outputs, count]

    def take_alone(self) -> Tensor | None:
        """Return the outputs of the first example that plain Jacobians were made of, and drop them."""
        found, self._fallback.alone_1C = self._fallback.alone_1C, None
        return found

    def make(self, inputs_B: Tensor, forward: int, parallel: int = 1) -> Block:
        """Return the gradients of some examples.

        Passes of ``forward`` examples each are made, ``parallel`` of them at the same time.
        """
        if self.purpose.jacobians:
            return self._make_jacobians(inputs_B, forward, parallel)
        shape = len(inputs_B), self.outputs, self.materialised
        target = torch.empty(shape, dtype=self.directions.dtype, device=self.directions.device)

        def work(tracer: Tracer, rows: slice) -> list[Factored]:
            return self._fill(tracer, inputs_B[rows], target[rows])

        kept = self._run(work, len(inputs_B), forward, parallel)
        by_use = [list(uses) for uses in zip(*kept, strict=True)]
        kept.clear()
        factored: list[Factored] = []
        streamed: list[Streamed] = []
        keeping = [use for use in self.uses.each if use.choice.strategy in KEEPS_FACTORS]
        for use, parts in zip(keeping, by_use, strict=True):
            if use.choice.strategy == "streamed":
                streamed.append(Streamed(parts, self.limits))
            else:
                # The parts of one use at a time exist twice.
                factored.append(parts[0].joined(parts))
            parts.clear()
        return Block(target, self.limits, tuple(factored), tuple(streamed))

    def _make_jacobians(self, inputs_B: Tensor, forward: int, parallel: int) -> Block:
        fallback = self._fallback

        def work(tracer: Tracer, rows: slice) -> Sequence[Tensor]:
            *made, outputs_BC = fallback.jacobians(tracer.network, inputs_B[rows], self.directions)
            if fallback.alone_1C is None and rows.start == 0:
                fallback.alone_1C = outputs_BC[:1].clone()
            return made

        made = self._run(work, len(inputs_B), forward, parallel)
        nothing = made[0][0].new_empty(len(inputs_B), self.outputs, 0)
        return Block(nothing, self.limits, jacobians=tuple(made))

    def _run(
        self, work: Callable[[Tracer, slice], Found], count: int, forward: int, parallel: int
    ) -> list[Found]:
        """Return the result of each pass."""
        passes = [slice(start, start + forward) for start in range(0, count, forward)]
        if parallel == 1 or len(passes) == 1:
            return [work(self._tracer, rows) for rows in passes]
        return self._parallel.run(work, passes, parallel)

    def _fill(self, tracer: Tracer, inputs_B: Tensor, target_BCP: Tensor) -> list[Factored]:
        """Write the materialised gradients of a pass; return the factors that are kept."""
        plans, fallback = self.uses.each, self._fallback
        if fallback.numbers:
            rest_BCP = target_BCP[:, :, self.uses.materialised :]
            fallback.write(tracer.network, inputs_B, self.directions, rest_BCP)
        if not plans:
            return []
        outputs_BO, uses = tracer.run(inputs_B)
        if len(uses) != len(plans):
            raise KernelError(
                f"the model used its parameters {len(uses)} times where it used them "
                f"{len(plans)} times before; its path must not depend on the inputs"
            )
        outputs_BC = self.directions.of(outputs_BO)
        gradients = output_gradients(outputs_BC, uses, batched=self.on_accelerator)
        offsets, seen = self.uses.offsets, set[str]()
        kept: list[Factored] = []
        for number, (plan, use) in enumerate(zip(plans, uses, strict=True)):
            factor = plan.site.factor(use, gradients[number], plan.roles)
            gradients[number] = []  # freed before the next factors are made
            # The network may overwrite inputs that no parameter has acted on in the next pass.
            copy_inputs = not use.call.inputs.requires_grad
            if plan.choice.strategy == "streamed":
                assert isinstance(factor, OuterProducts)
                kept.append(factor.for_streaming(copy_inputs))
            elif plan.choice.strategy == "factored":
                assert isinstance(factor, Factored)
                kept.append(factor.compacted(copy_inputs))
            for role, name in plan.materialised:
                target = target_BCP[:, :, offsets[name]]
                if name in seen:
                    factor.add(role, target)
                elif plan.choice.strategy == "direct":
                    factor.write_directly(role, target)
                else:
                    factor.write(role, target)
                seen.add(name)
        return kept
