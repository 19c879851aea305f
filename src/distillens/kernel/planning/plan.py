"""The plan of a Gram: its time, memory and tiles, before any of it is computed.

The cost of a pass through the network and of making gradients is measured on a few examples; that of
tiles follows from their sizes. Shapes: N examples along the rows, M along the columns, C outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from distillens.errors import KernelError
from distillens.kernel.assembly.block import PAIR_NUMBERS
from distillens.kernel.assembly.block_maker import BlockMaker
from distillens.kernel.factors.factor import output_pairs
from distillens.kernel.factors.streamed import streamed_scratch
from distillens.kernel.tracing.memory import PassMemory

_FUNC_FACTOR = 8
"""How many times as many numbers a pass of torch.func holds: its operations are slow to start."""
_ACCELERATOR_PASS_NUMBERS = 2**29
"""Numbers that a pass holds on an accelerator, where large operations take as long as small ones."""
_THREAD_BYTES = 2**25
"""Memory of a further thread without its tensors: scratch of operations, free lists of the allocator."""
_ALLOCATOR_BYTES = 2**26
"""A bound on the freed memory that allocators keep; an eighth of the budget if that is less. Sizes are
chosen to leave room for it, but no Gram is refused because of it."""
_MANY_OUTPUTS = 64
"""More outputs than these are not planned together before it is known what a single one takes."""
_TIMED = 8
"""Examples of the pass that is timed."""


@dataclass(frozen=True)
class Layer:
    """How the gradients of one use are contracted."""

    parameters: tuple[str, ...]
    strategy: str
    """How they are contracted, as in `cost_model.Strategy`, or "jacobian"."""
    held: int
    """Numbers that are kept for an example."""


@dataclass(frozen=True)
class Sizes:
    """How the work is cut. The same sizes on the same machine give the same bits."""

    panel: int
    """Rows whose gradients are kept while all columns are contracted with them."""
    tile: int
    """Columns whose gradients are made together."""
    forward: int
    """Examples of a forward and backward pass."""
    outputs: int
    """Outputs whose gradients are kept together."""
    pair_numbers: int
    """Products of positions that exist at a time."""
    parallel_passes: int = 1
    """Passes that run in parallel."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A Gram to plan."""

    rows: int
    columns: int
    symmetric: bool
    """Whether the columns are the rows."""
    gram_bytes: int
    """Bytes of the Gram; 0 if it is kept on disk."""
    budget: int
    """Bytes that the computation may take."""
    setup_bytes: int
    """Bytes of tracing the network and of computing what the Gram is checked against."""
    separable: bool
    """Whether the outputs can be computed in groups."""
    shares: int = 1
    """Processes that share the panels."""
    counted: bool = False
    """Whether the memory of passes is counted; otherwise it is bounded by shapes."""

    @property
    def usable(self) -> int:
        """The budget that sizes are chosen for, without the memory that allocators may keep."""
        free = max(0, self.budget - self.gram_bytes)
        return self.budget - min(_ALLOCATOR_BYTES, free // 8)


@dataclass(frozen=True, kw_only=True)
class Plan(Job):
    """How a Gram will be computed."""

    outputs: int
    """C."""
    sizes: Sizes
    memory: int
    """Bytes that the computation takes besides the inputs and the network, including the Gram; in
    each process, if several share the work."""
    layers: tuple[Layer, ...]
    seconds: float | None = None
    """A rough time, from the current speed of this machine; None if it was neither asked for nor
    needed for a choice."""

    def panel_cost(self, panel: int) -> float:
        """Return the relative time of a panel, by which several processes share the panels."""
        start = panel * self.sizes.panel
        height = min(self.sizes.panel, self.rows - start)
        if not self.symmetric:
            return height
        # Its triangle and the tiles right of it, and one row for making the gradients.
        return height * (self.rows - start - height / 2 + 1)

    def __str__(self) -> str:
        sizes = self.sizes
        where = f"{_size(self.gram_bytes)} of it the Gram" if self.gram_bytes else "Gram on disk"
        each = f" for each of {self.shares} processes" if self.shares > 1 else ""
        several = (
            f", {sizes.outputs} of {self.outputs} outputs at a time" if self.outputs > 1 else ""
        )
        parallel = f", {sizes.parallel_passes} in parallel" if sizes.parallel_passes > 1 else ""
        lines = [
            f"Gram    {self.rows} x {self.columns} examples{several}",
            *([] if self.seconds is None else [f"time    about {_duration(self.seconds)}"]),
            f"memory  {_size(self.memory)} of {_size(self.budget)}{each}, {where}",
            f"tiles   panels of {sizes.panel} rows, tiles of {sizes.tile} columns, "
            f"{sizes.forward} examples a pass{parallel}",
        ]
        names = [" ".join(layer.parameters) for layer in self.layers]
        wide = max((len(name) for name in names), default=0)
        lines += [
            f"        {name:{wide}}  {layer.strategy:12}  {layer.held:>11,} numbers an example"
            for name, layer in zip(names, self.layers, strict=True)
        ]
        return "\n".join(lines)


def forward_size(maker: BlockMaker, memory: PassMemory, budget: int) -> int:
    """Return how many examples go through the network in a pass."""
    numbers = maker.limits.pass_numbers
    if maker.purpose.jacobians:
        numbers *= _FUNC_FACTOR
    if maker.on_accelerator:
        numbers = max(numbers, _ACCELERATOR_PASS_NUMBERS)
    room = min(numbers * maker.item_size, budget - memory.fixed)
    return max(1, room // memory.each)


def make_plan(
    maker: BlockMaker, job: Job, kept: Sizes | None = None, *, timed: bool = False
) -> Plan:
    """Return the fastest plan of a Gram that fits its budget.

    Parameters
    ----------
    maker
        Makes the gradients of all outputs.
    job
        The Gram.
    kept
        Sizes of a computation that is resumed; they are not changed.
    timed
        Whether a pass is timed even if there is no choice to make.

    Raises
    ------
    KernelError
        The budget is too small; the message names the least sufficient one.
    """
    plans: list[tuple[BlockMaker, Plan]] = []
    least = 0
    outputs = _outputs_at_once(maker, job) if kept is None else kept.outputs
    while True:
        some = maker.some(0, outputs)
        memory = _MemoryModel(some, job, some.pass_memory(job.counted))
        least = memory.taken(kept) if kept else memory.least
        sizes = kept or (memory.sizes() if least <= job.budget else None)
        if sizes is not None and memory.taken(sizes) <= job.budget:
            plans.append((some, _plan(maker, some, job, sizes, memory.taken(sizes))))
        whole = sizes is not None and sizes.panel >= job.rows
        if kept is not None or whole or not job.separable or outputs == 1:
            break
        outputs = -(-outputs // 2)
    if not plans:
        some = maker.some(0, outputs)
        largest = [p for p in maker.uses.each if 2 * p.choice.cost.held > maker.held]
        names = " and ".join(largest[0].site.names.values()) if largest else ""
        what = "the tiles of the computation to resume" if kept else "panels and tiles of one"
        raise KernelError(
            f"max_memory = {job.budget} bytes is too small for a Gram of {_size(job.gram_bytes)}, "
            f"gradients of {_size(some.held * maker.item_size)} an example"
            f"{f' (most of it by {names})' if names else ''} and {what}; "
            f"give at least {least} bytes ({_size(least)})"
        )
    if len(plans) == 1 and not timed:
        return plans[0][1]
    each = [replace(plan, seconds=_seconds(maker, some, plan)) for some, plan in plans]
    return min(each, key=lambda plan: plan.seconds or 0.0)


def plan_single_tile(maker: BlockMaker, job: Job, *, timed: bool = False) -> Plan | None:
    """Return the plan of a symmetric Gram in a single tile; None if that does not fit.

    The maker's gradients may be streamed. For the parameters see `make_plan`.
    """
    if _outputs_at_once(maker, job) < maker.outputs:
        return None
    memory = _MemoryModel(maker, job, maker.pass_memory(job.counted))
    sizes = memory.single_tile()
    if memory.taken(sizes) > job.budget:
        return None
    plan = _plan(maker, maker, job, sizes, memory.taken(sizes))
    return replace(plan, seconds=_seconds(maker, maker, plan)) if timed else plan


def _outputs_at_once(maker: BlockMaker, job: Job) -> int:
    """Return how many outputs a plan starts with: all, unless measuring all might not fit.

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
            f"max_memory = {job.budget} bytes is too small for a Gram of {_size(job.gram_bytes)}; "
            "give more, fewer examples or other outputs, or keep it in a store"
        )
    if not job.separable:
        return maker.outputs
    one = maker.some(0, 1)
    # C outputs take at most C times the memory of one; half of the memory is for examples.
    alone = replace(job, setup_bytes=0, gram_bytes=0)
    each = _MemoryModel(one, alone, one.pass_memory(job.counted)).least
    return max(1, min(maker.outputs, free // (2 * each)))


class _MemoryModel:
    """The memory that sizes take, and the sizes that fit."""

    def __init__(self, maker: BlockMaker, job: Job, of_pass: PassMemory) -> None:
        self._maker, self._job, self._pass = maker, job, of_pass
        self._item = maker.item_size
        self._held = max(1, maker.held * self._item)
        # Tiles of "full" are products of all pairs of outputs, others of one output at a time.
        self._joint = maker.outputs**2 if maker.purpose.pairing == "full" else 1
        # The float64 sum, the tile and its transpose.
        pairs = output_pairs(maker.outputs, maker.purpose.pairing)
        self._pair = pairs * (8 + 2 * self._item) + self._item
        self._smallest = Sizes(1, 1, 1, maker.outputs, maker.uses.pair_numbers)

    @property
    def least(self) -> int:
        """Bytes that panels and tiles of one example take."""
        return self.taken(self._smallest)

    def taken(self, sizes: Sizes) -> int:
        """Return a bound on the bytes that sizes take."""
        job = self._job
        # A panel of all rows needs no further columns.
        passing = 0 if job.symmetric and sizes.panel >= job.rows else sizes.tile
        computing = (sizes.panel + passing) * self._held + self._work(sizes)
        return max(job.setup_bytes, job.gram_bytes + computing)

    def sizes(self) -> Sizes:
        """Return the largest sizes that fit, provided that the smallest do."""
        job = self._job
        free = job.usable - job.gram_bytes
        limits, accelerator = self._maker.limits, self._maker.on_accelerator
        tile = min(limits.accelerator_tile_rows if accelerator else limits.tile_rows, job.columns)
        while True:
            found = self._of(tile)
            work = self._work(found)
            # Half of the memory is for the panel, so that columns are made few times.
            if tile * self._held + work <= free // 2 or tile == 1:
                break
            tile //= 2
        panel = (free - tile * self._held - work) // self._held
        if panel < 1:
            return self._smallest
        panel = min(panel, job.rows)
        if job.shares > 1:
            # Each process gets a panel from the top of the triangle and one from the bottom.
            panel = min(panel, -(-job.rows // (2 * job.shares)))
        if tile < panel < job.rows:
            panel -= panel % tile
        return replace(found, panel=panel)

    def single_tile(self) -> Sizes:
        """Return the sizes of a Gram in a single tile, whether they fit or not."""
        return replace(self._of(self._job.rows), panel=self._job.rows)

    def _of(self, tile: int) -> Sizes:
        """Return the sizes for tiles of a size and a panel of one row."""
        free = self._job.usable - self._job.gram_bytes
        maker = self._maker
        parallel, budget = maker.parallel_passes, free // 4
        each = (budget - (parallel - 1) * _THREAD_BYTES) // parallel
        if each < self._pass.fixed + self._pass.each:
            parallel, each = 1, budget
        forward = forward_size(maker, self._pass, each)
        # Each thread gets the same number of passes of the same size.
        passes = math.ceil(tile / forward / parallel) * parallel
        forward = math.ceil(tile / passes)
        numbers = maker.uses.pair_numbers * tile
        wanted = min(PAIR_NUMBERS, free // (8 * self._item), numbers * tile)
        return Sizes(1, tile, forward, maker.outputs, max(numbers, wanted), parallel)

    def _work(self, sizes: Sizes) -> int:
        """Return the bytes of making gradients or of contracting them, whichever is more."""
        maker, uses = self._maker, self._maker.uses
        choices = [plan.choice for plan in uses.each]
        factored = (int(each.cost.held) for each in choices if each.strategy == "factored")
        largest = max(factored, default=0) * self._item
        one_pass = self._pass.fixed + sizes.forward * self._pass.each
        parallel = sizes.parallel_passes
        # The parts of one use exist twice when they are joined.
        making = parallel * one_pass + (parallel - 1) * _THREAD_BYTES + sizes.tile * largest
        numbers = sizes.tile**2 * self._joint
        pieces = maker.limits.pieces_at_once(numbers, maker.on_accelerator)
        pieces = min(pieces, -(-max(1, maker.materialised) // maker.limits.piece))
        contracting = sizes.tile**2 * self._pair + pieces * numbers * self._item
        contracting += streamed_scratch(uses.streamed, sizes.tile) * self._item
        if uses.pair_numbers:
            # Both sides may be copied to change the order of their axes.
            contracting += sizes.pair_numbers * self._item + 2 * sizes.tile * largest
        return max(making, contracting)


def _plan(maker: BlockMaker, some: BlockMaker, job: Job, sizes: Sizes, memory: int) -> Plan:
    if some.purpose.jacobians:
        layers = (Layer(("all parameters",), "jacobian", some.held),)
    else:
        layers = tuple(
            Layer(tuple(use.site.names.values()), use.choice.strategy, int(use.choice.cost.held))
            for use in some.uses.each
        )
    return Plan(**vars(job), outputs=maker.outputs, sizes=sizes, memory=memory, layers=layers)


def _seconds(maker: BlockMaker, some: BlockMaker, plan: Plan) -> float:
    """Return the time of making gradients, by timing a pass, and of contracting them, by the speed."""
    job, sizes, speed = plan, plan.sizes, maker.purpose.speed
    starts = range(0, job.rows, sizes.panel)
    if job.symmetric:
        made = sum(job.rows - start for start in starts)
        # On the diagonal whole strips are computed.
        pairs = job.rows * (job.rows + min(maker.limits.strip, job.rows)) / 2
    else:
        made = job.rows + len(starts) * job.columns
        pairs = job.rows * job.columns
    many = min(sizes.forward, _TIMED)
    one_pass, several = (some.timed(n) for n in (1, many))
    each = max(several - one_pass, 0.0) / (many - 1) if many > 1 else 0.0
    making = made * each + made / sizes.forward * max(one_pass - each, 0.0)
    # Streamed gradients are formed when they are contracted, each once.
    choices = [use.choice for use in some.uses.each]
    streamed = (each.cost for each in choices if each.strategy == "streamed")
    making += job.rows * sum(speed.forming_seconds(cost) for cost in streamed)
    contracting = sum(speed.pair_seconds(each.cost) for each in choices)
    numbers = output_pairs(some.outputs, some.purpose.pairing)
    # Each piece is added to the sum; each tile is halved, checked and written to two places.
    moved = numbers * (3 * -(-some.materialised // maker.limits.piece) + 8) / speed.moved
    groups = maker.outputs / some.outputs
    return groups * (making + pairs * (contracting + moved)) / job.shares


def _size(size: int) -> str:
    if size < 2**20:
        return f"{size / 2**10:.3g} KiB"
    return f"{size / 2**20:.4g} MiB" if size < 2**30 else f"{size / 2**30:.3g} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
