"""The gradients of a block of examples by all parameters, each in the form that it is contracted in.

Shapes: B, D examples of two blocks, C outputs, P written numbers, M columns.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.beside import Beside, passes_beside
from distillens.kernel.coverage import Coverage
from distillens.kernel.directions import Directions
from distillens.kernel.factors import Outer, Paired, Pairing
from distillens.kernel.late import Late, late_scratch
from distillens.kernel.leftovers import Leftovers
from distillens.kernel.network import Prepared
from distillens.kernel.parts import KEPT, Part, Parts, choose_parts, numbers_of_pair
from distillens.kernel.passes import Passes, measured_passes, timed_pass
from distillens.kernel.rows import STRIP, add_rows, empty_tile, mirror
from distillens.kernel.uses import Tracer, Use, output_gradients
from distillens.kernel.ways import Purpose

PAIR_NUMBERS = 2**25
"""Numbers of products of positions that exist at a time, where there is room."""


@dataclass(frozen=True)
class Block:
    """The gradients of some examples: written ones in one array, the others a use each."""

    written_BCP: Tensor
    paired: tuple[Paired, ...]
    late: tuple[Late, ...] = ()
    """Only of a block that is contracted with itself and nothing else."""

    def __len__(self) -> int:
        return len(self.written_BCP)

    def contract(self, other: Block, pairing: Pairing, pair_numbers: int = PAIR_NUMBERS) -> Tensor:
        """Return the tile of the kernel: (C, B, D) for "diagonal", (B, C, D, C) for "full".

        At most ``pair_numbers`` products of positions exist at a time, or those of one row.
        """
        itself = other is self
        tile = empty_tile(self.written_BCP, other.written_BCP, pairing)
        add_rows(tile, self.written_BCP, other.written_BCP, pairing, upper=itself)
        if self.late:
            assert itself
            numbers = max(each.shape.gradients(len(self)) for each in self.late)
            scratch = self.written_BCP.new_empty(numbers)
            for late in self.late:
                late.add(tile, pairing, scratch)
            del scratch
        for mine, its in zip(self.paired, other.paired, strict=True):
            step = max(1, pair_numbers // (len(other) * numbers_of_pair(mine, pairing)))
            if itself:
                step = min(step, STRIP)
            for start in range(0, len(self), step):
                rows, columns = slice(start, start + step), slice(start if itself else 0, None)
                right = its.part(start, len(other)) if itself else its
                part = mine.part(start, start + step).pairs(right, pairing)
                place = (rows, slice(None)) if pairing == "full" else (slice(None), rows)
                tile[(*place, columns)] += part
        if itself:
            mirror(tile, pairing)
        return tile.to(self.written_BCP.dtype)

    def squares(self) -> Tensor:
        """Return each output's kernel with itself, (B, C)."""
        total = self.written_BCP.square().sum(dim=2)
        for factor in self.paired:
            total = total + factor.squares()
        return total

    def pull(self, vectors_BCM: Tensor) -> list[Tensor]:
        """Return Jᵀv for M columns, one tensor for the written and one for each paired use."""
        written = torch.einsum("bcp,bcm->mp", self.written_BCP, vectors_BCM)
        return [written, *(factor.pull(vectors_BCM) for factor in self.paired)]

    def push(self, parameters: list[Tensor]) -> Tensor:
        """Return Ju for parameters as `pull` gives them, (B, C, M)."""
        total = torch.einsum("bcp,mp->bcm", self.written_BCP, parameters[0])
        for factor, each in zip(self.paired, parameters[1:], strict=True):
            total = total + factor.push(each)
        return total


@dataclass
class _Shared:
    """What the makers for some of one network's outputs have in common."""

    tracer: Tracer
    leftovers: Leftovers
    coverage: Coverage
    purpose: Purpose
    sample: Tensor
    parameters: list[Tensor]
    parts: dict[int, Parts] = field(default_factory=dict)
    """By how many outputs there are, as is what was measured."""
    passes: dict[int, Passes] = field(default_factory=dict)
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)
    """Of passes of so many examples."""
    beside: Beside | None = None


