"""A Gram is checked against products that know nothing of rules, blocks or tiles.

For some rows and columns of the Gram, Kv is computed by plain autograd: the gradient of a random
combination of the columns' outputs, and how the rows' outputs move along it.

Shapes: R rows, S columns, C combinations of the network's O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.memory import peak_bytes
from distillens.kernel.network import Outputs
from distillens.kernel.plain import PlainProducts

_EXAMPLES = 8
_CLASSES = 2
"""Blocks of a class-diagonal Gram that are looked at."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class GramCheck:
    """How far a Gram's products were from those of plain autograd."""

    rows: int
    """Examples along each side of the part that was looked at."""
    residual: float
    """‖Kv − K̂v‖/‖Kv‖, of the worst product."""


def check_bytes(
    products: PlainProducts,
    directions_CO: Tensor,
    outputs: Outputs,
    rows: Tensor,
    columns: Tensor,
) -> int:
    """Return the bytes that the check takes, measured on as many examples."""
    some_CO = directions_CO if outputs == "full" else directions_CO[:1]
    R, S = rows[:_EXAMPLES], columns[:_EXAMPLES]
    ones_SC = some_CO.new_ones(len(S), len(some_CO))
    return peak_bytes(lambda: products.product(R, S, some_CO, ones_SC))


def check_gram(
    products: PlainProducts,
    directions_CO: Tensor,
    outputs: Outputs,
    values: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> GramCheck:
    """Compare a Gram with products by autograd on some of its rows and columns.

    Raises
    ------
    KernelError
        They differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    R, S = (torch.randperm(len(e), generator=generator)[:_EXAMPLES] for e in (rows, columns))
    C = len(directions_CO)
    signs_SC = 2.0 * torch.randint(2, (len(S), C), generator=generator) - 1
    signs_SC = signs_SC.to(rows.device, values.dtype)
    # Only these numbers are read: the Gram may be larger than memory.
    at = R.to(values.device)[:, None], S.to(values.device)
    worst = 0.0

    def compare(found: Tensor, wanted: Tensor) -> None:
        nonlocal worst
        wanted = wanted.to(found)
        size = float(wanted.norm())
        off = float((found - wanted).norm())
        worst = max(worst, off / size if size else off)

    if outputs == "full":
        blocks_RSCC = values.view(len(rows), C, len(columns), C)[at[0], :, at[1]]
        wanted = products.product(rows[R], columns[S], directions_CO, signs_SC)
        compare(torch.einsum("rscd,sd->rc", blocks_RSCC, signs_SC.to(values)), wanted)
    elif outputs == "trace":
        # Each logit's kernel on its own, since their mean is no single product.
        each = [
            products.product(rows[R], columns[S], direction[None], signs_SC[:, :1])
            for direction in directions_CO
        ]
        compare(values[at] @ signs_SC[:, :1].to(values), torch.stack(each).mean(dim=0))
    else:
        grams = values if outputs == "class-diagonal" else values[None]
        for c in torch.randperm(C, generator=generator)[:_CLASSES].tolist():
            direction = directions_CO[c][None]
            wanted = products.product(rows[R], columns[S], direction, signs_SC[:, :1])
            compare(grams[c][at] @ signs_SC[:, :1].to(values), wanted)
    tolerance = _TOLERANCE[values.dtype]
    if not worst <= tolerance:
        raise KernelError(
            f"the Gram failed its check: a product differs from plain autograd's by {worst:.2g} "
            f"of its size where {tolerance:g} is allowed; in float32 the network may be too "
            "ill-conditioned (take float64), or an output depends on chance or on other examples"
        )
    return GramCheck(rows=len(R), residual=worst)
