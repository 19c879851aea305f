"""A Gram is checked against products that know nothing of rules, blocks or tiles.

For some rows and columns of the Gram, Kv is computed by plain autograd: the gradient of a random
combination of the columns' outputs, and how the rows' outputs move along it.

Shapes: R rows, S columns, C combinations of the network's O outputs.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.directions import Directions, Outputs
from distillens.kernel.memory import LiveBytes
from distillens.kernel.plain import PlainProducts

_EXAMPLES = 8
_CLASSES = 2
"""Blocks of a class-diagonal Gram that are looked at."""
_MANY_CLASSES = 64
"""Of a mean over more classes one number is looked at: each class takes passes of its own."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class GramCheck:
    """How far a Gram's products were from those of plain autograd."""

    rows: int
    """Examples along each side of the part that was looked at."""
    residual: float
    """‖Kv − K̂v‖/‖Kv‖, of the worst product."""


@dataclass(frozen=True, eq=False)
class Expected:
    """Products with some of a Gram's rows and columns, by plain autograd."""

    rows_R: Tensor
    columns_S: Tensor
    signs_SC: Tensor
    classes: tuple[int, ...]
    """The outputs of a class-diagonal Gram that are looked at."""
    products: tuple[Tensor, ...]
    """Kv: (R, C) for "full", else (R, 1), one for each class that is looked at; uᵀKv for a mean
    over many classes."""
    bytes: int
    """What computing them took, where it was counted."""
    sizes: tuple[Tensor, ...] | None = None
    """What each uᵀKv is compared with, where those were computed; u are the columns' signs."""
    among_1O: Tensor | None = None
    """The outputs of the first row among the others that are looked at, for numbers uᵀKv."""


def expected_products(
    plain: PlainProducts,
    directions: Directions,
    outputs: Outputs,
    rows: Tensor,
    columns: Tensor,
    counted: bool = False,
) -> Expected:
    """Return what some products with a Gram of rows and columns have to be.

    Parameters
    ----------
    plain
        The kernel by plain autograd.
    directions, outputs, rows, columns
        What the Gram is of.
    counted
        Count the bytes that it takes.
    """
    generator = torch.Generator().manual_seed(0)
    C = len(directions)
    many = outputs == "trace" and C > _MANY_CLASSES
    R, S = (torch.randperm(len(e), generator=generator)[:_EXAMPLES] for e in (rows, columns))
    if many and rows is columns:
        S = R
    signs_SC = 2.0 * torch.randint(2, (len(S), C), generator=generator) - 1
    signs_SC = signs_SC.to(rows.device, directions.dtype)
    classes = torch.randperm(C, generator=generator)[:_CLASSES].tolist()

    def product(some: Directions) -> Tensor:
        return plain.product(rows[R], columns[S], some, signs_SC[:, : len(some)])

    def form(some: Directions) -> tuple[Tensor, Tensor]:
        return plain.mean_form(rows[R], columns[S], some, _signs_of_form(signs_SC, len(R)))

    sizes = None
    live = LiveBytes() if counted else None
    with live or nullcontext():
        if outputs == "full":
            found = [product(directions)]
        elif many:
            # One output after another takes what some take, and counting takes long.
            if counted:
                form(directions.part(0, _CLASSES))
            found = []
        elif outputs == "trace":
            # Each logit's kernel on its own, since their mean is no single product.
            each = [product(direction) for direction in directions.each()]
            found = [torch.stack(each).mean(dim=0)]
        else:
            found = [product(directions.part(c, c + 1)) for c in classes]
    if many:
        value, scale = form(directions)
        found, sizes = [value], (scale,)
    peak = live.peak if live else 0
    return Expected(R, S, signs_SC, tuple(classes), tuple(found), peak, sizes)


