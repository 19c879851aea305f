"""The empirical neural tangent kernel of any network, exact, from rules for its layers.

k(x, x′) = ∇f(x)·∇f(x′), the gradients taken over the parameters (Harutyunyan et al., ICLR 2023,
arXiv 2301.12245). Shapes: N examples, M other examples, C outputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel.blocks import BlockMaker
from distillens.kernel.check import GramCheck, check_gram
from distillens.kernel.coverage import Coverage, find_coverage
from distillens.kernel.network import (
    Outputs,
    Prepared,
    directions,
    pairing_of,
    prepare,
)
from distillens.kernel.plain import PlainProducts
from distillens.kernel.plan import (
    Plan,
    activation_bytes,
    forward_size,
    free_memory,
    make_plan,
)
from distillens.kernel.products import KernelProduct
from distillens.kernel.tiles import compute_gram
from distillens.kernel.ways import measured_speed
from distillens.progress import Progress, silent

_SAMPLE = 2
"""Examples that the shapes are read from."""
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
        Takes (B, …) and returns (B, O), each row from its own example. It is copied, and put in
        evaluation mode; the model itself stays as it is.
    outputs
        What the kernel is taken of: a logit c; a pair (a, b) for logit a minus logit b; "sum" of
        all; "class-diagonal", each apart; "trace", the mean over logits of their kernels; "full",
        all pairs of logits.
    parameters
        Names of the parameters to differentiate by; by default all that require gradients.
    dtype
        float32, or float64 where solves are ill-conditioned.
    max_memory
        Bytes that a computation may take beside the network and its inputs; by default three
        quarters of what is free when it starts.
    progress
        Where to show how far it is.

    Raises
    ------
    KernelError
        BatchNorm is in training mode; weights are not finite; an output or parameter is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        outputs: Outputs,
        parameters: Iterable[str] | None = None,
        dtype: torch.dtype = torch.float32,
        max_memory: int | None = None,
        progress: Progress = silent,
    ) -> None:
        self._prepared: Prepared = prepare(model, parameters, dtype)
        self.outputs: Outputs = outputs
        self._max_memory = max_memory
        self._progress = progress
        self._coverage: Coverage | None = None
        self._covered_shape: torch.Size | None = None
        self._last: BlockMaker | None = None

    def gram(self, inputs: Tensor, other: Tensor | None = None) -> NTKGram:
        """Compute the Gram of N examples, or of N and M examples."""
        began = time.perf_counter()
        rows, columns = self._examples(inputs, other)
        maker, directions_CO = self._maker(rows, len(columns if other is not None else rows) / 2)
        plan = self._plan(maker, rows, None if other is None else columns, len(directions_CO))
        values = compute_gram(
            maker, plan, self.outputs, rows, None if other is None else columns, self._progress
        )
        check = check_gram(
            PlainProducts(self._prepared.network, self._prepared.parameters),
            directions_CO,
            self.outputs,
            values,
            rows,
            columns,
        )
        return NTKGram(
            values=values,
            outputs=self.outputs,
            check=check,
            plan=plan,
            seconds=time.perf_counter() - began,
            notes=maker.notes,
        )

    def plan(self, inputs: Tensor, other: Tensor | None = None) -> Plan:
        """Return what `gram` would take, without computing it."""
        rows, columns = self._examples(inputs, other)
        maker, directions_CO = self._maker(rows, len(columns) / 2)
        return self._plan(maker, rows, None if other is None else columns, len(directions_CO))

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
        maker, _ = self._maker(rows, None)
        return self._product(maker, rows)

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
        count = self._prepared.count_outputs(rows[:1])
        if self.outputs == "class-diagonal" and (vectors.ndim < 2 or len(vectors) != count):
            raise KernelError(
                f"vectors of shape {tuple(vectors.shape)} do not fit a class-diagonal kernel of "
                f"{count} logits; give ({count}, N) or ({count}, N, M)"
            )
        found = [
            self._product(self._maker(rows, None, logit)[0], rows)(
                vectors[logit] if self.outputs == "class-diagonal" else vectors
            )
            for logit in range(count)
        ]
        stacked = torch.stack(found)
        return stacked if self.outputs == "class-diagonal" else stacked.mean(dim=0)

    def diagonal(self, inputs: Tensor) -> Tensor:
        """Return the kernel of each example with itself: (N,), (C, N) or, for "full", (NC,)."""
        rows, _ = self._examples(inputs, None)
        maker, _ = self._maker(rows, None)
        squares_NC = self._product(maker, rows, keep=False).diagonal().view(len(rows), -1)
        if self.outputs == "class-diagonal":
            return squares_NC.T
        return squares_NC.mean(dim=1) if self.outputs == "trace" else squares_NC.flatten()

    def trace(self, inputs: Tensor) -> Tensor:
        """Return Tr K in float64: a scalar, or (C,) for "class-diagonal"."""
        return self.diagonal(inputs).double().sum(dim=-1)

    def outputs_of(self, inputs: Tensor) -> Tensor:
        """Return the outputs that the kernel is taken of, (N, C), in the kernel's type."""
        rows, _ = self._examples(inputs, None)
        prepared = self._prepared
        count = prepared.count_outputs(rows[:1])
        directions_CO = directions(self.outputs, count, prepared.dtype, prepared.device)
        with torch.no_grad():
            parts = [prepared.network(part) @ directions_CO.T for part in rows.split(_BATCH)]
        return torch.cat(parts)

    def product_error(self, product: KernelProduct, inputs: Tensor) -> float:
        """Return ‖K̂v − Kv‖/‖Kv‖ for a random v, Kv by plain autograd over all examples."""
        rows, _ = self._examples(inputs, None)
        prepared = self._prepared
        count = prepared.count_outputs(rows[:1])
        directions_CO = directions(self.outputs, count, prepared.dtype, prepared.device)
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(
            len(rows), len(directions_CO), generator=generator, dtype=torch.float64
        )
        vector = vector.to(prepared.device, prepared.dtype)
        plain = PlainProducts(prepared.network, prepared.parameters, _BATCH)
        wanted = plain.product(rows, rows, directions_CO, vector)
        found = product(vector.flatten()).view_as(wanted)
        size = float(wanted.norm())
        return float((found - wanted).norm()) / size if size else 0.0

    @property
    def budget(self) -> int:
        """Bytes that a computation may take now."""
        return self._budget()

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of how the gradients of the last computation were made."""
        return self._last.notes if self._last is not None else ()

    def _product(self, maker: BlockMaker, rows: Tensor, keep: bool = True) -> KernelProduct:
        budget = self._budget()
        forward = forward_size(maker, rows[:1], budget // 4)
        room = budget - forward * activation_bytes(maker, rows[:1]) if keep else 0
        return KernelProduct(maker, rows, forward, room, self._progress)

    def _budget(self) -> int:
        if self._max_memory is not None:
            return self._max_memory
        return free_memory(self._prepared.device) * 3 // 4

    def _examples(self, inputs: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = self._prepared.examples(inputs, "inputs")
        columns = rows if other is None else self._prepared.examples(other, "other inputs")
        if rows.shape[1:] != columns.shape[1:]:
            raise KernelError(
                f"inputs of shape {tuple(rows.shape)} and others of shape {tuple(columns.shape)} "
                "do not fit; examples must have one shape"
            )
        return rows, columns

    def _maker(
        self, rows: Tensor, pairs_each: float | None, logit: int | None = None
    ) -> tuple[BlockMaker, Tensor]:
        """Return what makes gradients, and the outputs that it makes them of, (C, O)."""
        prepared = self._prepared
        count = prepared.count_outputs(rows[:1])
        wanted = self.outputs if logit is None else logit
        directions_CO = directions(wanted, count, prepared.dtype, prepared.device)
        if self._coverage is None or self._covered_shape != rows.shape[1:]:
            # Where examples lie among the axes of a call can depend on their shape.
            self._coverage = find_coverage(prepared.network, prepared.parameters, rows)
            self._covered_shape = rows.shape[1:]
        maker = BlockMaker(
            prepared,
            self._coverage,
            directions_CO,
            pairing_of(self.outputs),
            measured_speed(prepared.dtype, prepared.device),
            rows[:_SAMPLE],
            pairs_each,
        )
        self._last = maker
        return maker, directions_CO

    def _plan(self, maker: BlockMaker, rows: Tensor, columns: Tensor | None, outputs: int) -> Plan:
        across = len(rows) if columns is None else len(columns)
        pairs = {"class-diagonal": outputs, "full": outputs**2}.get(str(self.outputs), 1)
        device = self._prepared.device
        return make_plan(
            maker,
            rows[:1],
            len(rows),
            None if columns is None else len(columns),
            len(rows) * across * pairs * maker.item_size,
            self._budget(),
            measured_speed(self._prepared.dtype, device),
            1,
        )
