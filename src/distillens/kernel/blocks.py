"""The gradients of a block of examples by all parameters, each in the form that it is contracted in.

Shapes: B, D examples of two blocks, C outputs, P written numbers, M columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.beside import Beside, passes_beside
from distillens.kernel.coverage import Coverage
from distillens.kernel.directions import Directions
from distillens.kernel.factors import Outer, Paired, Pairing
from distillens.kernel.known import Known
from distillens.kernel.late import Late, late_scratch
from distillens.kernel.leftovers import Leftovers
from distillens.kernel.network import Prepared
from distillens.kernel.parts import KEPT, Part, Parts, choose_parts, numbers_of_pair
from distillens.kernel.passes import Passes, measured_passes, timed_pass
from distillens.kernel.rows import add_rows, empty_tile, is_parallel, mirror, strip
from distillens.kernel.uses import Tracer, Use, output_gradients
from distillens.kernel.ways import Purpose

Found = TypeVar("Found")

_SMALL_BYTES = 2**16
"""A bound on what a pass takes however few the examples: indices, masks, sums."""
PAIR_NUMBERS = 2**25
"""Numbers of products of positions that exist at a time, where there is room."""


@dataclass(frozen=True)
class Block:
    """The gradients of some examples: written ones in one array, the others a use each."""

    written_BCP: Tensor
    paired: tuple[Paired, ...]
    late: tuple[Late, ...] = ()
    """Only of a block that is contracted with itself and nothing else."""
    jacobians: tuple[Sequence[Tensor], ...] = ()
    """In place of all others, for each pass: the gradients by each parameter, (B, C, p), as torch.func
    made them, since one array of them would be a copy. Such blocks can be contracted only."""

    def __len__(self) -> int:
        return len(self.written_BCP)

    def contract(self, other: Block, pairing: Pairing, pair_numbers: int = PAIR_NUMBERS) -> Tensor:
        """Return the tile of the kernel: (C, B, D) for "diagonal", (B, C, D, C) for "full".

        At most ``pair_numbers`` products of positions exist at a time, or those of one row.
        """
        itself = other is self
        tile = empty_tile(self.written_BCP, other.written_BCP, pairing)
        add_rows(tile, self.written_BCP, other.written_BCP, pairing, upper=itself)
        if self.jacobians:
            self._add_jacobians(tile, other, pairing)
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
                step = min(step, strip(tile.device))
            for start in range(0, len(self), step):
                rows, columns = slice(start, start + step), slice(start if itself else 0, None)
                right = its.part(start, len(other)) if itself else its
                part = mine.part(start, start + step).pairs(right, pairing)
                place = (rows, slice(None)) if pairing == "full" else (slice(None), rows)
                tile[(*place, columns)] += part
        if itself:
            mirror(tile, pairing)
        return tile.to(self.written_BCP.dtype)

    def _add_jacobians(self, tile: Tensor, other: Block, pairing: Pairing) -> None:
        row = 0
        for number, left in enumerate(self.jacobians):
            rows = slice(row, row + len(left[0]))
            column = 0
            for place, right in enumerate(other.jacobians):
                columns = slice(column, column + len(right[0]))
                if other is not self or place >= number:
                    part = empty_tile(left[0], right[0], pairing)
                    for mine, its in zip(left, right, strict=True):
                        add_rows(part, mine, its, pairing, upper=mine is its)
                    if pairing == "full":
                        tile[rows, :, columns] += part
                    else:
                        tile[:, rows, columns] += part
                column = columns.stop
            row = rows.stop

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
    kept_bytes: int
    """What a forward pass of one example keeps for its backward pass."""
    known: Known
    """What was found of such networks, and goes on to be."""
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)
    """Of passes of so many examples."""
    beside: Beside | None = None
    alone_1C: Tensor | None = None
    """The outputs of the first example that plain Jacobians were made of, alone in its batch."""


class BlockMaker:
    """Makes the blocks of one network; knows which numbers go where."""

    def __init__(
        self,
        prepared: Prepared,
        coverage: Coverage,
        directions: Directions,
        purpose: Purpose,
        sample: Tensor,
        kept_bytes: int,
        known: Known | None = None,
    ) -> None:
        self._shared = _Shared(
            Tracer(
                prepared.network,
                {name: prepared.parameters[name] for name in coverage.covered},
                coverage.repeated,
            ),
            Leftovers(
                {name: prepared.parameters[name] for name in coverage.uncovered},
                chosen=purpose.jacobians,
            ),
            coverage,
            purpose,
            sample,
            list(prepared.parameters.values()),
            kept_bytes,
            known or Known(coverage, None),
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
        if not shared.coverage.covered:
            return Parts((), {}, 0, 0, ())
        parts, key = shared.known.parts, (shared.purpose, self.outputs)
        if key not in parts:
            parts[key] = choose_parts(
                shared.tracer,
                shared.coverage.rules(),
                shared.sample,
                self._directions,
                shared.purpose,
            )
        return parts[key]

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

    def passes(self, sample: Tensor, counted: bool) -> Passes:
        """Return what making gradients takes in memory: a bound from shapes, or as counted once."""
        if not counted:
            return self._bounded_passes(sample)
        known, key = self._shared.known.passes, (self._shared.purpose, self.outputs)
        if key not in known:
            made = self._chosen  # before the measurement, of which it is no part
            assert made
            known[key] = measured_passes(self.make, sample)
        return known[key]

    def _bounded_passes(self, sample: Tensor) -> Passes:
        shared, C = self._shared, self.outputs
        kept, item = shared.kept_bytes, self.item_size
        left = shared.leftovers.numbers
        each = sample[0].numel() * sample.element_size() + item * self.held
        if left:
            # Activations and their gradients, of the outputs that torch.func takes at once; and the
            # gradients by parameters, as they are made and as they are written.
            at_once = C if shared.purpose.jacobians else 1
            each += (2 + at_once) * kept + 2 * item * C * left
        if self.parts:
            chosen = self._chosen
            # Where all outputs' gradients are made in one backward pass, so are those in between.
            at_once = C if self.parallel else 1
            each += (1 + at_once) * kept + item * ((1 + C) * chosen.of_calls + chosen.forming)
        return Passes(_SMALL_BYTES, each)

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
    def jacobians(self) -> bool:
        """Whether plain Jacobians are made in place of what rules would make."""
        return self._shared.purpose.jacobians

    def take_alone(self) -> Tensor | None:
        """Return the outputs of the first example that plain Jacobians were made of, and forget them."""
        found, self._shared.alone_1C = self._shared.alone_1C, None
        return found

    @property
    def parallel(self) -> bool:
        """Whether the device is an accelerator, where many examples take as long as few."""
        return is_parallel(self._directions.device)

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
        shared = self._shared
        # Calls of torch.func swap the parameters of the copy that a rule looks for.
        if shared.leftovers.numbers and not shared.purpose.jacobians:
            return 1
        return passes_beside(self._directions.device)

    def make(self, inputs_B: Tensor, forward: int, beside: int = 1) -> Block:
        """Return the gradients of some examples.

        Passes of ``forward`` examples each are made, ``beside`` of them beside each other.
        """
        if self.jacobians:
            return self._jacobians(inputs_B, forward, beside)
        written = torch.empty(
            len(inputs_B),
            self.outputs,
            self.written,
            dtype=self.dtype,
            device=self._directions.device,
        )

        def fill(tracer: Tracer, rows: slice) -> list[Paired]:
            return self._fill(tracer, inputs_B[rows], written[rows])

        kept = self._run(fill, len(inputs_B), forward, beside)
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

    def _run(
        self, work: Callable[[Tracer, slice], Found], count: int, forward: int, beside: int
    ) -> list[Found]:
        """Return what the work makes of each pass."""
        shared = self._shared
        passes = [slice(start, start + forward) for start in range(0, count, forward)]
        if beside == 1 or len(passes) == 1:
            return [work(shared.tracer, rows) for rows in passes]
        if shared.beside is None:
            shared.beside = Beside(shared.tracer, beside)
        return shared.beside.run(work, passes)

    def _jacobians(self, inputs_B: Tensor, forward: int, beside: int) -> Block:
        shared = self._shared

        def work(tracer: Tracer, rows: slice) -> Sequence[Tensor]:
            some_B = inputs_B[rows]
            *made, outputs_BC = shared.leftovers.jacobians(tracer.network, some_B, self._directions)
            if shared.alone_1C is None and rows.start == 0:
                shared.alone_1C = outputs_BC[:1].clone()
            return made

        made = self._run(work, len(inputs_B), forward, beside)
        nothing = made[0][0].new_empty(len(inputs_B), self.outputs, 0)
        return Block(nothing, (), jacobians=tuple(made))

    def _fill(self, tracer: Tracer, inputs_B: Tensor, written_BCP: Tensor) -> list[Paired]:
        """Write the gradients that are written out at once; return the factors of the others."""
        leftovers = self._shared.leftovers
        if leftovers.numbers:
            rest_BCP = written_BCP[:, :, self._rest]
            leftovers.write(tracer.network, inputs_B, self._directions, rest_BCP)
        if not self.parts:
            return []
        outputs_BO, uses = tracer.run(inputs_B)
        if len(uses) != len(self.parts):
            raise KernelError(
                f"the model used its parameters {len(uses)} times where it used them "
                f"{len(self.parts)} times before; its path must not depend on the inputs"
            )
        gradients = output_gradients(self._directions.of(outputs_BO), uses, batched=self.parallel)
        offsets = self._chosen.offsets
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
        return kept
