"""The Gram of the empirical neural tangent kernel by plain Jacobians: slow, and the yardstick.

k(x, x′) = ∇f(x)·∇f(x′), the gradients taken over the parameters (Harutyunyan et al., ICLR 2023,
arXiv 2301.12245). Shapes: N examples, M other examples, B examples of a block, C classes,
P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from operator import index
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from distillens.errors import KernelError, nearest
from distillens.kernel.called import CalledNetwork
from distillens.kernel.grad_mode import differentiating
from distillens.kernel.gradients import as_parameters, gradients_by, real, real_numbers
from distillens.kernel.network import Prepared, prepare

OutputForm = Literal["class-diagonal", "trace", "full"]
Jacobian = Callable[[Tensor], Tensor]


@differentiating
def oracle_gram(
    model: nn.Module,
    inputs: Tensor,
    other: Tensor | None = None,
    *,
    outputs: int | OutputForm,
    parameters: Iterable[str] | None = None,
    block: int | None = None,
    max_bytes: int = 2 * 2**30,
    vectorised: bool = True,
) -> Tensor:
    """Compute the Gram in float64 from per-example Jacobians.

    The model is copied to float64 in evaluation mode and stays as it is. Each example goes through
    alone, so that no output can depend on another example.

    Parameters
    ----------
    model
        Takes (B, …) and returns (B, C).
    inputs
        N examples, (N, …).
    other
        M examples along the second axis; by default the inputs again.
    outputs
        c: the Gram of logit c, (N, M). "class-diagonal": one Gram a logit, (C, N, M). "trace":
        their mean over classes, (N, M). "full": (NC, MC), row n·C + c for logit c of example n.
    parameters
        Names of the parameters to differentiate by; by default all that require gradients.
    block
        Examples whose Jacobians are held together; by default as many as the budget allows.
    max_bytes
        Budget for the Gram and the Jacobians. Where not all Jacobians fit, they are computed
        again for every pair of blocks.
    vectorised
        False: one backward pass for each output of each example, for models with operations that
        `torch.func.vmap` does not know.

    Returns
    -------
    Tensor
        In float64, on the model's device; exactly symmetric where ``other`` is None.

    Raises
    ------
    KernelError
        There are no examples; the budget is too small for one example; an input, a weight or the
        result is not finite; the outputs are not (B, C); the model contains BatchNorm that uses the
        statistics of the batch; a name or an output is unknown.
    """
    if not isinstance(outputs, str) and hasattr(outputs, "__index__"):
        outputs = index(outputs)
    prepared = prepare(model, parameters, torch.float64)
    weights = {name: weight.detach() for name, weight in prepared.parameters.items()}
    device = prepared.device
    rows = prepared.examples(inputs, "inputs")
    columns = rows if other is None else prepared.examples(other, "other inputs")
    if rows.shape[1:] != columns.shape[1:]:
        raise KernelError(
            f"inputs of shape {tuple(rows.shape)} and others of shape {tuple(columns.shape)} "
            "do not fit; examples must have one shape"
        )
    classes = _classes(prepared, rows[:1], outputs)
    chosen = slice(outputs, outputs + 1) if isinstance(outputs, int) else slice(None)
    made = 1 if isinstance(outputs, int) else classes
    jacobian = _jacobian(prepared.network, weights, chosen, vectorised)

    shape = _shape(len(rows), len(columns), made, outputs)
    per_example = 8 * made * sum(real_numbers(weight) for weight in weights.values())
    examples = len(rows) if other is None else len(rows) + len(columns)
    step, keep = _plan(examples, per_example, 8 * math.prod(shape), max_bytes, block)
    left = _blocks(jacobian, rows, step, keep)
    right = left if other is None else _blocks(jacobian, columns, step, keep)
    gram = torch.empty(shape, dtype=torch.float64, device=device)
    stride = made if outputs == "full" else 1
    for i in range(0, len(rows), step):
        left_BCP = left(i)
        down = slice(i * stride, (i + step) * stride)
        # With the inputs on both axes the lower triangle is the mirror of the upper one.
        for j in range(i if other is None else 0, len(columns), step):
            across = slice(j * stride, (j + step) * stride)
            right_BCP = left_BCP if other is None and i == j else right(j)
            tile = _tile(left_BCP, right_BCP, outputs)
            if other is None and i == j:
                tile = 0.5 * (tile + tile.mT)
            gram[..., down, across] = tile
            if other is None and i != j:
                gram[..., across, down] = tile.mT
    if not torch.isfinite(gram).all():
        raise KernelError(
            "the Gram is not finite although weights and inputs are; "
            "look for an operation without a derivative, such as sqrt at 0"
        )
    return gram


def _shape(rows: int, columns: int, made: int, outputs: int | OutputForm) -> tuple[int, ...]:
    """Return the Gram's shape for so many examples and outputs."""
    if outputs == "full":
        return rows * made, columns * made
    return (made, rows, columns) if outputs == "class-diagonal" else (rows, columns)


