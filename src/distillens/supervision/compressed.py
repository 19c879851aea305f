"""Logits kept for the top k classes, for tasks with many of them.

A row of a compressed block is (k largest logits, their k classes, one number): the number is what the
other C − k classes would each have if they shared the mass left out. At τ = 1 the probabilities of the
top k are those of the whole row; the others' are their mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def compress(logits_NC: Tensor, k: int) -> tuple[Tensor, float, float]:
    """Return (N, 2k + 1) rows, and the mean and the largest share of mass left out.

    Parameters
    ----------
    logits_NC
        (N, C), C > k. Classes are stored as float32, which is exact up to 16.7 million.
    """
    values, classes = logits_NC.topk(k, dim=1)
    whole = logits_NC.double().logsumexp(1)
    hidden = logits_NC.double().scatter(1, classes, -torch.inf).logsumexp(1)
    left_out = (hidden - whole).exp()
    each = hidden - math.log(logits_NC.shape[1] - k)
    rows = torch.cat([values.float(), classes.float(), each[:, None].float()], 1)
    return rows, float(left_out.mean()), float(left_out.max())


def expand(rows_BR: Tensor, classes: int) -> Tensor:
    """Return (B, C) logits from rows that ``compress`` made."""
    k = (rows_BR.shape[1] - 1) // 2
    whole = rows_BR[:, -1:].expand(-1, classes).clone()
    return whole.scatter(1, rows_BR[:, k : 2 * k].long(), rows_BR[:, :k])
