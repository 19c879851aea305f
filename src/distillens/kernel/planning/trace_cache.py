"""A cache of what tracing found about a model, so that its next Gram needs no new trace.

A trace (`tracing.coverage`) finds which calls use which parameters, and where the examples lie among
the axes of these calls. The strategies of contraction and the memory of a pass follow from it. All of
this is determined by the Python code that the network runs and by shapes, not by the values of weights,
provided that no weight decides which code runs. It is kept with the model (by a weak reference, so that
it is freed with the model) under a signature of everything that it was found for: the modules with
their types, modes, hooks and attributes; the parameters and buffers with their shapes, types and
``requires_grad``; the parameters to differentiate by; the type to compute in; the device; and the shape
and type of an example.

A cached trace is verified before it is used:

- If weights or buffers were written to since (by their version counters), it is compared with autograd
  in float64. A network that makes other calls, outputs that depend on other examples, and any parameter
  for which the rules disagree with autograd on an example alone start a new trace. Only the search for
  layouts is saved.
- If they were not, the same calls were compared with autograd before, and are not compared again.
- Every Gram is compared with plain autograd, whatever it was computed from.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn

from distillens.kernel.planning.cost_model import UsePlans
from distillens.kernel.tracing.coverage import Coverage
from distillens.kernel.tracing.memory import PassMemory

_MOST_SIGNATURES = 8
"""Signatures that are kept for a model; the oldest is dropped first."""


@dataclass
class CachedTrace:
    """What tracing found for one signature. It holds no tensor."""

    coverage: Coverage
    version: Hashable
    """The version of the weights for which the coverage was compared with autograd."""
    trace_bytes: int | None = None
    """Memory of a trace, once it was counted."""
    plans: dict[Hashable, UsePlans] = field(default_factory=dict)
    """By purpose, number of outputs and limits."""
    memory: dict[Hashable, PassMemory] = field(default_factory=dict)
    """The counted memory of a pass, by the same."""


_traces: WeakKeyDictionary[nn.Module, dict[Hashable, CachedTrace]] = WeakKeyDictionary()


def traces_of(model: nn.Module | None) -> dict[Hashable, CachedTrace]:
    """Return the cached traces of a model by signature, which the caller may change."""
    return {} if model is None else _traces.setdefault(model, {})


def cache_trace(
    traces: dict[Hashable, CachedTrace], signature: Hashable, found: CachedTrace
) -> None:
    """Keep a trace among those of a model."""
    traces.pop(signature, None)
    traces[signature] = found
    while len(traces) > _MOST_SIGNATURES:
        del traces[next(iter(traces))]
