"""The exact empirical neural tangent kernel of any network, from rules for its layers.

k(x, x′) = ∇f(x)·∇f(x′), where the gradients are taken over the parameters (Harutyunyan et al., ICLR
2023, arXiv 2301.12245). Shapes: N examples, M other examples, C outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillens.errors import KernelError
from distillens.kernel.assembly.block_maker import BlockMaker
from distillens.kernel.assembly.fallback import NotBatchableError
from distillens.kernel.assembly.ranks import Ranks
from distillens.kernel.assembly.store import GramStore, made_of
from distillens.kernel.assembly.tiles import compute_gram
from distillens.kernel.assembly.traced_network import TracedNetwork
from distillens.kernel.autograd_products import AutogradProducts
from distillens.kernel.check import (
    Expected,
    GramCheck,
    Subject,
    check_gram,
    examples_of_forms,
    expected_forms,
    expected_products,
    zero_notes,
)
from distillens.kernel.factors.cost import Speed
from distillens.kernel.factors.limits import DEFAULT_LIMITS, Limits
from distillens.kernel.planning.cost_model import FEW, jacobians_pay, measured_speed, typical_speed
from distillens.kernel.planning.plan import Job, Plan, Sizes, forward_size
from distillens.kernel.products import KernelProduct
from distillens.kernel.tracing.directions import Outputs, checked_outputs, gram_shape
from distillens.kernel.tracing.grad_mode import differentiating
from distillens.kernel.tracing.memory import LiveBytes, PassMemory, free_memory
from distillens.kernel.tracing.network import Prepared, explained, prepare
from distillens.progress import Progress, silent

_BATCH = 256
"""Examples of a plain forward pass."""


@dataclass(frozen=True, eq=False)
class NTKGram:
    """A Gram with its plan and an estimate of its error."""

    values: Tensor
    """(N, M); (C, N, M) for "class-diagonal"; (NC, MC) for "full", row n·C + c."""
    outputs: Outputs
    check: GramCheck
    plan: Plan
    seconds: float
    notes: tuple[str, ...] = ()


class EmpiricalNTK:
    """The empirical neural tangent kernel of a network at its weights.

    Parameters
    ----------
    model
        Takes (B, …) and returns logits (B, O), each row computed from its own example alone. The
        logits may also have the shape (B, O, 1, 1) or (B,), or be the entry or attribute ``logits``
        of the returned object, or the only tensor of such a shape in a tuple. The model is copied and
        the copy is set to evaluation mode; the model itself is not changed. A text model of
        transformers takes tokens (B, T) in which -1 marks padding, as in
        `distillens.models.SequenceModel`.
    outputs
        What the kernel is taken of: a logit c; a pair (a, b) for logit a minus logit b; "sum" for the
        sum of all logits; "class-diagonal" for a kernel of each logit; "trace" for the mean of these;
        "full" for all pairs of logits.
    parameters
        Names of the parameters to differentiate by; by default all that require gradients. Frozen
        parameters are included if they are named. A complex parameter counts as two real ones.
    dtype
        float32, or float64 if solves are ill-conditioned. The whole network is computed in this type,
        even if its forward enters `torch.autocast` or casts to a less precise type; the notes of a
        Gram report it.
    max_memory
        Bytes of tensors that a computation may hold in each process, in addition to the network and
        its inputs; by default three quarters of the memory that is free when it starts. The allocator
        and libraries take up to about 32 MiB more.
    progress
        Receives the progress.
    alone
        Compute in this process only. Otherwise, if torch.distributed is initialised, its processes
        share the work; all must make the same calls with the same inputs.

    Raises
    ------
    KernelError
        BatchNorm is in training mode; weights are not finite; an output or parameter is unknown;
        the model cannot be copied or differentiated.
    """

    @differentiating
    def __init__(
        self,
        model: nn.Module,
        *,
        outputs: Outputs,
        parameters: Iterable[str] | None = None,
        dtype: torch.dtype = torch.float32,
        max_memory: int | None = None,
        progress: Progress = silent,
        alone: bool = False,
        _limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._prepared: Prepared = prepare(model, parameters, dtype)
        self._limits = _limits
        self.outputs: Outputs = checked_outputs(outputs)
        self._max_memory = max_memory
        self._progress = progress
        self._network = TracedNetwork(self._prepared, self.outputs, _limits)
        self._alone = alone

    @differentiating
    def gram(
        self, inputs: Tensor, other: Tensor | None = None, *, store: str | Path | None = None
    ) -> NTKGram:
        """Compute the Gram of N examples, or of N and M examples.

        Parameters
        ----------
        inputs, other
            The examples, (N, ...) and (M, ...).
        store
            A folder to keep the Gram in if memory cannot hold it. A computation that was killed is
            resumed from the folder, and a finished one is read. The values are then a memory map;
            writing to them does not change the folder.

        Raises
        ------
        KernelError
            The inputs do not fit or are not finite; the memory bound is too small; the store holds
            another Gram; the Gram fails its check.
        """
        began = time.perf_counter()
        rows, columns = self._prepared.pair(inputs, other)
        ranks = Ranks.here(self._alone)
        network, found = self._network, None
        logits_RO = self._prepared.begin(rows, examples_of_forms(len(rows)).to(rows.device))
        if store is None and self._jacobians_pay(rows, columns, ranks):
            found = self._gram_by_jacobians(rows, columns, logits_RO)
        if found is None:
            try:
                found = self._gram_by_rules(rows, columns, store, ranks)
            except KernelError:
                if not network.unverified or ranks.count > 1:
                    raise
                # The network may behave differently than when it was traced.
                network.retrace(rows)
                found = self._gram_by_rules(rows, columns, store, ranks)
        return replace(found, seconds=time.perf_counter() - began)

    def _gram_by_rules(
        self, rows: Tensor, columns: Tensor, folder: str | Path | None, ranks: Ranks
    ) -> NTKGram:
        store = self._open(folder, rows, columns, ranks)
        kept = store.kept if store else None
        speed = ranks.agreed(self._speed(rows))
        if kept:
            # The same speed gives the same choices, and together with the same sizes the same bits.
            forming = {**speed.forming, **kept["speed"]["forming"]}
            speed = Speed(**{**kept["speed"], "forming": forming})
        budget = min(ranks.gathered(self._budget(ranks)))
        with ranks.together():
            self._network.trace(rows)
            # torch takes half a second to prepare its first forward-mode product.
            few = len(rows) < FEW and len(columns) < FEW
            expected = (expected_forms if few else expected_products)(self._subject(rows, columns))
            sizes = Sizes(**kept["sizes"]) if kept else None
            job = self._job(rows, columns, store is not None, budget, ranks.count)
            maker, plan = self._network.plan(
                rows, job, speed, lambda: self._counted_setup(rows, columns), sizes
            )
        plan = ranks.agreed(plan)
        keep = {"speed": asdict(speed), "sizes": asdict(plan.sizes)}
        given = maker, plan, self.outputs, rows, columns, self._progress, ranks
        values = compute_gram(*given, store, keep)
        with ranks.together():
            return self._checked(expected, values, plan)

    def _gram_by_jacobians(
        self, rows: Tensor, columns: Tensor, logits_RO: Tensor | None
    ) -> NTKGram | None:
        """Return the Gram by plain Jacobians; None if rules or a trace have to decide.

        That is if the Jacobians do not easily fit, if torch.func cannot batch the network, or if the
        outputs of an example alone and among others differ.
        """
        network = self._network
        job = self._job(rows, columns, False, self._budget(Ranks()), 1)
        found = network.plan_jacobians(rows, job, typical_speed(self._prepared.device))
        if found is None or self._prepared.network.altered_embeddings:
            return None
        with explained("in a backward pass"):
            expected = expected_forms(self._subject(rows, columns), logits_RO)
        seen = rows[expected.rows_R.to(rows.device)]
        among_1O = None if torch.equal(seen, seen[:1].expand_as(seen)) else expected.among_1O
        maker, plan = found
        try:
            # torch.func.vmap cannot batch fused attention.
            with sdpa_kernel(SDPBackend.MATH):
                given = maker, plan, self.outputs, rows, columns, self._progress, Ranks()
                values = compute_gram(*given)
        except NotBatchableError:
            return None
        alone_1C = maker.take_alone()
        assert alone_1C is not None
        if not network.same_alone(rows, alone_1C, among_1O):
            return None
        return self._checked(expected, values, plan)

    def _checked(self, expected: Expected, values: Tensor, plan: Plan) -> NTKGram:
        check = check_gram(expected, self.outputs, values)
        zero = zero_notes(expected, self.outputs, values) if plan.symmetric else ()
        notes = (*self._network.notes, *zero)
        return NTKGram(values, self.outputs, check, plan, seconds=0.0, notes=notes)

    @differentiating
    def plan(self, inputs: Tensor, other: Tensor | None = None, *, on_disk: bool = False) -> Plan:
        """Return the plan of a Gram, without computing the Gram.

        ``on_disk`` tells that the Gram will be kept in a store.
        """
        rows, columns = self._prepared.pair(inputs, other)
        speed, ranks = self._speed(rows), Ranks.here(self._alone)
        job = self._job(rows, columns, on_disk, self._budget(ranks), ranks.count)
        if not on_disk and self._jacobians_pay(rows, columns, ranks):
            found = self._network.plan_jacobians(rows, job, speed, timed=True)
            if found is not None:
                return found[1]
        self._network.trace(rows)
        return self._network.plan(
            rows, job, speed, lambda: self._counted_setup(rows, columns), timed=True
        )[1]

    @differentiating
    def product(self, inputs: Tensor) -> KernelProduct:
        """Return the kernel of N examples as a linear map, without its Gram.

        For one output (a logit, a difference, the sum) or "full". Gradients are kept if they fit
        ``max_memory``; otherwise they are made again for each product.

        Raises
        ------
        KernelError
            The outputs are "class-diagonal" or "trace", which are several maps.
        """
        if self.outputs in ("class-diagonal", "trace"):
            raise KernelError(
                f"a {self.outputs} kernel is a map for each logit; take the product of each "
                "(outputs=0, 1, ...) or use matvec"
            )
        rows, _ = self._prepared.pair(inputs, None)
        return self._product(rows)

    @differentiating
    def matvec(self, inputs: Tensor, vectors: Tensor) -> Tensor:
        """Return Kv.

        Parameters
        ----------
        inputs
            N examples.
        vectors
            (N,) or (N, M); for "class-diagonal" (C, N) or (C, N, M), a vector for each logit; for
            "full" (NC,) or (NC, M).

        Returns
        -------
        Tensor
            In the shape of the vectors.
        """
        rows, _ = self._prepared.pair(inputs, None)
        if self.outputs not in ("class-diagonal", "trace"):
            return self.product(inputs)(vectors)
        count = self._prepared.size(rows).outputs
        if self.outputs == "class-diagonal" and (vectors.ndim < 2 or len(vectors) != count):
            raise KernelError(
                f"vectors of shape {tuple(vectors.shape)} do not fit a class-diagonal kernel of "
                f"{count} logits; give ({count}, N) or ({count}, N, M)"
            )
        each = vectors if self.outputs == "class-diagonal" else [vectors] * count
        stacked = torch.stack([self._product(rows, (c, c + 1))(v) for c, v in enumerate(each)])
        return stacked if self.outputs == "class-diagonal" else stacked.mean(dim=0)

    @differentiating
    def diagonal(self, inputs: Tensor) -> Tensor:
        """Return the kernel of each example with itself: (N,), (C, N) or, for "full", (NC,)."""
        rows, _ = self._prepared.pair(inputs, None)
        if self.outputs not in ("class-diagonal", "trace"):
            return self._product(rows, keep=False).diagonal()
        one, memory, budget = self._maker(rows, Ranks.here(self._alone), (0, 1))
        # As many logits' gradients are made together as fit.
        each = memory.fixed + memory.each + 2 * one.held * one.item_size
        step, count = max(1, budget // (4 * each)), self._prepared.size(rows).outputs
        groups = (
            self._product(rows, (start, min(start + step, count)), keep=False).diagonal()
            for start in range(0, count, step)
        )
        groups_CN = (squares.view(len(rows), -1).T for squares in groups)
        if self.outputs == "class-diagonal":
            return torch.cat(list(groups_CN))
        total_N = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for squares_CN in groups_CN:
            total_N += squares_CN.double().sum(dim=0)
        return (total_N / count).to(self._prepared.dtype)

    def trace(self, inputs: Tensor) -> Tensor:
        """Return Tr K in float64: a scalar, or (C,) for "class-diagonal"."""
        return self.diagonal(inputs).double().sum(dim=-1)

    @differentiating
    def outputs_of(self, inputs: Tensor) -> Tensor:
        """Return the outputs that the kernel is taken of, (N, C), in the kernel's type."""
        rows, _ = self._prepared.pair(inputs, None)
        prepared = self._prepared
        directions = self._network.directions(rows)
        # One tensor for all: many small results, each allocated after the large scratch of a pass, would
        # keep the allocator from reusing that memory.
        found = torch.empty(
            len(rows), len(directions), dtype=prepared.dtype, device=prepared.device
        )
        with torch.no_grad():
            for part, into in zip(rows.split(_BATCH), found.split(_BATCH), strict=True):
                into.copy_(directions.of(prepared.network(part)))
        return found

    @differentiating
    def product_error(self, product: KernelProduct, inputs: Tensor) -> float:
        """Return ‖K̂v − Kv‖/‖Kv‖ for a random v, Kv by plain autograd over all examples."""
        rows, _ = self._prepared.pair(inputs, None)
        prepared = self._prepared
        directions = self._network.directions(rows)
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(len(rows), len(directions), generator=generator, dtype=torch.float64)
        vector = vector.to(prepared.device, prepared.dtype)
        autograd = AutogradProducts(prepared, _BATCH)
        wanted = autograd.product(rows, rows, directions, vector)
        found = product(vector.flatten()).view_as(wanted)
        size = float(wanted.norm())
        return float((found - wanted).norm()) / size if size else 0.0

    @property
    def budget(self) -> int:
        """Bytes that a computation may currently take."""
        return self._budget(Ranks.here(self._alone))

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on how the gradients of the last computation were made."""
        return self._network.notes

    def _product(
        self, rows: Tensor, some: tuple[int, int] | None = None, *, keep: bool = True
    ) -> KernelProduct:
        """Return the kernel of all outputs that it is taken of, or of consecutive ones."""
        ranks = Ranks.here(self._alone)
        if ranks.count > 1:
            ranks.require_same(made_of(self._prepared, self.outputs, rows, None))
        with ranks.together():
            maker, memory, budget = self._maker(rows, ranks, some)
            least = memory.fixed + memory.each
            if 2 * self._network.setup_bytes(rows) > budget:
                least = max(least, self._network.counted_trace_bytes(rows))
            if budget < least:
                raise KernelError(
                    f"max_memory = {budget} bytes is too small for the gradients of one example; "
                    f"give at least {least} bytes"
                )
        forward = forward_size(maker, memory, budget // 4)
        room = min(ranks.gathered(budget - memory.fixed - forward * memory.each))
        return KernelProduct(maker, rows, forward, room, ranks, keep=keep, progress=self._progress)

    def _maker(
        self, rows: Tensor, ranks: Ranks, some: tuple[int, int] | None
    ) -> tuple[BlockMaker, PassMemory, int]:
        """Return what makes the gradients of a product, their memory, and the budget for all."""
        speed = ranks.agreed(self._speed(rows))
        budget = min(ranks.gathered(self._budget(ranks)))
        self._network.trace(rows, checked=False)
        maker = self._network.maker(rows, speed, None)
        maker = maker if some is None else maker.some(*some)
        return maker, self._network.pass_memory(maker, budget), budget

    def _speed(self, rows: Tensor) -> Speed:
        """Return how fast this machine is: a typical speed for few examples."""
        prepared = self._prepared
        return self._limits.speed or measured_speed(prepared.dtype, prepared.device, len(rows))

    def _budget(self, ranks: Ranks) -> int:
        if self._max_memory is not None:
            return self._max_memory
        return free_memory(self._prepared.device) * 3 // 4 // ranks.neighbours

    def _subject(self, rows: Tensor, columns: Tensor) -> Subject:
        autograd, directions = AutogradProducts(self._prepared), self._network.directions(rows)
        return Subject(autograd, directions, self.outputs, rows, columns)

    def _counted_setup(self, rows: Tensor, columns: Tensor) -> int:
        """Return the memory of a trace and of the products that a Gram is checked against."""
        if not self._limits.reserve_setup:
            return 0
        gram = self._subject(rows, columns)
        if self.outputs != "full":
            # One product takes as much memory as all.
            gram = replace(gram, directions=gram.directions.part(0, 1))
        with LiveBytes() as live:
            expected_products(gram)
        return max(self._network.counted_trace_bytes(rows), live.peak)

    def _jacobians_pay(self, rows: Tensor, columns: Tensor, ranks: Ranks) -> bool:
        """Return whether plain Jacobians are chosen, by `jacobians_pay` unless limits decide."""
        if ranks.count > 1 or self._limits.jacobians is not None:
            return ranks.count == 1 and bool(self._limits.jacobians)
        examples = len(rows) + (0 if columns is rows else len(columns))
        saved = self._prepared.size(rows).saved_bytes // self._prepared.dtype.itemsize
        count = len(self._network.directions(rows))
        return jacobians_pay(examples, count, self._prepared.numbers, saved)

    def _open(
        self, store: str | Path | None, rows: Tensor, columns: Tensor, ranks: Ranks
    ) -> GramStore | None:
        """Open the store, after checking that all processes compute the same."""
        if store is None and ranks.count == 1:
            return None
        same = made_of(self._prepared, self.outputs, rows, None if columns is rows else columns)
        ranks.require_same({**same, "store": str(store)})
        if store is None:
            return None
        seconds, dtype = self._limits.seconds_between_marks, self._prepared.dtype
        return GramStore(Path(store), same, self._shape(rows, columns), dtype, ranks, seconds)

    def _shape(self, rows: Tensor, columns: Tensor) -> tuple[int, ...]:
        count = len(self._network.directions(rows))
        return gram_shape(self.outputs, count, len(rows), len(columns))

    def _job(self, rows: Tensor, columns: Tensor, stored: bool, budget: int, shares: int) -> Job:
        numbers = 0 if stored else math.prod(self._shape(rows, columns))
        return Job(
            rows=len(rows),
            columns=len(columns),
            symmetric=columns is rows,
            gram_bytes=numbers * self._prepared.dtype.itemsize,
            budget=budget,
            setup_bytes=self._network.setup_bytes(rows),
            separable=self.outputs in ("class-diagonal", "trace"),
            shares=shares,
        )
