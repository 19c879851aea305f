"""Contraction of materialised gradients as vectors, one piece of the parameters after another.

Shapes: B, D examples of two blocks, C outputs, P materialised numbers, R and S rows of two sides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillens.kernel.factors.factor import Pairing
from distillens.kernel.factors.limits import Limits

_ALIGNED = 64
"""Pieces are multiples of this length, so that products run at full speed."""


def empty_tile(left_BCP: Tensor, right_DCP: Tensor, pairing: Pairing) -> Tensor:
    """Return zeros to add products to: in float64, (C, B, D), for "full" (B, C, D, C)."""
    B, C, _ = left_BCP.shape
    D = len(right_DCP)
    shape = (B, C, D, C) if pairing == "full" else (C, B, D)
    return left_BCP.new_zeros(shape, dtype=torch.float64)


def add_products(
    tile: Tensor,
    left_BCP: Tensor,
    right_DCP: Tensor,
    pairing: Pairing,
    limits: Limits,
    *,
    upper: bool,
) -> None:
    """Add the products of materialised gradients to a tile.

    Parameters
    ----------
    tile
        In float64, (C, B, D), for "full" (B, C, D, C).
    left_BCP, right_DCP
        The gradients of two blocks.
    pairing
        Which pairs of outputs are contracted.
    limits
        Sizes of pieces and strips.
    upper
        The two blocks are the same; only the upper triangle, in whole strips, is computed.
    """
    if pairing == "full":
        rows, columns = left_BCP.flatten(0, 1), right_DCP.flatten(0, 1)
        sides = [(tile.view(len(rows), len(columns)), rows, columns)]
    else:
        sides = list(zip(tile, left_BCP.unbind(1), right_DCP.unbind(1), strict=True))
    for total_RS, left_RP, right_SP in sides:
        step = limits.strip_on(tile.device) if upper else len(left_RP)
        for start in range(0, len(left_RP), max(1, step)):
            rows, columns = slice(start, start + step), slice(start if upper else 0, None)
            _add_pieces(total_RS[rows, columns], left_RP[rows], right_SP[columns], limits)


def mirror(tile: Tensor, pairing: Pairing) -> None:
    """Copy the upper triangle of a tile to the lower one."""
    rows = tile.shape[0] * tile.shape[1]
    for side_RR in [tile.view(rows, rows)] if pairing == "full" else tile:
        side_RR.triu_()
        side_RR += side_RR.triu(1).T


def _add_pieces(total_RS: Tensor, left_RP: Tensor, right_SP: Tensor, limits: Limits) -> None:
    """Add the products of all rows.

    The products of pieces are added in float64; a float32 sum over all parameters would lose digits.
    """
    P = left_RP.shape[1]
    # The pieces have equal lengths, so that the last one is not much shorter.
    pieces = max(1, -(-P // limits.piece))
    piece = max(1, P // pieces)
    if pieces > 1 and piece > _ALIGNED:
        piece -= piece % _ALIGNED
    accelerator = limits.on_accelerator(total_RS.device)
    step = piece * limits.pieces_at_once(total_RS.numel(), accelerator)
    whole = P - P % piece
    for start in range(0, whole, step):
        stop = min(start + step, whole)
        left, right = (
            each[:, start:stop].unflatten(1, (-1, piece)).transpose(0, 1)
            for each in (left_RP, right_SP)
        )
        _add_batch(total_RS, left, right, accelerator)
    if whole < P:
        total_RS += left_RP[:, whole:] @ right_SP[:, whole:].T


def _add_batch(total_RS: Tensor, left: Tensor, right: Tensor, accelerator: bool) -> None:
    # A function of its own, so that these products are freed before the next ones are made.
    if accelerator:
        total_RS += torch.bmm(left, right.mT).sum(dim=0, dtype=total_RS.dtype)
        return
    for product in torch.bmm(left, right.mT):
        total_RS += product
