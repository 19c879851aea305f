"""Augmentation as a function of (seed, epoch, index), done on whole batches.

Because nothing else enters, the teacher and every student see the same picture of an example in the
same epoch, teacher logits can be computed once, and a resumed run sees what it would have seen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from distillens.data.recipe import Augmentation


def random_integers(
    seed: int, epoch: int, indices_B: np.ndarray, stream: int, high: int
) -> np.ndarray:
    """Return (B,) integers in [0, high), a pure function of all arguments.

    A counter-based generator: the arguments are mixed by the finaliser of SplitMix64 (Steele, Lea,
    Flood 2014). ``stream`` tells draws for different purposes apart.
    """
    with np.errstate(over="ignore"):
        state = np.asarray(indices_B, dtype=np.int64).astype(np.uint64)
        for word in (stream, epoch, seed):
            state = _mix(state + np.uint64(0x9E3779B97F4A7C15) * np.uint64(word + 1))
    # The top 53 bits over so small a range: the bias is below high / 2**53.
    return ((state >> np.uint64(11)) % np.uint64(high)).astype(np.int64)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def augment(images_BCHW: Tensor, indices_B: np.ndarray, epoch: int, how: Augmentation) -> Tensor:
    """Return the pictures of these examples in this epoch, same shape and dtype."""
    device = images_BCHW.device
    if how.crop:
        size = 2 * how.crop + 1
        offsets = [
            torch.from_numpy(random_integers(how.seed, epoch, indices_B, stream, size)).to(device)
            for stream in (0, 1)
        ]
        height, width = images_BCHW.shape[-2:]
        padded = pad(images_BCHW, (how.crop,) * 4)
        # All crops as a view (B, C, size, size, H, W); only the chosen ones are copied.
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        rows = torch.arange(len(images_BCHW), device=device)
        images_BCHW = windows[rows, :, offsets[0], offsets[1]]
    if how.flip:
        mirrored = torch.from_numpy(random_integers(how.seed, epoch, indices_B, 2, 2)).to(device)
        choice = mirrored.bool()[:, None, None, None]
        images_BCHW = torch.where(choice, images_BCHW.flip(-1), images_BCHW)
    return images_BCHW
