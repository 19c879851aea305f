"""Checking a Gram against plain autograd, which is independent of rules, blocks and tiles.

For some rows and columns of the Gram, Kv is computed by plain autograd: the gradient of a random
combination of the columns' outputs, and the derivative of the rows' outputs along it.

Shapes: R rows, S columns, C combinations of the network's O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.autograd_products import AutogradProducts
from distillens.kernel.tracing.directions import Directions, Outputs

_EXAMPLES = 8
_CLASSES = 2
"""Blocks of a class-diagonal Gram that are checked."""
_MANY_CLASSES = 64
"""A mean over more classes is checked by a single number, since each class takes its own passes."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class GramCheck:
    """How far products with a Gram are from those of plain autograd."""

    rows: int
    """Examples along each side of the part that is checked."""
    residual: float
    """‖Kv − K̂v‖/‖Kv‖ of the worst product."""


@dataclass(frozen=True, eq=False)
class Expected:
    """Products with some of a Gram's rows and columns, by plain autograd."""

    rows_R: Tensor
    columns_S: Tensor
    signs_SC: Tensor
    classes: tuple[int, ...]
    """The outputs of a class-diagonal Gram that are checked."""
    products: tuple[Tensor, ...] = ()
    """Kv: (R, C) for "full", else (R, 1), one for each class that is checked; or numbers uᵀKv."""
    sizes: tuple[Tensor, ...] | None = None
    """What each number uᵀKv is compared with; None for products Kv."""
    among_1O: Tensor | None = None
    """The network's outputs for the first checked row among the other rows, if they were computed."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A Gram by plain autograd."""

    autograd: AutogradProducts
    directions: Directions
    outputs: Outputs
    rows: Tensor
    columns: Tensor

    def kernels(self, classes: tuple[int, ...]) -> Iterable[Directions]:
        """Return the outputs of each kernel that is checked."""
        if self.outputs == "full":
            return [self.directions]
        if self.outputs == "trace":
            return self.directions.each()
        return [self.directions.part(c, c + 1) for c in classes]


def expected_products(gram: Subject) -> Expected:
    """Return products Kv that a Gram must have."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, C = gram.rows, gram.columns, len(gram.directions)
    R, S = (torch.randperm(len(e), generator=generator)[:_EXAMPLES] for e in (rows, columns))
    many = gram.outputs == "trace" and C > _MANY_CLASSES
    if many and rows is columns:
        S = R
    signs_SC = 2.0 * torch.randint(2, (len(S), C), generator=generator) - 1
    signs_SC = signs_SC.to(rows.device, gram.directions.dtype)
    classes = tuple(torch.randperm(C, generator=generator)[:_CLASSES].tolist())
    checked = Expected(R, S, signs_SC, classes)
    if many:
        return _with_forms(checked, gram)
    found = [
        gram.autograd.product(rows[R], columns[S], some, signs_SC[:, : len(some)])
        for some in gram.kernels(classes)
    ]
    if gram.outputs == "trace":
        # The mean of the kernels is no single product.
        found = [torch.stack(found).mean(dim=0)]
    return replace(checked, products=tuple(found))


def expected_forms(gram: Subject, logits_RO: Tensor | None = None) -> Expected:
    """Return numbers uᵀKv that a Gram must have.

    They take backward passes only, less than half of the time of products Kv, and are for Grams of few
    examples. Each number involves all pairs of the examples that are checked.

    Parameters
    ----------
    gram
        The Gram.
    logits_RO
        The network's outputs for the rows of `examples_of_forms`, with their graph, if they are known.
    """
    generator = torch.Generator().manual_seed(0)
    C, R = len(gram.directions), examples_of_forms(len(gram.rows))
    S = R if gram.rows is gram.columns else examples_of_forms(len(gram.columns))
    # The weights of all examples have one sign. The kernels of similar examples are nearly equal, and
    # with random signs the number would be a difference of large ones.
    signs_SC = 0.5 + torch.rand(len(S), C, generator=generator)
    signs_SC = signs_SC * (2.0 * torch.randint(2, (C,), generator=generator) - 1)
    signs_SC = signs_SC.to(gram.rows.device, gram.directions.dtype)
    classes = tuple(torch.randperm(C, generator=generator)[:_CLASSES].tolist())
    return _with_forms(Expected(R, S, signs_SC, classes), gram, logits_RO)


def _with_forms(checked: Expected, gram: Subject, logits_RO: Tensor | None = None) -> Expected:
    """Return what is checked with its numbers uᵀKv, or with their mean over all outputs' kernels."""
    R, S, v_SC = checked.rows_R, checked.columns_S, checked.signs_SC
    mean = gram.outputs == "trace"
    if mean:
        v_SC = v_SC[:, :1]
    values, sizes, outputs_RO = gram.autograd.forms(
        gram.rows[R],
        gram.columns[S],
        gram.kernels(checked.classes),
        _repeated_signs(v_SC, len(R)),
        None if gram.rows is gram.columns else v_SC,
        logits_RO,
    )
    if mean:
        values, sizes = values.mean(dim=0, keepdim=True), sizes.mean(dim=0, keepdim=True)
    return replace(checked, products=tuple(values), sizes=tuple(sizes), among_1O=outputs_RO[:1])


