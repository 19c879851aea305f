"""Plain Jacobians by torch.func in place of layer rules: when they are the faster way.

The layer rules need a look at the network first (`coverage`), which takes as long as the gradients
of some forty examples. `torch.func.vmap` needs none, but writes out the gradient by every parameter
of every example, and often copies it. Which way a Gram takes is decided by counting:

    by rules       LOOK + N·C
    by Jacobians   N·C·(PASS + WRITE·P/A)

in units of one forward and backward pass of one example, for N examples, C outputs, P parameters and
A numbers that a forward pass of one example keeps for its backward pass. The constants were fitted
on a CPU, and never on a GPU, to LeNet-5x8 (P/A = 42), ResNet-20 (0.7) and a transformer (2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

_LOOK, _PASS, _WRITE = 40.0, 0.8, 0.4


def jacobians_pay(examples: int, outputs: int, parameters: int, activations: int) -> bool:
    """Return whether plain Jacobians are faster than rules that need a look at the network first.

    Parameters
    ----------
    examples, outputs
        N, those of both sides of the Gram together, and C.
    parameters, activations
        P, and A for one example.
    """
    passes = float(examples * outputs)
    by_jacobians = passes * (_PASS + _WRITE * parameters / max(1, activations))
    return by_jacobians < _LOOK + passes


@contextmanager
def batchable_attention() -> Iterator[None]:
    """Let attention be computed by operations that `torch.func.vmap` can batch."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