def _blocks(jacobian: Jacobian, examples: Tensor, step: int, keep: bool) -> Callable[[int], Tensor]:
    """Return the function from a block's first example to its Jacobians, kept or made each time."""
    return lru_cache(maxsize=None if keep else 0)(
        lambda start: jacobian(examples[start : start + step])
    )


def _tile(left_BCP: Tensor, right_BCP: Tensor, outputs: int | OutputForm) -> Tensor:
    """Contract two Jacobian blocks into a tile of the Gram."""
    if outputs == "class-diagonal":
        return torch.einsum("icp,jcp->cij", left_BCP, right_BCP)
    if outputs == "full":
        return left_BCP.flatten(0, 1) @ right_BCP.flatten(0, 1).T
    # One logit is the mean over a single class.
    return torch.einsum("icp,jcp->ij", left_BCP, right_BCP) / left_BCP.shape[1]


def _jacobian(
    network: CalledNetwork, weights: dict[str, Tensor], chosen: slice, vectorised: bool
) -> Jacobian:
    """Return the function from examples (B, …) to their Jacobians (B, C, P), for chosen outputs."""

    def output(reals: dict[str, Tensor], example: Tensor) -> Tensor:
        # Tied weights have one name here; functional_call puts it in every place.
        outputs_1O = network.with_weights(as_parameters(reals, weights), example[None])
        return outputs_1O[0, chosen]

    def by_vmap(examples: Tensor) -> Tensor:
        reals = {name: real(weight) for name, weight in weights.items()}
        try:
            # The example is no argument of jacrev, which takes no complex ones.
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
        return torch.stack(
            [torch.stack(list(_gradients(output(leaves, e), leaves))) for e in examples]
        )

    return by_vmap if vectorised else by_backward


def _gradients(outputs_C: Tensor, leaves: dict[str, Tensor]) -> Iterator[Tensor]:
    """Yield the gradient of each output of one example, (P,)."""
    for value in outputs_C:
        gradients = gradients_by(value, list(leaves.values()), retain=True)
        yield torch.cat([gradient.flatten() for gradient in gradients])


def _plan(
    examples: int, per_example: int, gram_bytes: int, max_bytes: int, block: int | None
) -> tuple[int, bool]:
    """Choose the block's length and whether all Jacobians are kept.

    A block being made exists twice (leaf by leaf and joined) beside the one it is paired with, and
    einsum may copy both: 4 blocks.
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


def _classes(prepared: Prepared, example: Tensor, outputs: int | OutputForm) -> int:
    """Return C after checking the network's output and the choice of outputs against it."""
    classes = prepared.count_outputs(example)
    if isinstance(outputs, int):
        if not 0 <= outputs < classes:
            raise KernelError(f"no output {outputs}; the model has outputs 0 to {classes - 1}")
    elif outputs not in get_args(OutputForm):
        raise KernelError(
            f"unknown outputs {outputs!r}{nearest(str(outputs), get_args(OutputForm))}, "
            "or the number of a logit"
        )
    return classes
