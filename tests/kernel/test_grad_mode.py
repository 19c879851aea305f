"""A kernel is the same in whatever grad mode it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillens.kernel import EmpiricalNTK, centred_ntk_alignment, ntk_similarity, oracle_gram

MODES = (torch.no_grad, torch.inference_mode)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def examples() -> Tensor:
    return torch.randn(9, 4, generator=torch.Generator().manual_seed(1))


def asked() -> list[Tensor]:
    """Return all that a kernel is asked for, of a network and inputs made here."""
    model, x = network(), examples()
    kernel = EmpiricalNTK(model, outputs=1)
    product = kernel.product(x)
    vector = torch.ones(9)
    return [
        *(kernel.gram(x).values, kernel.gram(x, x[:3]).values, oracle_gram(model, x, outputs=1)),
        *(kernel.diagonal(x), kernel.trace(x), kernel.matvec(x, vector), kernel.outputs_of(x)),
        *(product(vector), product.diagonal(), product.columns(torch.tensor([2]))),
        torch.tensor(kernel.product_error(product, x) < 1e-5),
        torch.tensor(ntk_similarity(model, model, x).value),
        torch.tensor(centred_ntk_alignment(model, model, x).value),
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_grad_mode_gives_the_same(mode: Callable[[], Any], threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        wanted = asked()
        with mode():
            found = asked()
    finally:
        torch.set_num_threads(1)
    assert wanted[0].abs().min() > 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.clone(), other, rtol=1e-5, atol=1e-6)
        assert not one.requires_grad


@pytest.mark.parametrize("mode", MODES)
def test_a_product_made_outside_works_inside(mode: Callable[[], Any]) -> None:
    product = EmpiricalNTK(network(), outputs=1, max_memory=2**20).product(examples())
    wanted = product(torch.ones(9))
    with mode():
        found = product(torch.ones(9))
    torch.testing.assert_close(found.clone(), wanted)