class BlockMaker:
    """Makes the blocks of one network; knows which numbers go where."""

    def __init__(
        self,
        prepared: Prepared,
        coverage: Coverage,
        directions: Directions,
        purpose: Purpose,
        sample: Tensor,
    ) -> None:
        self._shared = _Shared(
            Tracer(
                prepared.network,
                {name: prepared.parameters[name] for name in coverage.covered},
                coverage.repeated,
            ),
            Leftovers(prepared.network, coverage.uncovered),
            coverage,
            purpose,
            sample,
            list(prepared.parameters.values()),
        )
        self._directions = directions

    def some(self, start: int, stop: int) -> BlockMaker:
        """Return the maker for some of the outputs, which shares all but them."""
        if (start, stop) == (0, self.outputs):
            return self
        made = copy.copy(self)
        made._directions = self._directions.part(start, stop)
        return made

    @property
    def pairing(self) -> Pairing:
        """Which pairs of outputs are contracted."""
        return self._shared.purpose.pairing

    @property
    def _chosen(self) -> Parts:
        """Return how gradients are contracted; it depends on how many outputs there are."""
        shared = self._shared
        if self.outputs not in shared.parts:
            shared.parts[self.outputs] = choose_parts(
                shared.tracer,
                shared.coverage.rules(),
                shared.sample,
                self._directions,
                shared.purpose,
            )
        return shared.parts[self.outputs]

    @property
    def parts(self) -> tuple[Part, ...]:
        """All uses, in the order of the calls."""
        return self._chosen.each

    @property
    def pair_numbers(self) -> int:
        """Numbers that products of positions take for a pair of examples."""
        return self._chosen.pair_numbers

    @property
    def written(self) -> int:
        """P."""
        return self._rest.stop

    @property
    def _rest(self) -> slice:
        start = self._chosen.written
        return slice(start, start + self._shared.leftovers.numbers)

    @property
    def held(self) -> int:
        """Numbers that an example's gradients take."""
        return self.outputs * self.written + sum(
            int(part.choice.cost.held) for part in self.parts if part.choice.way in KEPT
        )

    @property
    def largest_paired(self) -> int:
        """Numbers that an example's gradients by one paired use take, of the largest."""
        return max(
            (int(part.choice.cost.held) for part in self.parts if part.choice.way == "paired"),
            default=0,
        )

    def late_scratch(self, examples: int) -> int:
        """Return how many numbers of gradients that are written late exist at a time."""
        return late_scratch(self._chosen.late, examples)

    def passes(self, sample: Tensor) -> Passes:
        """Return what making gradients takes in memory, measured once."""
        known = self._shared.passes
        if self.outputs not in known:
            made = self._chosen  # before the measurement, of which it is no part
            assert made
            known[self.outputs] = measured_passes(self.make, sample)
        return known[self.outputs]

    def timed(self, sample: Tensor, count: int) -> float:
        """Return the seconds of a pass of so many examples, measured once."""
        known = self._shared.seconds
        if (self.outputs, count) not in known:
            known[self.outputs, count] = timed_pass(self.make, sample, count)
        return known[self.outputs, count]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the gradients were formed."""
        note = self._shared.leftovers.note
        return () if note is None else (note,)

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters that count."""
        return self._shared.parameters

    @property
    def outputs(self) -> int:
        """C."""
        return len(self._directions)

    @property
    def dtype(self) -> torch.dtype:
        """The type that gradients are in."""
        return self._directions.dtype

    @property
    def item_size(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    def trace(self, inputs_B: Tensor) -> tuple[Tensor, list[Use]]:
        """Run the network: its outputs (B, O) with their graph, and the uses of parameters."""
        return self._shared.tracer.run(inputs_B)

    @property
    def beside(self) -> int:
        """How many passes are best made beside each other."""
        # Calls of torch.func change the network's parameters while they last.
        return 1 if self._shared.leftovers.numbers else passes_beside(self._directions.device)

    def make(self, inputs_B: Tensor, forward: int, beside: int = 1) -> Block:
        """Return the gradients of some examples.

        Passes of ``forward`` examples each are made, ``beside`` of them beside each other.
        """
        written = torch.empty(
            len(inputs_B),
            self.outputs,
            self.written,
            dtype=self.dtype,
            device=self._directions.device,
        )

        def fill(tracer: Tracer, rows: slice) -> list[Paired]:
            return self._fill(tracer, inputs_B[rows], written[rows])

        passes = [slice(start, start + forward) for start in range(0, len(inputs_B), forward)]
        if beside == 1 or len(passes) == 1:
            kept = [fill(self._shared.tracer, rows) for rows in passes]
        else:
            if self._shared.beside is None:
                self._shared.beside = Beside(self._shared.tracer, beside)
            kept = self._shared.beside.run(fill, passes)
        columns = [list(uses) for uses in zip(*kept, strict=True)]
        kept.clear()
        paired: list[Paired] = []
        late: list[Late] = []
        ways = [part.choice.way for part in self.parts if part.choice.way in KEPT]
        for way, parts in zip(ways, columns, strict=True):
            if way == "late":
                late.append(Late(parts))
            else:
                # The parts of one use at a time exist twice.
                paired.append(parts[0].joined(parts))
            parts.clear()
        return Block(written, tuple(paired), tuple(late))

    def _fill(self, tracer: Tracer, inputs_B: Tensor, written_BCP: Tensor) -> list[Paired]:
        """Write the gradients that are written out at once; return the factors of the others."""
        outputs_BO, uses = tracer.run(inputs_B)
        if len(uses) != len(self.parts):
            raise KernelError(
                f"the model used its parameters {len(uses)} times where it used them "
                f"{len(self.parts)} times before; its path must not depend on the inputs"
            )
        gradients = output_gradients(self._directions.of(outputs_BO), uses)
        offsets, leftovers = self._chosen.offsets, self._shared.leftovers
        seen: set[str] = set()
        kept: list[Paired] = []
        for number, (part, use) in enumerate(zip(self.parts, uses, strict=True)):
            factor = part.place.factor(use, gradients[number], part.roles)
            gradients[number] = []  # the next ones may need the room
            # What no parameter has acted on may be a place that the next pass writes to.
            copying = not use.call.inputs.requires_grad
            if part.choice.way == "late":
                assert isinstance(factor, Outer)
                kept.append(factor.unwritten(copying))
            elif part.choice.way == "paired":
                assert isinstance(factor, Paired)
                kept.append(factor.apart(copying))
            for role, name in part.written:
                target = written_BCP[:, :, offsets[name]]
                if name in seen:
                    factor.add(role, target)
                elif part.choice.way == "convolved":
                    factor.convolve(role, target)
                else:
                    factor.write(role, target)
                seen.add(name)
        if leftovers.numbers:
            written_BCP[:, :, self._rest] = leftovers.gradients(inputs_B, self._directions)
        return kept
