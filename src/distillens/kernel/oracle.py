"""The reference Gram of the empirical neural tangent kernel, from plain Jacobians: slow but simple.

k(x, x′) = ∇f(x)·∇f(x′), where the gradients are taken over the parameters (Harutyunyan et al., ICLR
2023, arXiv 2301.12245). Shapes: N examples, M other examples, B examples of a block, C combinations of
outputs, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from distillens.errors import KernelError
from distillens.kernel.tracing.directions import (
    Directions,
    Outputs,
    checked_outputs,
    gram_shape,
    require_finite,
)
from distillens.kernel.tracing.grad_mode import differentiating
from distillens.kernel.tracing.gradients import as_parameters, gradients_by, real
from distillens.kernel.tracing.isolated import IsolatedNetwork
from distillens.kernel.tracing.network import prepare

Jacobian = Callable[[Tensor], Tensor]


@differentiating
def oracle_gram(
    model: nn.Module,
    inputs: Tensor,
    other: Tensor | None = None,
    *,
    outputs: Outputs,
    parameters: Iterable[str] | None = None,
    block: int | None = None,
    max_bytes: int = 2 * 2**30,
    vectorised: bool = True,
) -> Tensor:
    """Compute the Gram in float64 from per-example Jacobians.

    The model is copied to float64 in evaluation mode; the model itself is not changed. Each example is
    alone in its batch, so that no output can depend on another example.

    Parameters
    ----------
    model
        Takes (B, …) and returns (B, O).
    inputs
        N examples, (N, …).
    other
        M examples along the second axis; by default the inputs again.
    outputs
        c for logit c, (a, b) for logit a minus logit b, or "sum": the Gram has the shape (N, M).
        "class-diagonal": one Gram for each logit, (O, N, M). "trace": the mean of these, (N, M).
        "full": (NO, MO), row n·O + c for logit c of example n.
    parameters
        Names of the parameters to differentiate by; by default all that require gradients.
    block
        Examples whose Jacobians are held together; by default as many as the budget allows.
    max_bytes
        Budget for the Gram and the Jacobians. If not all Jacobians fit, they are computed again for
        every pair of blocks.
    vectorised
        False: one backward pass for each output of each example, for models with operations that
        `torch.func.vmap` does not support.

    Returns
    -------
    Tensor
        In float64, on the model's device; exactly symmetric if ``other`` is None.

    Raises
    ------
    KernelError
        There are no examples; the budget is too small for one example; an input, a weight or the
        result is not finite; the outputs are not (B, O); the model contains BatchNorm that uses the
        statistics of the batch; a name or an output is unknown.
    """
    outputs = checked_outputs(outputs)
    prepared = prepare(model, parameters, torch.float64)
    rows, columns = prepared.pair(inputs, other)
    directions = prepared.directions(outputs, rows)
    weights = {name: weight.detach() for name, weight in prepared.parameters.items()}
    jacobian = _jacobian(prepared.network, weights, directions, vectorised)

    C = len(directions)
    shape = gram_shape(outputs, C, len(rows), len(columns))
    examples = len(rows) if other is None else len(rows) + len(columns)
    sizes = 8 * C * prepared.numbers, 8 * math.prod(shape)
    step, keep = _plan(examples, *sizes, max_bytes, block)

    @lru_cache(maxsize=None if keep else 0)
    def made(of_rows: bool, start: int) -> Tensor:
        return jacobian((rows if of_rows else columns)[start : start + step])

    gram = torch.empty(shape, dtype=torch.float64, device=prepared.device)
    stride = C if outputs == "full" else 1
    for i in range(0, len(rows), step):
        left_BCP = made(True, i)
        down = slice(i * stride, (i + step) * stride)
        # The lower triangle of a symmetric Gram is the transpose of the upper one.
        for j in range(i if other is None else 0, len(columns), step):
            across = slice(j * stride, (j + step) * stride)
            diagonal = other is None and i == j
            tile = _tile(left_BCP, left_BCP if diagonal else made(other is None, j), outputs)
            gram[..., down, across] = 0.5 * (tile + tile.mT) if diagonal else tile
            if other is None and not diagonal:
                gram[..., across, down] = tile.mT
    require_finite(torch.isfinite(gram).all())
    return gram


def _tile(left_BCP: Tensor, right_BCP: Tensor, outputs: Outputs) -> Tensor:
    """Contract two Jacobian blocks to a tile of the Gram."""
    if outputs == "class-diagonal":
        return torch.einsum("icp,jcp->cij", left_BCP, right_BCP)
    if outputs == "full":
        return left_BCP.flatten(0, 1) @ right_BCP.flatten(0, 1).T
    # The mean over all logits, or over a single combination of outputs.
    return torch.einsum("icp,jcp->ij", left_BCP, right_BCP) / left_BCP.shape[1]


def _jacobian(
    network: IsolatedNetwork, weights: dict[str, Tensor], directions: Directions, vectorised: bool
) -> Jacobian:
    """Return the function from examples (B, …) to their Jacobians (B, C, P)."""

    def output(reals: dict[str, Tensor], example: Tensor) -> Tensor:
        # Tied weights have one name here; functional_call puts the weight in every place.
        return directions.of(network.with_weights(as_parameters(reals, weights), example[None]))[0]

    def by_vmap(examples: Tensor) -> Tensor:
        reals = {name: real(weight) for name, weight in weights.items()}
        try:
            # jacrev does not accept complex arguments, so the example is not an argument.
            each = vmap(lambda e: jacrev(lambda given: output(given, e))(reals), randomness="error")
            tree = each(examples)
        except RuntimeError as error:
            raise KernelError(
                f"torch.func failed on the model ({str(error).partition(chr(10))[0]}); "
                "pass vectorised=False, or a smaller block if memory ran out"
            ) from error
        return torch.cat([tree[name].flatten(2) for name in weights], dim=2).detach()

    def by_backward(examples: Tensor) -> Tensor:
        leaves = {name: real(weight.detach()).requires_grad_() for name, weight in weights.items()}
        parameters = list(leaves.values())
        rows = [
            torch.cat([each.flatten() for each in gradients_by(value, parameters, retain=True)])
            for example in examples
            for value in output(leaves, example)
        ]
        return torch.stack(rows).unflatten(0, (len(examples), -1))

    return by_vmap if vectorised else by_backward


def _plan(
    examples: int, per_example: int, gram_bytes: int, max_bytes: int, block: int | None
) -> tuple[int, bool]:
    """Choose the length of a block, and whether all Jacobians are kept.

    A block exists twice while it is made, parameter by parameter and joined, in addition to the block
    that it is paired with; einsum may copy both. That makes 4 blocks.
    """
    if block is not None and block < 1:
        raise KernelError(f"block is {block}; give at least 1 example")
    budget = max(max_bytes - gram_bytes, 0)
    fit = budget // (4 * per_example)
    if (block or 1) > fit:
        raise KernelError(
            f"a Gram of {gram_bytes / 2**20:.3g} MiB and Jacobians of "
            f"{per_example / 2**20:.3g} MiB an example, in blocks of {block or 1}, "
            f"do not fit max_bytes = {max_bytes / 2**20:.3g} MiB; "
            "raise max_bytes, or take fewer examples, outputs or parameters"
        )
    step = min(block or fit, examples)
    return step, (examples + 4 * step) * per_example <= budget
