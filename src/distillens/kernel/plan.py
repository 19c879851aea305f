"""What a Gram will take: time, memory, tiles. Made before any of it is computed.

What a pass through the network and the making of gradients take is measured on a few examples; what
tiles take follows from their sizes. Shapes: N examples along the rows, M along the columns, C
outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.blocks import PAIR_NUMBERS, BlockMaker
from distillens.kernel.passes import Passes
from distillens.kernel.rows import PIECE, STRIP, pieces_at_once
from distillens.kernel.ways import Speed

_MOST_ROWS = 256
"""Of a tile: larger ones make matrix products no faster."""
_PARALLEL_ROWS = 4096
"""Of a tile on an accelerator, where each tile costs as many operations, however small."""
_AT_ONCE = 512
"""Examples that are contracted at once, at most; of more, progress is shown tile by tile."""
_FORWARD_NUMBERS = 2**25
"""Numbers that a forward and backward pass holds at a time; more leaves the caches sooner."""
_BATCHED = 8
"""How many times as many numbers a pass of torch.func holds: its operations are slow to start."""
_PARALLEL_NUMBERS = 2**29
"""Numbers that a pass holds on an accelerator, where large operations take as long as small ones."""
_THREAD_BYTES = 2**25
"""What a further thread takes beside its tensors: scratch of operations, the allocator's free lists."""
_ALLOCATOR_BYTES = 2**26
"""What allocators keep of memory that was let go, at most; an eighth of the room where that is less.
Sizes are chosen smaller for it, but no Gram is refused."""
_MANY_OUTPUTS = 64
"""More outputs than these are not made together before it is known what one takes."""
_TIMED = 8
"""Examples of the pass that is timed."""


@dataclass(frozen=True)
class Layer:
    """How the gradients of one use are contracted."""

    parameters: tuple[str, ...]
    way: str
    held: int
    """Numbers of an example that are kept."""


@dataclass(frozen=True)
class Sizes:
    """How the work is cut: the same sizes on the same machine give the same bits."""

    panel: int
    """Rows whose gradients are kept together while the columns pass by."""
    tile: int
    """Columns that pass by together."""
    forward: int
    """Examples of a forward and backward pass."""
    outputs: int
    """Outputs whose gradients are kept together."""
    pair_numbers: int
    """Numbers of products of positions that exist at a time."""
    beside: int = 1
    """Passes that are made beside each other."""


