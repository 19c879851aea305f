"""The gradients of a block of examples by all parameters, each in the form that it is contracted in.

Shapes: B, D examples of two blocks, C outputs, P written numbers, M columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.beside import Beside, passes_beside
from distillens.kernel.coverage import Coverage
from distillens.kernel.factors import Outer, Paired, Pairing
from distillens.kernel.late import Late, late_scratch
from distillens.kernel.leftovers import Leftovers
from distillens.kernel.network import Prepared
from distillens.kernel.parts import KEPT, choose_parts, numbers_of_pair
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


class BlockMaker:
    """Makes the blocks of one network; knows which numbers go where."""

    def __init__(
        self,
        prepared: Prepared,
        coverage: Coverage,
        directions_CO: Tensor,
        purpose: Purpose,
        sample: Tensor,
    ) -> None:
        self._made_of = prepared, coverage, purpose, sample
        self._some: dict[tuple[int, int], BlockMaker] = {}
        self._passes: Passes | None = None
        self._seconds: dict[int, float] = {}
        self._beside: Beside | None = None
        self._directions = directions_CO
        self.pairing: Pairing = purpose.pairing
        self._parameters = list(prepared.parameters.values())
        self._tracer = Tracer(
            prepared.network,
            {name: prepared.parameters[name] for name in coverage.covered},
            coverage.repeated,
        )
        self._leftovers = Leftovers(prepared.network, coverage.uncovered)
        chosen = choose_parts(self._tracer, coverage.rules(), sample, directions_CO, purpose)
        self.parts, self._offsets, self._late = chosen.each, chosen.offsets, chosen.late
        self.pair_numbers = chosen.pair_numbers
        """Numbers that products of positions take for a pair of examples."""
        self._rest = slice(chosen.written, chosen.written + self._leftovers.numbers)
        self.written = self._rest.stop
        """P."""
        self.held = len(directions_CO) * self.written + sum(
            int(part.choice.cost.held) for part in self.parts if part.choice.way in KEPT
        )
        """Numbers that an example's gradients take."""

        self.largest_paired = max(
            (int(part.choice.cost.held) for part in self.parts if part.choice.way == "paired"),
            default=0,
        )
        """Numbers that an example's gradients by one paired use take, of the largest."""

    def some(self, start: int, stop: int) -> BlockMaker:
        """Return the maker for some of the outputs."""
        if (start, stop) == (0, self.outputs):
            return self
        if (start, stop) not in self._some:
            prepared, coverage, purpose, sample = self._made_of
            some_CO = self._directions[start:stop]
            self._some[start, stop] = BlockMaker(prepared, coverage, some_CO, purpose, sample)
        return self._some[start, stop]

    def late_scratch(self, examples: int) -> int:
        """Return how many numbers of gradients that are written late exist at a time."""
        return late_scratch(self._late, examples)

    def passes(self, sample: Tensor) -> Passes:
        """Return what making gradients takes in memory, measured once."""
        if self._passes is None:
            self._passes = measured_passes(self.make, sample)
        return self._passes

    def timed(self, sample: Tensor, count: int) -> float:
        """Return the seconds of a pass of so many examples, measured once."""
        if count not in self._seconds:
            self._seconds[count] = timed_pass(self.make, sample, count)
        return self._seconds[count]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the gradients were formed."""
        return () if self._leftovers.note is None else (self._leftovers.note,)

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters that count."""
        return self._parameters

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
        return self._directions.element_size()

    def trace(self, inputs_B: Tensor) -> tuple[Tensor, list[Use]]:
        """Run the network: its outputs (B, O) with their graph, and the uses of parameters."""
        return self._tracer.run(inputs_B)

    @property
    def beside(self) -> int:
        """How many passes are best made beside each other."""
        # Calls of torch.func change the network's parameters while they last.
        return 1 if self._leftovers.numbers else passes_beside(self._directions.device)

    def make(self, inputs_B: Tensor, forward: int, beside: int = 1) -> Block:
        """Return the gradients of some examples.

        Passes of ``forward`` examples each are made, ``beside`` of them beside each other.
        """
        C = len(self._directions)
        written = self._directions.new_empty(len(inputs_B), C, self.written)

        def fill(tracer: Tracer, rows: slice) -> list[Paired]:
            return self._fill(tracer, inputs_B[rows], written[rows])

        passes = [slice(start, start + forward) for start in range(0, len(inputs_B), forward)]
        if beside == 1 or len(passes) == 1:
            kept = [fill(self._tracer, rows) for rows in passes]
        else:
            if self._beside is None:
                self._beside = Beside(self._tracer, beside)
            kept = self._beside.run(fill, passes)
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
        if outputs_BO.ndim != 2 or len(outputs_BO) != len(inputs_B):
            raise KernelError(
                f"for {len(inputs_B)} examples the model returns {tuple(outputs_BO.shape)}; "
                "a kernel needs logits of shape (N, C)"
            )
        if len(uses) != len(self.parts):
            raise KernelError(
                f"the model used its parameters {len(uses)} times where it used them "
                f"{len(self.parts)} times before; its path must not depend on the inputs"
            )
        gradients = output_gradients(outputs_BO, uses, self._directions)
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
                target = written_BCP[:, :, self._offsets[name]]
                if name in seen:
                    factor.add(role, target)
                elif part.choice.way == "convolved":
                    factor.convolve(role, target)
                else:
                    factor.write(role, target)
                seen.add(name)
        if self._leftovers.numbers:
            written_BCP[:, :, self._rest] = self._leftovers.gradients(inputs_B, self._directions)
        return kept
