"""What the engine is measured beside: three ways with torch.func, two with nngeometry.

Each takes the model, the inputs, a setting (examples that go through together) and a budget in
bytes, and returns the Gram, (N, N) or (NC, NC) with row n·C + c. One is torch.func's recipe as its
documentation has it. The others get what a careful user would give them: one Jacobian for both sides
of the Gram, the best number of examples at a time, `grad` instead of `jacrev` for a single output,
blocks as large as memory allows.

Shapes: N examples, B examples of a block, C outputs, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

Method = Callable[[nn.Module, Tensor, int, int], Tensor]


def torch_func(model: nn.Module, inputs: Tensor, setting: int, budget: int) -> Tensor:
    """Contract the Jacobians of both sides parameter by parameter: the published recipe."""
    del setting, budget  # it knows neither
    weights, jacobian = _recipe(model)
    left, right = (jacobian(weights, inputs) for _ in range(2))
    return _contracted(left, right)


def torch_func_chunks(model: nn.Module, inputs: Tensor, setting: int, budget: int) -> Tensor:
    """Take the same recipe with one Jacobian for both sides, made chunk by chunk."""
    del budget
    weights, jacobian = _recipe(model, setting)
    both = jacobian(weights, inputs)
    return _contracted(both, both)


def _recipe(model: nn.Module, chunk: int | None = None) -> tuple[dict[str, Tensor], Any]:
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def outputs_of(weights: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, weights, (example[None],))[0]

    def jacobian(weights: dict[str, Tensor], examples: Tensor) -> list[Tensor]:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no rule for vmap, so it loops
            leaves = vmap(jacrev(outputs_of), (None, 0), chunk_size=chunk)(weights, examples)
        return [leaf.flatten(2) for leaf in leaves.values()]

    return weights, jacobian


def _contracted(left: list[Tensor], right: list[Tensor]) -> Tensor:
    pairs = zip(left, right, strict=True)
    gram_NCMD = sum(torch.einsum("ncp,mdp->ncmd", one, other) for one, other in pairs)
    assert isinstance(gram_NCMD, Tensor)
    return gram_NCMD.flatten(2).flatten(0, 1).detach()


def torch_func_blocks(model: nn.Module, inputs: Tensor, setting: int, budget: int) -> Tensor:
    """Fill one matrix of Jacobians a block of examples and multiply blocks, upper triangle only.

    All examples are one block where the budget allows; else the second block of a pair is made
    anew for each pair.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    with torch.no_grad():
        classes = model(inputs[:1]).shape[1]
    width = sum(weight.numel() for weight in weights.values())
    per_example = 4 * classes * width
    # While a chunk is copied into the block it exists twice, in parts and with what made it.
    room = int(0.8 * budget) - 3 * min(setting, len(inputs)) * per_example
    whole = len(inputs) * per_example <= room
    step = len(inputs) if whole else max(1, room // (2 * per_example))

    def output(weights: dict[str, Tensor], example: Tensor) -> Tensor:
        logits = functional_call(model, weights, (example[None],))[0]
        return logits[0] if classes == 1 else logits

    derivative = vmap(grad(output) if classes == 1 else jacrev(output), (None, 0))

    def fill(block_NP: Tensor, start: int) -> Tensor:
        examples = inputs[start : start + step]
        for first in range(0, len(examples), setting):
            part = examples[first : first + setting]
            rows = slice(first * classes, (first + len(part)) * classes)
            made = derivative(weights, part)
            column = 0
            for name, weight in weights.items():
                size = weight.numel()
                block_NP[rows, column : column + size] = made.pop(name).reshape(-1, size)
                column += size
        return block_NP[: len(examples) * classes]

    gram = inputs.new_empty(len(inputs) * classes, len(inputs) * classes)
    buffers = [inputs.new_empty(step * classes, width) for _ in range(1 if whole else 2)]
    with sdpa_kernel(SDPBackend.MATH):
        for i in range(0, len(inputs), step):
            left = fill(buffers[0], i)
            down = slice(i * classes, i * classes + len(left))
            for j in range(i, len(inputs), step):
                right = left if i == j else fill(buffers[1], j)
                across = slice(j * classes, j * classes + len(right))
                gram[down, across] = _product(left, right)
                if i != j:
                    gram[across, down] = gram[down, across].T
    return gram


def nngeometry_gram(model: nn.Module, inputs: Tensor, setting: int, budget: int) -> Tensor:
    """Let nngeometry make the Gram pair by pair of batches, from layer inputs and gradients."""
    del budget
    gram_CNDM = _nngeometry("gram", "GramMatrix", model, inputs, setting)
    count = gram_CNDM.shape[0] * gram_CNDM.shape[1]
    return gram_CNDM.permute(1, 0, 3, 2).reshape(count, count)


def nngeometry_jacobian(model: nn.Module, inputs: Tensor, setting: int, budget: int) -> Tensor:
    """Let nngeometry make all Jacobians, and multiply them: fewer passes for several outputs."""
    del budget
    jacobian_CNP = _nngeometry("jacobian", "Jacobian", model, inputs, setting)
    classes, count, width = jacobian_CNP.shape
    if classes == 1:
        return _product(jacobian_CNP[0], jacobian_CNP[0])
    # Multiplied where it lies: row n·C + c would need a second copy of the Jacobian.
    rows_P = jacobian_CNP.view(classes * count, width)
    gram_CNDM = _product(rows_P, rows_P).view(classes, count, classes, count)
    return gram_CNDM.permute(1, 0, 3, 2).reshape(count * classes, count * classes)


def _product(left: Tensor, right: Tensor, columns: int = 65536) -> Tensor:
    """Return left·rightᵀ, piece by piece: one sum of millions in float32 loses a digit or two."""
    gram = left.new_zeros(len(left), len(right))
    for one, other in zip(left.split(columns, 1), right.split(columns, 1), strict=True):
        gram.addmm_(one, other.T)
    return gram


def _nngeometry(module: str, name: str, model: nn.Module, inputs: Tensor, setting: int) -> Any:
    # Not installed where the rest runs, so not to be imported at the head.
    make = getattr(import_module(f"nngeometry.{module}"), name)
    examples = torch.utils.data.TensorDataset(inputs)
    loader = torch.utils.data.DataLoader(examples, batch_size=setting)
    made = make(model, loader, function=lambda *batch: model(batch[0]))
    return (made.data if name == "GramMatrix" else made.to_torch()).detach()


PEERS: dict[str, Method] = {
    "torch.func": torch_func,
    "torch.func-chunks": torch_func_chunks,
    "torch.func-blocks": torch_func_blocks,
    "nngeometry": nngeometry_gram,
    "nngeometry-jacobian": nngeometry_jacobian,
}


PUBLISHED = ("torch.func", "nngeometry")
"""Peers as their documentation has them; the others were made faster for this comparison."""


def settings(method: str, count: int) -> list[int]:
    """Return the numbers of examples at a time to try, the best of which is the peer's time."""
    tried = {
        "torch.func": (count,),
        "torch.func-chunks": (64, count),
        "torch.func-blocks": (8, 32, 128),
        # A batch pairs with every earlier one, so larger ones do less work.
        "nngeometry": (512, count),
        "nngeometry-jacobian": (64, 256),
    }[method]
    return sorted({min(value, count) for value in tried})