@dataclass(frozen=True)
class Job:
    """A Gram to plan."""

    rows: int
    columns: int | None
    """None where the columns are the rows."""
    gram_bytes: int
    """Of the values in memory; 0 where they are in a store."""
    budget: int
    """Bytes to stay inside."""
    setup_bytes: int
    """What comes before anything else takes: where parameters are used, what to check against."""
    separable: bool
    """Outputs can be taken some after others."""
    shares: int = 1
    """Processes that share the panels."""
    counted: bool = False
    """What passes take is counted; otherwise it is bounded by shapes."""

    @property
    def across(self) -> int:
        """M, or N where the columns are the rows."""
        return self.rows if self.columns is None else self.columns

    @property
    def room(self) -> int:
        """What sizes are chosen for: the bound without what allocators may keep of memory let go."""
        free = max(0, self.budget - self.gram_bytes)
        return self.budget - min(_ALLOCATOR_BYTES, free // 8)

    @property
    def small(self) -> bool:
        """Whether one tile may hold all of it."""
        alone = self.shares == 1 and self.gram_bytes > 0
        return alone and self.columns is None and self.rows <= _AT_ONCE


@dataclass(frozen=True)
class Plan:
    """How a Gram will be computed."""

    rows: int
    columns: int
    symmetric: bool
    """The columns are the rows."""
    outputs: int
    """C."""
    sizes: Sizes
    shares: int
    """Processes that share the panels."""
    memory: int
    """Bytes that it will take beside the inputs and the network, the Gram included; of each
    process, where several share the work."""
    gram_bytes: int
    """Of the Gram; 0 where it is kept on disk."""
    budget: int
    """Bytes that it may take."""
    seconds: float | None
    """A rough time, from the speed of this machine as it was just now; None where it was not asked
    for and nothing hung on it."""
    layers: tuple[Layer, ...]

    def panel_cost(self, panel: int) -> float:
        """Return what a panel takes, in tiles' worth; several processes share them by it."""
        start = panel * self.sizes.panel
        height = min(self.sizes.panel, self.rows - start)
        if not self.symmetric:
            return height
        # Its triangle and what is right of it; a step of its own for making the gradients.
        return height * (self.rows - start - height / 2 + 1)

    def __str__(self) -> str:
        sizes = self.sizes
        where = f"{_room(self.gram_bytes)} of it the Gram" if self.gram_bytes else "Gram on disk"
        each = f" for each of {self.shares} processes" if self.shares > 1 else ""
        several = (
            f", {sizes.outputs} of {self.outputs} outputs at a time" if self.outputs > 1 else ""
        )
        beside = f", {sizes.beside} passes beside each other" if sizes.beside > 1 else ""
        lines = [
            f"Gram    {self.rows} x {self.columns} examples{several}",
            *([] if self.seconds is None else [f"time    about {_duration(self.seconds)}"]),
            f"memory  {_room(self.memory)} of {_room(self.budget)}{each}, {where}",
            f"tiles   panels of {sizes.panel} rows, tiles of {sizes.tile} columns, "
            f"{sizes.forward} examples a pass{beside}",
        ]
        names = [" ".join(layer.parameters) for layer in self.layers]
        wide = max((len(name) for name in names), default=0)
        lines += [
            f"        {name:{wide}}  {layer.way:7}  {layer.held:>11,} numbers an example"
            for name, layer in zip(names, self.layers, strict=True)
        ]
        return "\n".join(lines)


def forward_size(maker: BlockMaker, passes: Passes, budget: int) -> int:
    """Return how many examples go through the network at a time."""
    item_size = maker.item_size
    numbers = _FORWARD_NUMBERS
    if maker.jacobians:
        numbers *= _BATCHED
    if maker.parallel:
        numbers = max(numbers, _PARALLEL_NUMBERS)
    room = min(numbers * item_size, budget - passes.fixed)
    return max(1, room // passes.each)


def pass_sizes(maker: BlockMaker, passes: Passes, budget: int) -> tuple[int, int]:
    """Return how many examples are in a pass, and how many passes are made beside each other."""
    several = maker.beside
    each = (budget - (several - 1) * _THREAD_BYTES) // several
    if several == 1 or each < passes.fixed + passes.each:
        return forward_size(maker, passes, budget), 1
    return forward_size(maker, passes, each), several


def make_plan(
    maker: BlockMaker,
    sample: Tensor,
    job: Job,
    speed: Speed,
    kept: Sizes | None = None,
    *,
    timed: bool = False,
) -> Plan:
    """Return the fastest plan of a Gram that fits a budget.

    Parameters
    ----------
    maker
        Of the gradients by all outputs.
    sample
        Some examples, to measure and time a pass.
    job
        The Gram.
    speed
        Of this machine.
    kept
        Sizes of a computation that goes on; they stay as they are.
    timed
        Time a pass even if there is no choice.

    Raises
    ------
    KernelError
        The budget is too small; the least that would do is named.
    """
    plans: list[tuple[BlockMaker, Plan]] = []
    least = 0
    outputs = _outputs_at_once(maker, sample, job) if kept is None else kept.outputs
    while True:
        some = maker.some(0, outputs)
        passes = some.passes(sample, job.counted)
        room = _Room(some, job, passes)
        least = room.least
        sizes = kept or (room.sizes() if least <= job.budget else None)
        if sizes is not None:
            if kept is not None:
                least = room.taken(kept)
            memory = room.taken(sizes)
            if memory <= job.budget:
                plans.append((some, _described(maker, some, job, sizes, memory)))
        whole = sizes is not None and sizes.panel >= job.rows
        if kept is not None or whole or not job.separable or outputs == 1:
            break
        outputs = -(-outputs // 2)
    if not plans:
        held = maker.some(0, outputs).held * maker.item_size
        what = "a computation that goes on with its tiles" if kept else "panels and tiles of one"
        raise KernelError(
            f"max_memory = {job.budget} bytes is too small for a Gram of {_room(job.gram_bytes)}, "
            f"gradients of {_room(held)} an example{_most(maker)} and {what}; "
            f"give at least {least} bytes ({_room(least)})"
        )
    if len(plans) == 1 and not timed:
        return plans[0][1]
    seconds = [_seconds(maker, some, sample, job, plan.sizes, speed) for some, plan in plans]
    best = min(range(len(plans)), key=seconds.__getitem__)
    return replace(plans[best][1], seconds=seconds[best])


def plan_at_once(
    maker: BlockMaker, sample: Tensor, job: Job, speed: Speed, *, timed: bool = False
) -> Plan | None:
    """Return the plan of a Gram of some examples with themselves in one tile; None if too large.

    The maker's gradients may be written late. For the parameters see `make_plan`.
    """
    if _outputs_at_once(maker, sample, job) < maker.outputs:
        return None
    room = _Room(maker, job, maker.passes(sample, job.counted))
    sizes = room.at_once()
    if room.taken(sizes) > job.budget:
        return None
    plan = _described(maker, maker, job, sizes, room.taken(sizes))
    seconds = _seconds(maker, maker, sample, job, sizes, speed) if timed else None
    return replace(plan, seconds=seconds)


def _outputs_at_once(maker: BlockMaker, sample: Tensor, job: Job) -> int:
    """Return how many outputs a plan starts with: all, unless measuring them might not fit.

    Raises
    ------
    KernelError
        The Gram itself does not fit.
    """
    if maker.outputs <= _MANY_OUTPUTS:
        return maker.outputs
    free = job.budget - job.gram_bytes
    if free <= 0:
        raise KernelError(
            f"max_memory = {job.budget} bytes is too small for a Gram of {_room(job.gram_bytes)}; "
            "give more, fewer examples or other outputs, or keep it in a store"
        )
    if not job.separable:
        return maker.outputs
    one = maker.some(0, 1)
    # Several outputs take at most as many times what one takes; half of the room is for examples.
    alone = replace(job, setup_bytes=0, gram_bytes=0)
    each = _Room(one, alone, one.passes(sample, job.counted)).least
    return max(1, min(maker.outputs, free // (2 * each)))


class _Room:
    """What sizes take, and which sizes fit."""

    def __init__(self, maker: BlockMaker, job: Job, passes: Passes) -> None:
        self._maker, self._job, self._passes = maker, job, passes
        self._item = maker.item_size
        self._held = max(1, maker.held * self._item)
        # Products of full tiles are of all pairs of outputs, others of one output at a time.
        self._joint = maker.outputs**2 if maker.pairing == "full" else 1
        pairs = maker.outputs ** (2 if maker.pairing == "full" else 1)
        # The sum in float64, the tile and its mirror image.
        self._pair = pairs * (8 + 2 * self._item) + self._item
        self._smallest = Sizes(1, 1, 1, maker.outputs, maker.pair_numbers)

    @property
    def least(self) -> int:
        """Bytes that panels and tiles of one example take."""
        return self.taken(self._smallest)

    def taken(self, sizes: Sizes) -> int:
        """Return the bytes that sizes take at the most."""
        job = self._job
        # No columns pass by a panel that has all of them.
        passing = 0 if job.columns is None and sizes.panel >= job.rows else sizes.tile
        computing = (sizes.panel + passing) * self._held + self._work(sizes)
        return max(job.setup_bytes, job.gram_bytes + computing)

    def sizes(self) -> Sizes:
        """Return the largest sizes that fit; the smallest must."""
        job = self._job
        free = job.room - job.gram_bytes
        tile = min(_PARALLEL_ROWS if self._maker.parallel else _MOST_ROWS, job.across)
        while True:
            found = self._of(tile)
            work = self._work(found)
            # Half of the room is the panel's, so that columns pass by few times.
            if tile * self._held + work <= free // 2 or tile == 1:
                break
            tile //= 2
        panel = (free - tile * self._held - work) // self._held
        if panel < 1:
            return self._smallest
        panel = min(panel, job.rows)
        if job.shares > 1:
            # Each process gets a panel from the top and one from the bottom of the triangle.
            panel = min(panel, -(-job.rows // (2 * job.shares)))
        if tile < panel < job.rows:
            panel -= panel % tile
        return replace(found, panel=panel)

    def at_once(self) -> Sizes:
        """Return the sizes of a Gram in one tile, whether they fit or not."""
        return replace(self._of(self._job.rows), panel=self._job.rows)

    def _of(self, tile: int) -> Sizes:
        """Return the sizes that go with those of a tile, for a panel of one row."""
        free = self._job.room - self._job.gram_bytes
        maker = self._maker
        forward, beside = pass_sizes(maker, self._passes, free // 4)
        # As many passes for each thread, of the same size.
        passes = math.ceil(tile / forward / beside) * beside
        forward = math.ceil(tile / passes)
        numbers = maker.pair_numbers * tile
        wanted = min(PAIR_NUMBERS, free // (8 * self._item), numbers * tile)
        return Sizes(1, tile, forward, maker.outputs, max(numbers, wanted), beside)

    def _work(self, sizes: Sizes) -> int:
        """Return what making gradients or contracting them takes, whichever is more."""
        largest = self._maker.largest_paired * self._item
        # The parts of one use exist twice when they are joined.
        one_pass = self._passes.fixed + sizes.forward * self._passes.each
        making = sizes.beside * one_pass + (sizes.beside - 1) * _THREAD_BYTES
        making += sizes.tile * largest
        numbers = sizes.tile**2 * self._joint
        pieces = pieces_at_once(numbers, self._maker.parallel)
        pieces = min(pieces, -(-max(1, self._maker.written) // PIECE))
        contracting = sizes.tile**2 * self._pair + pieces * numbers * self._item
        contracting += self._maker.late_scratch(sizes.tile) * self._item
        if self._maker.pair_numbers:
            # Both sides may be copied to another order.
            contracting += sizes.pair_numbers * self._item + 2 * sizes.tile * largest
        return max(making, contracting)


def _described(maker: BlockMaker, some: BlockMaker, job: Job, sizes: Sizes, memory: int) -> Plan:
    return Plan(
        rows=job.rows,
        columns=job.across,
        symmetric=job.columns is None,
        outputs=maker.outputs,
        sizes=sizes,
        shares=job.shares,
        memory=memory,
        gram_bytes=job.gram_bytes,
        budget=job.budget,
        seconds=None,
        layers=_layers(some),
    )


def _layers(maker: BlockMaker) -> tuple[Layer, ...]:
    if maker.jacobians:
        return (Layer(("all parameters",), "jacobian", maker.held),)
    return tuple(
        Layer(tuple(part.place.names.values()), part.choice.way, int(part.choice.cost.held))
        for part in maker.parts
    )


def _most(maker: BlockMaker) -> str:
    """Return what takes most of an example's gradients, if anything does."""
    parts = [part for part in maker.parts if 2 * part.choice.cost.held > maker.held]
    if not parts:
        return ""
    return f" (most of it by {' and '.join(parts[0].place.names.values())})"


def _seconds(
    maker: BlockMaker, some: BlockMaker, sample: Tensor, job: Job, sizes: Sizes, speed: Speed
) -> float:
    """Return the time of making gradients, as timed, and of contracting them, as calibrated."""
    starts = range(0, job.rows, sizes.panel)
    if job.columns is None:
        made = sum(job.rows - start for start in starts)
        # On the diagonal strips are computed whole.
        pairs = job.rows * (job.rows + min(STRIP, job.rows)) / 2
    else:
        made = job.rows + len(starts) * job.columns
        pairs = job.rows * job.columns
    many = min(sizes.forward, _TIMED)
    one_pass, several = (some.timed(sample, n) for n in (1, many))
    each = max(several - one_pass, 0.0) / (many - 1) if many > 1 else 0.0
    making = made * each + made / sizes.forward * max(one_pass - each, 0.0)
    # What is written late is formed when it is contracted, all of it once.
    late = (part.choice.cost for part in some.parts if part.choice.way == "late")
    making += job.rows * sum(speed.forming(cost) for cost in late)
    contracting = sum(
        part.choice.cost.pair_products / speed.products + part.choice.cost.pair_moved / speed.moved
        for part in some.parts
    )
    numbers = some.outputs ** (2 if some.pairing == "full" else 1)
    # Each piece of a sum is added up, and each tile is halved, checked and put in two places.
    moved = numbers * (3 * -(-some.written // PIECE) + 8) / speed.moved
    groups = maker.outputs / some.outputs
    return groups * (making + pairs * (contracting + moved)) / job.shares


def _room(size: int) -> str:
    if size < 2**20:
        return f"{size / 2**10:.3g} KiB"
    return f"{size / 2**20:.4g} MiB" if size < 2**30 else f"{size / 2**30:.3g} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