def examples_of_forms(count: int) -> Tensor:
    """Return the rows that numbers uᵀKv are of: the first one, and another one for every sixteen."""
    others = 1 + torch.randperm(count - 1, generator=torch.Generator().manual_seed(0))
    first = torch.zeros(1, dtype=others.dtype)
    return torch.cat([first, others[: max(1, count // 16 - 1)]])[:_EXAMPLES]


def _repeated_signs(signs_SC: Tensor, rows: int) -> Tensor:
    """Return the columns' signs for a number of rows, which may exceed that of columns."""
    return signs_SC.repeat(-(-rows // len(signs_SC)), 1)[:rows]


def zero_notes(expected: Expected, outputs: Outputs, values: Tensor) -> tuple[str, ...]:
    """Return a note if a symmetric Gram is zero on the diagonal at the rows that are checked.

    The diagonal holds the squared norms of gradients.
    """
    rows_R = expected.rows_R.to(values.device)
    if outputs == "full":
        C = expected.signs_SC.shape[1]
        rows_R = (rows_R[:, None] * C + torch.arange(C, device=values.device)).flatten()
    if values[..., rows_R, rows_R].any():
        return ()
    return (
        f"the kernel is zero at the {len(expected.rows_R)} examples that were checked: none of the "
        "outputs that it is taken of has a gradient there",
    )


def check_gram(expected: Expected, outputs: Outputs, values: Tensor) -> GramCheck:
    """Compare a Gram with the products that it must have.

    Raises
    ------
    KernelError
        They differ by more than rounding.
    """
    signs_SC = expected.signs_SC.to(values)
    # Only these numbers are read, since the Gram may be larger than memory.
    at = expected.rows_R.to(values.device)[:, None], expected.columns_S.to(values.device)
    u_RC = _repeated_signs(signs_SC, len(expected.rows_R))
    if outputs == "full":
        C = signs_SC.shape[1]
        blocks = values.view(values.shape[0] // C, C, values.shape[1] // C, C)[at[0], :, at[1]]
        found = [torch.einsum("rscd,sd->rc", blocks, signs_SC)]
    elif outputs == "class-diagonal":
        found = [values[c][at] @ signs_SC[:, :1] for c in expected.classes]
    else:
        found = [values[at] @ signs_SC[:, :1]]
    sizes = expected.sizes
    if sizes is None:
        sizes = tuple(wanted.norm() for wanted in expected.products)
    else:
        u_RC = u_RC if outputs == "full" else u_RC[:, :1]
        found = [(u_RC.double() * each).sum() for each in found]
    errors_and_sizes = torch.stack(
        [
            torch.stack([(seen - wanted.to(seen)).norm().double(), size.to(seen.device).double()])
            for seen, wanted, size in zip(found, expected.products, sizes, strict=True)
        ]
    ).tolist()  # read together, since the host waits for a device at each read
    worst = max(error / size if size else error for error, size in errors_and_sizes)
    tolerance = _TOLERANCE[values.dtype]
    if not worst <= tolerance:
        raise KernelError(
            f"the Gram failed its check: a product differs from plain autograd's by {worst:.2g} "
            f"of its size where {tolerance:g} is allowed; in float32 the network may be too "
            "ill-conditioned (take float64), or an output depends on chance or on other examples"
        )
    return GramCheck(rows=len(expected.rows_R), residual=worst)
