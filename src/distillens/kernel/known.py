"""What is known of networks from earlier looks, so that the next Gram need not look again.

A look at a network (`coverage`) finds which calls use which parameters and where the examples lie
among their axes; from that follow the ways of contraction and the room that a pass takes. All of it
is decided by the Python code that the network runs and by shapes, not by the values of weights, as
long as no weight decides which code runs. It is therefore kept with the model (by a weak reference,
so that it goes when the model goes) under a signature of everything that it was found for: the
modules with their types, modes, hooks and attributes, the parameters and buffers with their shapes,
types and `requires_grad`, the parameters that count, the type to compute in, the device, the shape and
type of an example.

What is kept is never trusted alone:

- If weights or buffers were written to since the last look (by their version counters), the look is
  verified: in float64, a network that makes other calls, outputs that depend on other examples, and
  any parameter for which the rules disagree with autograd on an example alone start a full look.
  Searching the layouts again is what is saved.
- If they were not, the same calls were compared with autograd before, and are not compared again.
- Every Gram is compared with plain autograd, whatever it was made from.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn

from distillens.kernel.coverage import Coverage
from distillens.kernel.parts import Parts
from distillens.kernel.passes import Passes
from distillens.kernel.ways import Purpose

_MOST_SIGNATURES = 8
"""Signatures that are kept for a model; the oldest goes first."""


@dataclass
class Known:
    """What a look at a network found, for one signature. It holds no tensor."""

    coverage: Coverage
    state: Hashable
    """Which values of the weights the coverage was compared with autograd for."""
    look_bytes: int | None = None
    """What the look takes, once it was counted."""
    parts: dict[tuple[Purpose, int], Parts] = field(default_factory=dict)
    """By how many outputs there are."""
    passes: dict[tuple[Purpose, int], Passes] = field(default_factory=dict)
    """What was counted of a pass."""


_known: WeakKeyDictionary[nn.Module, dict[Hashable, Known]] = WeakKeyDictionary()


def known_of(model: nn.Module | None, signature: Hashable) -> Known | None:
    """Return what is known of a model, if anything."""
    return None if model is None else _known.get(model, {}).get(signature)


def forget(model: nn.Module | None) -> None:
    """Forget what is known of a model."""
    if model is not None:
        _known.pop(model, None)


def remember(model: nn.Module | None, signature: Hashable, found: Known) -> None:
    """Keep what was found of a model as long as the model is there."""
    if model is None:
        return
    kept = _known.setdefault(model, {})
    kept.pop(signature, None)
    kept[signature] = found
    while len(kept) > _MOST_SIGNATURES:
        del kept[next(iter(kept))]
