"""NTK similarity against full Grams, and its laws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distillens.errors import KernelError
from distillens.kernel import centred_ntk_alignment, ntk_similarity, oracle_gram


def network(seed: int, outputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs)).eval()


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


def test_equals_the_cosine_of_full_gram_products(inputs: torch.Tensor) -> None:
    one, two = network(1), network(2)
    found = ntk_similarity(one, two, inputs, probes=5, seed=3, dtype=torch.float64, batch=3)
    grams = [oracle_gram(each, inputs, outputs="full") for each in (one, two)]
    generator = torch.Generator().manual_seed(3)
    wanted = []
    for _ in range(5):
        probe = torch.randn(7, 3, generator=generator, dtype=torch.float64).flatten()
        wanted.append(float(torch.cosine_similarity(grams[0] @ probe, grams[1] @ probe, dim=0)))
    assert found.cosines == pytest.approx(wanted, rel=1e-10)
    assert found.value == pytest.approx(sum(wanted) / 5)


def test_a_network_is_like_itself_and_like_its_multiple(inputs: torch.Tensor) -> None:
    one = network(1)
    assert ntk_similarity(one, one, inputs).value == pytest.approx(1, abs=1e-6)
    # Twice the last layer's units at half the weights, and so on, would move the kernel; inputs that
    # pass through a constant factor behind the network only scale it.
    scaled = nn.Sequential(one, Times(3.0)).eval()
    assert ntk_similarity(one, scaled, inputs).value == pytest.approx(1, abs=1e-6)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def test_different_networks_are_less_alike(inputs: torch.Tensor) -> None:
    found = ntk_similarity(network(1), network(2), inputs, probes=8)
    assert 0 < found.value < 0.99
    assert found.standard_error is not None
    assert ntk_similarity(network(1), network(2), inputs, probes=1).standard_error is None


@pytest.mark.parametrize(
    ("other", "probes", "words"),
    [(network(2, outputs=4), 4, "3 and 4 outputs"), (network(2), 0, "0 probes")],
)
def test_bad_input_is_one_line(
    other: nn.Module, probes: int, words: str, inputs: torch.Tensor
) -> None:
    with pytest.raises(KernelError, match=words):
        ntk_similarity(network(1), other, inputs, probes=probes)


def centred(gram: torch.Tensor) -> torch.Tensor:
    """Centre each of 3 outputs over 7 examples, on both sides of a full Gram."""
    h = torch.eye(7, dtype=torch.float64) - 1 / 7
    both = torch.kron(h, torch.eye(3, dtype=torch.float64))
    return both @ gram.double() @ both


def test_centred_alignment_is_that_of_full_grams(inputs: torch.Tensor) -> None:
    one, two = network(1), network(2)
    found = centred_ntk_alignment(one, two, inputs, probes=120, dtype=torch.float64)
    a, b = (centred(oracle_gram(each, inputs, outputs="full")) for each in (one, two))
    wanted = float((a * b).sum() / a.norm() / b.norm())
    assert found.standard_error is not None
    assert 0 < found.standard_error < 0.1
    assert abs(found.value - wanted) < 4 * found.standard_error
    assert centred_ntk_alignment(one, one, inputs, probes=2).value == pytest.approx(1, abs=1e-6)


def test_centred_alignment_forgets_a_constant(inputs: torch.Tensor) -> None:
    # A bias on the outputs adds one to every entry of their kernels, which centring takes out.
    free = nn.Sequential(nn.Linear(5, 3, bias=False)).double().eval()
    shifted = nn.Sequential(nn.Linear(5, 3)).double().eval()
    assert centred_ntk_alignment(free, shifted, inputs).value == pytest.approx(1, abs=1e-6)
    assert ntk_similarity(free, shifted, inputs).value < 0.99