def expected_forms(
    plain: PlainProducts,
    directions: Directions,
    outputs: Outputs,
    rows: Tensor,
    columns: Tensor,
    begun_RO: Tensor | None = None,
) -> Expected:
    """Return what some numbers uᵀKv of a Gram of rows and columns have to be.

    They take backward passes alone, less than half of the time of products Kv, which is for Grams of few
    examples. One number involves every pair of the examples that are looked at.

    Parameters
    ----------
    plain, directions, outputs, rows, columns
        As of `expected_products`.
    begun_RO
        The network's outputs for the rows of `examples_of_forms`, with their graph, if they are known.
    """
    generator = torch.Generator().manual_seed(0)
    C, R = len(directions), examples_of_forms(len(rows))
    S = R if rows is columns else examples_of_forms(len(columns))
    # Weights of one sign for all examples: the kernels of similar examples are nearly equal, and with
    # signs of their own the number would be a difference of large ones.
    signs_SC = 0.5 + torch.rand(len(S), C, generator=generator)
    signs_SC = signs_SC * (2.0 * torch.randint(2, (C,), generator=generator) - 1)
    signs_SC = signs_SC.to(rows.device, directions.dtype)
    classes = torch.randperm(C, generator=generator)[:_CLASSES].tolist()
    left, right = rows[R], columns[S]
    if outputs == "trace":
        value, size = plain.mean_form(left, right, directions, _signs_of_form(signs_SC, len(R)))
        return Expected(R, S, signs_SC, tuple(classes), (value,), 0, (size,))
    u_RC = _signs_of_rows(signs_SC, len(R))
    parts = [directions] if outputs == "full" else [directions.part(c, c + 1) for c in classes]
    made = []
    for some in parts:
        v_SC = None if rows is columns else signs_SC[:, : len(some)]
        made.append(plain.form(left, right, some, u_RC[:, : len(some)], v_SC, begun_RO))
    return Expected(
        R,
        S,
        signs_SC,
        tuple(classes),
        tuple(each.value for each in made),
        0,
        tuple(each.size for each in made),
        made[0].outputs_RO[:1],
    )


def examples_of_forms(count: int) -> Tensor:
    """Return which of so many rows the numbers uᵀKv are of: the first and, for each sixteen, another."""
    others = 1 + torch.randperm(count - 1, generator=torch.Generator().manual_seed(0))
    first = torch.zeros(1, dtype=others.dtype)
    return torch.cat([first, others[: max(1, count // 16 - 1)]])[:_EXAMPLES]


def _signs_of_rows(signs_SC: Tensor, rows: int) -> Tensor:
    """Return the columns' signs for so many rows; there can be more rows than columns."""
    return signs_SC.repeat(-(-rows // len(signs_SC)), 1)[:rows]


def _signs_of_form(signs_SC: Tensor, rows: int) -> Tensor:
    """Return u and v, one behind the other; both are the first column's signs."""
    v_SC = signs_SC[:, :1]
    return torch.cat([_signs_of_rows(v_SC, rows), v_SC])[:, 0]


def zero_notes(expected: Expected, outputs: Outputs, values: Tensor) -> tuple[str, ...]:
    """Return what has to be known of a Gram of examples with themselves that is zero.

    Its diagonal tells, at the rows that are checked: there it holds the squares of gradients.
    """
    rows_R = expected.rows_R.to(values.device)
    if outputs == "full":
        C = expected.signs_SC.shape[1]
        rows_R = (rows_R[:, None] * C + torch.arange(C, device=values.device)).flatten()
    if values[..., rows_R, rows_R].any():
        return ()
    return (
        f"the kernel is zero at the {len(expected.rows_R)} examples that were looked at: no output "
        "that it is taken of has a gradient there",
    )


def check_gram(expected: Expected, outputs: Outputs, values: Tensor) -> GramCheck:
    """Compare a Gram with the products that it has to have.

    Raises
    ------
    KernelError
        They differ by more than rounding.
    """
    signs_SC = expected.signs_SC.to(values)
    # Only these numbers are read: the Gram may be larger than memory.
    at = expected.rows_R.to(values.device)[:, None], expected.columns_S.to(values.device)
    u_RC = _signs_of_rows(signs_SC, len(expected.rows_R))
    if outputs == "full":
        C = signs_SC.shape[1]
        blocks = values.view(values.shape[0] // C, C, values.shape[1] // C, C)[at[0], :, at[1]]
        found = [torch.einsum("rscd,sd->rc", blocks, signs_SC)]
    elif outputs == "class-diagonal":
        found = [values[c][at] @ signs_SC[:, :1] for c in expected.classes]
    else:
        found = [values[at] @ signs_SC[:, :1]]
    if expected.sizes is None:
        sizes = [wanted.norm() for wanted in expected.products]
    else:
        sizes = list(expected.sizes)
        u_RC = u_RC if outputs == "full" else u_RC[:, :1]
        found = [(u_RC.double() * each).sum() for each in found]
    off_size = torch.stack(
        [
            torch.stack([(seen - wanted.to(seen)).norm().double(), size.to(seen.device).double()])
            for seen, wanted, size in zip(found, expected.products, sizes, strict=True)
        ]
    ).tolist()  # all at once: a device would be waited for each time
    worst = max(off / size if size else off for off, size in off_size)
    tolerance = _TOLERANCE[values.dtype]
    if not worst <= tolerance:
        raise KernelError(
            f"the Gram failed its check: a product differs from plain autograd's by {worst:.2g} "
            f"of its size where {tolerance:g} is allowed; in float32 the network may be too "
            "ill-conditioned (take float64), or an output depends on chance or on other examples"
        )
    return GramCheck(rows=len(expected.rows_R), residual=worst)
