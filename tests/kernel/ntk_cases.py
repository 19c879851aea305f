"""Networks, inputs, speeds and limits that the tests of kernels share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillens.kernel import EmpiricalNTK
from distillens.kernel.assembly import traced_network
from distillens.kernel.factors.cost import Speed
from distillens.kernel.factors.limits import Limits
from distillens.kernel.tracing.directions import Outputs

FORMS: tuple[Outputs, ...] = (1, (0, 2), "sum", "class-diagonal", "trace", "full")
RULES = Limits(jacobians=False)
"""No Gram is computed from plain Jacobians, however small it is."""


def speed(
    products: float,
    small_products: float,
    moved: float,
    patched: float,
    convolved: float,
    thinly_patched: float | None = None,
    thinly_convolved: float | None = None,
) -> Speed:
    """Return the speed of a machine."""
    forming = {
        "small_products": small_products,
        "patched": patched,
        "thinly_patched": thinly_patched or patched,
        "convolved": convolved,
        "thinly_convolved": thinly_convolved or convolved,
    }
    return Speed(products, moved, forming)


KNOWN_SPEED = speed(1e10, 1e9, 1e9, patched=1e8, convolved=1e9)
SLOW_TO_MOVE = speed(1e12, 1e12, 1e6, patched=1e12, convolved=1e12)
"""Elementwise operations take the time, so that factors of few positions are kept."""


def rules_ntk(model: nn.Module, limits: Limits = RULES, **options: Any) -> EmpiricalNTK:
    """Return the kernel of a network, by default from layer rules only."""
    return EmpiricalNTK(model, _limits=limits, **options)


def small_network(seed: int) -> nn.Module:
    """Return a convolution and two linear maps, for images of 8 x 8 pixels."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 6), nn.Tanh(), nn.Linear(6, 3)
    ).eval()


def images(count: int, side: int = 8, seed: int = 0) -> Tensor:
    """Return images of one channel."""
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(seed))


def of_full(full: Tensor, outputs: Outputs, count: int = 3) -> Tensor:
    """Return the Gram of some outputs, from that of all pairs of ``count`` outputs."""
    if outputs == "full":
        return full
    blocks_NCMC = full.unflatten(1, (-1, count)).unflatten(0, (-1, count))
    apart_CNM = torch.einsum("ncmc->cnm", blocks_NCMC)
    if outputs == "class-diagonal":
        return apart_CNM
    if outputs == "trace":
        return apart_CNM.mean(dim=0)
    direction = torch.zeros(count, dtype=full.dtype)
    if outputs == "sum":
        direction += 1
    else:
        first, *second = (outputs,) if isinstance(outputs, int) else outputs
        direction[first] = 1
        direction[second] = -1
    return torch.einsum("ncmd,c,d->nm", blocks_NCMC, direction, direction)


def record_traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the name of each trace of a network and each verification of one."""
    recorded: list[str] = []
    for name in ("find_coverage", "still_covers"):
        real = getattr(traced_network, name)

        def traced(*given: Any, real: Any = real, name: str = name) -> Any:
            recorded.append(name)
            return real(*given)

        monkeypatch.setattr(traced_network, name, traced)
    return recorded
