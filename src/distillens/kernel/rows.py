"""Gradients that are written out, contracted as vectors, piece by piece of the parameters.

Shapes: B, D examples of two blocks, C outputs, P written numbers, R and S rows of two sides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillens.kernel.factors import Pairing

PIECE = 2**13
"""Parameters that are contracted at a time, at most."""
_MOST_PIECES, _PIECES_NUMBERS = 16, 2**20
_ALIGNED = 64
"""Pieces are whole multiples of it, so that products run at full speed."""
STRIP = 64
"""Rows of a triangle that are computed together, up to the diagonal."""
_PARALLEL_NUMBERS, _PARALLEL_STRIP = 2**26, 2048
"""The same two on an accelerator, where few large operations are faster than many small ones."""


def empty_tile(left_BCP: Tensor, right_DCP: Tensor, pairing: Pairing) -> Tensor:
    """Return zeros to add products to: in float64, (C, B, D), for "full" (B, C, D, C)."""
    B, C, _ = left_BCP.shape
    D = len(right_DCP)
    shape = (B, C, D, C) if pairing == "full" else (C, B, D)
    return left_BCP.new_zeros(shape, dtype=torch.float64)


def add_rows(
    tile: Tensor, left_BCP: Tensor, right_DCP: Tensor, pairing: Pairing, upper: bool
) -> None:
    """Add the products of written gradients to a tile.

    Parameters
    ----------
    tile
        In float64, (C, B, D), for "full" (B, C, D, C).
    left_BCP, right_DCP
        The gradients of two blocks.
    pairing
        Which pairs of outputs.
    upper
        The blocks are one: what is below the diagonal, but for some of it, is left as it was.
    """
    if pairing == "full":
        rows, columns = left_BCP.flatten(0, 1), right_DCP.flatten(0, 1)
        _add_side(tile.view(len(rows), len(columns)), rows, columns, upper)
        return
    for c in range(left_BCP.shape[1]):
        _add_side(tile[c], left_BCP[:, c], right_DCP[:, c], upper)


def mirror(tile: Tensor, pairing: Pairing) -> None:
    """Put what is above the diagonal of a tile below it."""
    if pairing == "full":
        B, C = tile.shape[:2]
        sides = [tile.view(B * C, B * C)]
    else:
        sides = list(tile)
    for side_RR in sides:
        side_RR.triu_()
        side_RR += side_RR.triu(1).T


def is_parallel(device: torch.device) -> bool:
    """Return whether a device is an accelerator, on which what counts is the number of operations."""
    return device.type != "cpu"


def strip(device: torch.device) -> int:
    """Return how many rows of a triangle are computed together, up to the diagonal."""
    return _PARALLEL_STRIP if is_parallel(device) else STRIP


def pieces_at_once(numbers: int, parallel: bool = False) -> int:
    """Return how many pieces of the parameters are contracted together, each to so many numbers.

    A batch of products, each thread with pieces of its own, is faster than small ones in turn.
    """
    if parallel:
        return max(1, _PARALLEL_NUMBERS // max(1, numbers))
    return max(1, min(_MOST_PIECES, _PIECES_NUMBERS // max(1, numbers)))


def _add_side(total_RS: Tensor, left_RP: Tensor, right_SP: Tensor, upper: bool) -> None:
    if not upper:
        _add_products(total_RS, left_RP, right_SP)
        return
    step = strip(left_RP.device)
    for start in range(0, len(left_RP), step):
        rows = slice(start, start + step)
        _add_products(total_RS[rows, start:], left_RP[rows], right_SP[start:])


def _add_products(total_RS: Tensor, left_RP: Tensor, right_SP: Tensor) -> None:
    """Add the products of all rows.

    The pieces are added up in float64: a sum over all parameters in float32 would lose digits.
    """
    P = left_RP.shape[1]
    # Equal pieces, so that little is left over.
    pieces = max(1, -(-P // PIECE))
    piece = max(1, P // pieces)
    if pieces > 1 and piece > _ALIGNED:
        piece -= piece % _ALIGNED
    step = piece * pieces_at_once(total_RS.numel(), is_parallel(total_RS.device))
    whole = P - P % piece
    for start in range(0, whole, step):
        stop = min(start + step, whole)
        left, right = (
            each[:, start:stop].unflatten(1, (-1, piece)).transpose(0, 1)
            for each in (left_RP, right_SP)
        )
        _add_each(total_RS, left, right)
    if whole < P:
        total_RS += left_RP[:, whole:] @ right_SP[:, whole:].T


def _add_each(total_RS: Tensor, left: Tensor, right: Tensor) -> None:
    # A call of its own, so that these products are gone before the next are made.
    if is_parallel(total_RS.device):
        total_RS += torch.bmm(left, right.mT).sum(dim=0, dtype=total_RS.dtype)
        return
    for product in torch.bmm(left, right.mT):
        total_RS += product
