"""The empirical neural tangent kernel of any network, exact, from rules for its layers.

k(x, x′) = ∇f(x)·∇f(x′), the gradients taken over the parameters (Harutyunyan et al., ICLR 2023,
arXiv 2301.12245). Shapes: N examples, M other examples, C outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel.check import (
    Expected,
    GramCheck,
    check_gram,
    examples_of_forms,
    expected_forms,
    expected_products,
    zero_notes,
)
from distillens.kernel.directions import Directions, Outputs, checked_outputs
from distillens.kernel.grad_mode import differentiating
from distillens.kernel.gradients import real_numbers
from distillens.kernel.jacobians import batchable_attention, jacobians_pay
from distillens.kernel.leftovers import NotBatchableError
from distillens.kernel.makers import Makers
from distillens.kernel.memory import free_memory
from distillens.kernel.network import Prepared, explained, prepare
from distillens.kernel.plain import PlainProducts
from distillens.kernel.plan import Job, Plan, Sizes, forward_size
from distillens.kernel.products import KernelProduct
from distillens.kernel.ranks import Ranks
from distillens.kernel.store import GramStore, made_of
from distillens.kernel.tiles import compute_gram, gram_shape
from distillens.kernel.ways import FEW, Speed, measured_speed, typical_speed
from distillens.progress import Progress, silent

_BATCH = 256
"""Examples of a plain forward pass."""


@dataclass(frozen=True, eq=False)
class NTKGram:
    """A Gram with what is known of its error."""

    values: Tensor
    """(N, M); (C, N, M) for "class-diagonal"; (NC, MC) for "full", row n·C + c."""
    outputs: Outputs
    check: GramCheck
    plan: Plan
    seconds: float
    notes: tuple[str, ...] = ()


class EmpiricalNTK:
    """The kernel of a network at its weights.

    Parameters
    ----------
    model
        Takes (B, …) and returns logits (B, O), each row computed from its own example alone. The
        logits may also have the shape (B, O, 1, 1) or (B,), or be the entry or attribute ``logits``
        of what is returned, or the only tensor of such a shape in a tuple. The model is copied and
        the copy is put in evaluation mode; the model itself is not changed. A text model of
        transformers takes tokens (B, T) in which -1 marks padding, as in
        `distillens.models.SequenceModel`.
    outputs
        What the kernel is taken of: a logit c; a pair (a, b) for logit a minus logit b; "sum" of
        all; "class-diagonal", each apart; "trace", the mean over logits of their kernels; "full",
        all pairs of logits.
    parameters
        Names of the parameters to differentiate by; by default all that require gradients. Frozen
        parameters count if they are named. A complex parameter counts as two real ones.
    dtype
        float32, or float64 where solves are ill-conditioned. The whole network is computed in this
        type, also where its forward enters `torch.autocast` or casts to a less precise type; the
        notes of a Gram say so.
    max_memory
        Bytes of tensors that a computation may hold beside the network and its inputs, in each
        process; by default three quarters of what is free when it starts. The allocator and
        libraries take up to some 32 MiB more.
    progress
        Where to show how far it is.
    alone
        Compute in this process only. Otherwise, where torch.distributed is initialised, its
        processes share the work: all must make the same calls with the same inputs.

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
    ) -> None:
        self._prepared: Prepared = prepare(model, parameters, dtype)
        self.outputs: Outputs = checked_outputs(outputs)
        self._max_memory = max_memory
        self._progress = progress
        self._makers = Makers(self._prepared, self.outputs)
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
            A folder to keep the Gram in, for one that memory cannot hold. A computation that was
            killed goes on there, and one that was finished is read. The values are then a
            memory map; writing to them does not change the folder.

        Raises
        ------
        KernelError
            Inputs that do not fit or are not finite; a bound on memory that is too small; a store
            of another Gram; a Gram that fails its check.
        """
        began = time.perf_counter()
        rows, columns = self._examples(inputs, other)
        across = None if other is None else columns
        ranks = Ranks.here(self._alone)
        begun_RO = self._makers.begun(rows, examples_of_forms(len(rows)).to(rows.device))
        if store is None and ranks.count == 1 and self._jacobians_pay(rows, across):
            found = self._gram_by_jacobians(rows, columns, across, begun_RO)
            if found is not None:
                return replace(found, seconds=time.perf_counter() - began)
        try:
            found = self._gram_by_rules(rows, columns, across, store, ranks)
        except KernelError:
            if not self._makers.unverified or ranks.count > 1:
                raise
            # The network may do something else than when it was looked at.
            self._makers.look_again(rows)
            found = self._gram_by_rules(rows, columns, across, store, ranks)
        return replace(found, seconds=time.perf_counter() - began)

    def _gram_by_rules(
        self,
        rows: Tensor,
        columns: Tensor,
        across: Tensor | None,
        store: str | Path | None,
        ranks: Ranks,
    ) -> NTKGram:
        opened = self._opened(store, rows, across, ranks)
        kept = opened.kept if opened else None
        speed = ranks.agreed(self._speed(rows))
        if kept:
            # The same speed makes the same choices, and with the same sizes the same bits.
            speed = Speed(**kept["speed"])
        budget = min(ranks.gathered(self._budget(ranks)))
        with ranks.together():
            self._makers.look_at(rows)
            # The first product by forward derivatives takes torch half a second to prepare.
            few = len(rows) < FEW and len(columns) < FEW
            directions = self._makers.directions(rows)
            expected = (self._forms if few else self._expected)(directions, rows, columns)
            sizes = Sizes(**kept["sizes"]) if kept else None
            job = self._job(rows, across, opened is not None, budget, ranks.count)
            maker, plan = self._makers.planned(
                rows, job, speed, lambda: self._counted_setup(rows, columns), sizes
            )
        plan = ranks.agreed(plan)
        keep: dict[str, object] = {"speed": asdict(speed), "sizes": asdict(plan.sizes)}
        values = compute_gram(
            maker, plan, self.outputs, rows, across, self._progress, ranks, opened, keep
        )
        with ranks.together():
            check = check_gram(expected, self.outputs, values)
            zero = zero_notes(expected, self.outputs, values) if across is None else ()
        return NTKGram(
            values=values,
            outputs=self.outputs,
            check=check,
            plan=plan,
            seconds=0.0,
            notes=(*self._makers.notes, *zero),
        )

    @differentiating
    def plan(self, inputs: Tensor, other: Tensor | None = None, *, on_disk: bool = False) -> Plan:
        """Return what `gram` would take, without computing it.

        ``on_disk`` says that the Gram will be kept in a store.
        """
        rows, columns = self._examples(inputs, other)
        across = None if other is None else columns
        speed = self._speed(rows)
        ranks = Ranks.here(self._alone)
        job = self._job(rows, across, on_disk, self._budget(ranks), ranks.count)
        if not on_disk and ranks.count == 1 and self._jacobians_pay(rows, across):
            found = self._makers.jacobians_planned(rows, job, speed, timed=True)
            if found is not None:
                return found[1]
        self._makers.look_at(rows)
        return self._makers.planned(
            rows, job, speed, lambda: self._counted_setup(rows, columns), timed=True
        )[1]

    @differentiating
    def product(self, inputs: Tensor) -> KernelProduct:
        """Return the kernel of N examples as a linear map, without its Gram.

        For one output (a logit, a difference, the sum) or "full". Gradients are kept where they
        fit ``max_memory``, and made again for each product where not.

        Raises
        ------
        KernelError
            For "class-diagonal" and "trace", which are several maps: take each logit in turn.
        """
        if self.outputs in ("class-diagonal", "trace"):
            raise KernelError(
                f"a {self.outputs} kernel is a map for each logit; take the product of each "
                "(outputs=0, 1, ...) or use matvec"
            )
        rows, _ = self._examples(inputs, None)
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
        rows, _ = self._examples(inputs, None)
        if self.outputs not in ("class-diagonal", "trace"):
            return self.product(inputs)(vectors)
        count = self._makers.count(rows)
        if self.outputs == "class-diagonal" and (vectors.ndim < 2 or len(vectors) != count):
            raise KernelError(
                f"vectors of shape {tuple(vectors.shape)} do not fit a class-diagonal kernel of "
                f"{count} logits; give ({count}, N) or ({count}, N, M)"
            )
        found = [
            self._product(rows, (logit, logit + 1))(
                vectors[logit] if self.outputs == "class-diagonal" else vectors
            )
            for logit in range(count)
        ]
        stacked = torch.stack(found)
        return stacked if self.outputs == "class-diagonal" else stacked.mean(dim=0)

    @differentiating
    def diagonal(self, inputs: Tensor) -> Tensor:
        """Return the kernel of each example with itself: (N,), (C, N) or, for "full", (NC,)."""
        rows, _ = self._examples(inputs, None)
        if self.outputs not in ("class-diagonal", "trace"):
            return self._product(rows, keep=False).diagonal()
        step, count = self._outputs_at_once(rows), self._makers.count(rows)
        found: list[Tensor] = []
        for start in range(0, count, step):
            some = self._product(rows, (start, min(start + step, count)), keep=False)
            squares_CN = some.diagonal().view(len(rows), -1).T
            if self.outputs == "class-diagonal":
                found.append(squares_CN)
            else:
                # The sum over all logits so far.
                total_N = squares_CN.double().sum(dim=0)
                found = [found[0] + total_N if found else total_N]
        if self.outputs == "class-diagonal":
            return torch.cat(found)
        return (found[0] / count).to(self._prepared.dtype)

    def trace(self, inputs: Tensor) -> Tensor:
        """Return Tr K in float64: a scalar, or (C,) for "class-diagonal"."""
        return self.diagonal(inputs).double().sum(dim=-1)

    @differentiating
    def outputs_of(self, inputs: Tensor) -> Tensor:
        """Return the outputs that the kernel is taken of, (N, C), in the kernel's type."""
        rows, _ = self._examples(inputs, None)
        prepared = self._prepared
        directions = self._makers.directions(rows)
        # One place for all: many small results, each above a pass's large scratch on the heap, would
        # keep the allocator from using that again.
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
        rows, _ = self._examples(inputs, None)
        prepared = self._prepared
        directions = self._makers.directions(rows)
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(len(rows), len(directions), generator=generator, dtype=torch.float64)
        vector = vector.to(prepared.device, prepared.dtype)
        plain = PlainProducts(prepared.network, prepared.parameters, _BATCH)
        wanted = plain.product(rows, rows, directions, vector)
        found = product(vector.flatten()).view_as(wanted)
        size = float(wanted.norm())
        return float((found - wanted).norm()) / size if size else 0.0

    @property
    def budget(self) -> int:
        """Bytes that a computation may take now."""
        return self._budget(Ranks.here(self._alone))

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of how the gradients of the last computation were made."""
        return self._makers.notes

    def _product(
        self, rows: Tensor, some: tuple[int, int] | None = None, *, keep: bool = True
    ) -> KernelProduct:
        """Return the kernel of all outputs that it is taken of, or of consecutive ones."""
        ranks = Ranks.here(self._alone)
        if ranks.count > 1:
            ranks.require_same(made_of(self._prepared, self.outputs, rows, None))
        speed = ranks.agreed(self._speed(rows))
        budget = min(ranks.gathered(self._budget(ranks)))
        with ranks.together():
            self._makers.look_at(rows, checked=False)
            maker = self._makers.maker(rows, speed, None)
            maker = maker if some is None else maker.some(*some)
            passes = self._makers.passes(maker, rows, budget)
            least = passes.fixed + passes.each
            if 2 * self._makers.bounded_setup(rows) > budget:
                least = max(least, self._makers.count_look(rows))
            if budget < least:
                raise KernelError(
                    f"max_memory = {budget} bytes is too small for the gradients of one example; "
                    f"give at least {least} bytes"
                )
        forward = forward_size(maker, passes, budget // 4)
        room = min(ranks.gathered(budget - passes.fixed - forward * passes.each))
        return KernelProduct(maker, rows, forward, room, ranks, keep=keep, progress=self._progress)

    def _speed(self, rows: Tensor) -> Speed:
        """Return how fast this machine is: typical numbers for few examples."""
        return measured_speed(self._prepared.dtype, self._prepared.device, len(rows))

    def _outputs_at_once(self, rows: Tensor) -> int:
        """Return how many logits' gradients are made together, of kernels taken one by one."""
        ranks = Ranks.here(self._alone)
        speed = ranks.agreed(self._speed(rows))
        self._makers.look_at(rows, checked=False)
        one = self._makers.maker(rows, speed, None).some(0, 1)
        budget = min(ranks.gathered(self._budget(ranks)))
        passes = self._makers.passes(one, rows, budget)
        each = passes.fixed + passes.each + 2 * one.held * one.item_size
        most = budget // (4 * each)
        return max(1, min(most, self._makers.count(rows)))

    def _budget(self, ranks: Ranks) -> int:
        if self._max_memory is not None:
            return self._max_memory
        return free_memory(self._prepared.device) * 3 // 4 // ranks.neighbours

    def _examples(self, inputs: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = self._prepared.examples(inputs, "inputs")
        columns = rows if other is None else self._prepared.examples(other, "other inputs")
        if rows.shape[1:] != columns.shape[1:]:
            raise KernelError(
                f"inputs of shape {tuple(rows.shape)} and others of shape {tuple(columns.shape)} "
                "do not fit; examples must have one shape"
            )
        return rows, columns

    def _opened(
        self, store: str | Path | None, rows: Tensor, columns: Tensor | None, ranks: Ranks
    ) -> GramStore | None:
        """Open the store; see that all processes compute the same."""
        if store is None and ranks.count == 1:
            return None
        same = made_of(self._prepared, self.outputs, rows, columns)
        ranks.require_same({**same, "store": None if store is None else str(store)})
        if store is None:
            return None
        across = len(rows) if columns is None else len(columns)
        count = len(self._makers.directions(rows))
        shape = gram_shape(self.outputs, count, len(rows), across)
        return GramStore(Path(store), same, shape, self._prepared.dtype, ranks)

    def _expected(
        self, directions: Directions, rows: Tensor, columns: Tensor, counted: bool = False
    ) -> Expected:
        plain = PlainProducts(self._prepared.network, self._prepared.parameters)
        return expected_products(plain, directions, self.outputs, rows, columns, counted)

    def _forms(
        self,
        directions: Directions,
        rows: Tensor,
        columns: Tensor,
        begun_RO: Tensor | None = None,
    ) -> Expected:
        plain = PlainProducts(self._prepared.network, self._prepared.parameters)
        return expected_forms(plain, directions, self.outputs, rows, columns, begun_RO)

    def _counted_setup(self, rows: Tensor, columns: Tensor) -> int:
        """Return the bytes that the look at the network and the products to check against take."""
        directions = self._makers.directions(rows)
        # One product takes as much room as all.
        some = directions if self.outputs == "full" else directions.part(0, 1)
        expected = self._expected(some, rows, columns, counted=True)
        return max(self._makers.count_look(rows), expected.bytes)

    def _jacobians_pay(self, rows: Tensor, columns: Tensor | None) -> bool:
        """Whether plain Jacobians are the faster way, by `jacobians_pay`."""
        examples = len(rows) + (0 if columns is None else len(columns))
        prepared, count = self._prepared, len(self._makers.directions(rows))
        numbers = sum(real_numbers(each) for each in prepared.parameters.values())
        kept = self._makers.first(rows).kept_bytes // prepared.dtype.itemsize
        return jacobians_pay(examples, count, numbers, kept)

    def _gram_by_jacobians(
        self, rows: Tensor, columns: Tensor, across: Tensor | None, begun_RO: Tensor | None
    ) -> NTKGram | None:
        """Return the Gram by plain Jacobians; None where rules or a closer look have to decide.

        That is where the Jacobians do not fit easily, where torch.func cannot batch the network, and
        where the outputs of an example alone and among others are not alike.
        """
        prepared, makers = self._prepared, self._makers
        budget = self._budget(Ranks())
        speed = typical_speed(prepared.device)
        job = self._job(rows, across, False, budget, 1)
        found = makers.jacobians_planned(rows, job, speed)
        if found is None or prepared.network.unlike:
            return None
        with explained("in a backward pass"):
            expected = self._forms(makers.directions(rows), rows, columns, begun_RO)
        seen = rows[expected.rows_R.to(rows.device)]
        among_1O = None if torch.equal(seen, seen[:1].expand_as(seen)) else expected.among_1O
        maker, plan = found
        try:
            with batchable_attention():
                values = compute_gram(
                    maker, plan, self.outputs, rows, across, self._progress, Ranks()
                )
        except NotBatchableError:
            return None
        if not makers.alike(rows, maker.take_alone(), among_1O):
            return None
        check = check_gram(expected, self.outputs, values)
        zero = zero_notes(expected, self.outputs, values) if across is None else ()
        return NTKGram(values, self.outputs, check, plan, 0.0, (*makers.notes, *zero))

    def _job(
        self,
        rows: Tensor,
        columns: Tensor | None,
        stored: bool,
        budget: int,
        shares: int,
    ) -> Job:
        across = len(rows if columns is None else columns)
        shape = gram_shape(self.outputs, len(self._makers.directions(rows)), len(rows), across)
        return Job(
            rows=len(rows),
            columns=None if columns is None else across,
            gram_bytes=0 if stored else math.prod(shape) * self._prepared.dtype.itemsize,
            budget=budget,
            setup_bytes=self._makers.bounded_setup(rows),
            separable=self.outputs in ("class-diagonal", "trace"),
            shares=shares,
        )
