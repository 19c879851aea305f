"""Augmentation as a function of (seed, epoch, index), done on whole batches.

Because nothing else enters, the teacher and every student see the same picture of an example in the
same epoch, teacher logits can be computed once, and a resumed run sees what it would have seen. The
random numbers are integer arithmetic on the device of the images, so every device gives the same bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from distillens.data.recipe import Augmentation

GAMMA = 0x9E3779B97F4A7C15


def random_bits(seed: int, epoch: int, indices_B: Tensor, streams: int) -> Tensor:
    """Return (streams, B) random integers in [0, 2**53), a pure function of all arguments.

    A counter-based generator: the arguments are mixed by the finaliser of SplitMix64 (Steele, Lea,
    Flood 2014). Streams serve different purposes; the first ones do not depend on how many there are.
    The computation takes place on the device of the indices, without the host waiting for it. The bias
    of the remainder of a division by a small number is below that number / 2**53.
    """
    stream = torch.arange(1, streams + 1, device=indices_B.device)[:, None]
    state = _mix(indices_B.to(torch.int64) + stream * _signed(GAMMA))
    for word in (epoch, seed):
        state = _mix(state + _signed(GAMMA * (word + 1)))
    return _shifted(state, 11)


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    # torch's shift of int64 repeats the sign; the algorithm is one of unsigned numbers.
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """Return the int64 with the same 64 bits; sums and products of both agree modulo 2**64."""
    return (word + 2**63) % 2**64 - 2**63


def augment(
    images_BCHW: Tensor, indices_B: np.ndarray | Tensor, epoch: int, how: Augmentation
) -> Tensor:
    """Return the pictures of these examples in this epoch, same shape and dtype."""
    device = images_BCHW.device
    bits = random_bits(how.seed, epoch, torch.as_tensor(indices_B).to(device), 3)
    if how.crop:
        size = 2 * how.crop + 1
        height, width = images_BCHW.shape[-2:]
        padded = pad(images_BCHW, (how.crop,) * 4)
        # All crops as a view (B, C, size, size, H, W); only the chosen ones are copied.
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        rows = torch.arange(len(images_BCHW), device=device)
        images_BCHW = windows[rows, :, bits[0] % size, bits[1] % size]
    if how.flip:
        choice = (bits[2] % 2).bool()[:, None, None, None]
        images_BCHW = torch.where(choice, images_BCHW.flip(-1), images_BCHW)
    return images_BCHW
