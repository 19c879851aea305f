"""Parallel passes: the same gradients, whatever a module keeps, and no setting is left changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest
import torch
from ntk_cases import RULES, rules_ntk
from torch import Tensor, nn

from distillens.kernel import EmpiricalNTK, oracle_gram
from distillens.kernel.assembly.block_maker import BlockMaker
from distillens.kernel.assembly.parallel_passes import parallel_pass_count
from distillens.kernel.planning.cost_model import typical_speed


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


class Forgetful(nn.Module):
    """Keeps what it made of its inputs on itself, and takes it up again a while later."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.kept = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.kept = torch.tanh(self.first(x))
        time.sleep(0.002)  # the other thread's turn
        return self.last(self.kept)


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 6), Forgetful()
    ).eval()


def examples() -> Tensor:
    return torch.randn(21, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def maker_of(kernel: EmpiricalNTK, inputs: Tensor) -> BlockMaker:
    """Return what makes the gradients of inputs."""
    kernel._network.trace(inputs)
    return kernel._network.maker(inputs, typical_speed(inputs.device), 10.0)


@pytest.mark.parametrize("outputs", [1, "class-diagonal", "full"])
def test_a_gram_by_two_threads_is_the_oracles(
    outputs: int | Literal["class-diagonal", "full"],
) -> None:
    gram = rules_ntk(network(), outputs=outputs, dtype=torch.float64).gram(examples())
    assert gram.plan.sizes.parallel_passes == 2
    assert "2 in parallel" in str(gram.plan)
    wanted = oracle_gram(network(), examples(), outputs=outputs)
    torch.testing.assert_close(gram.values, wanted, rtol=1e-10, atol=1e-12)


def test_both_threads_work_and_the_threads_of_operations_are_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_work: dict[int, int] = {}
    fill = BlockMaker._fill

    def noted(self: BlockMaker, *given: object) -> object:
        at_work[threading.get_ident()] = torch.get_num_threads()
        return fill(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockMaker, "_fill", noted)
    maker = maker_of(rules_ntk(network(), outputs=0), examples())
    maker.make(examples(), 3, 2)
    assert len(at_work) == 2
    assert set(at_work.values()) == {1}
    assert torch.get_num_threads() == 2


def test_an_error_in_a_thread_is_raised_and_the_next_call_works() -> None:
    class Wary(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.isinf().any():
                raise ValueError("cannot go on")
            return x

    inputs = examples()
    kernel = rules_ntk(nn.Sequential(Wary(), network()), outputs=0, dtype=torch.float64)
    inputs = inputs.double()
    maker = maker_of(kernel, inputs)
    spoilt = inputs.clone()
    spoilt[10] = torch.inf
    with pytest.raises(ValueError, match="cannot go on"):
        maker.make(spoilt, 3, 2)
    assert torch.get_num_threads() == 2
    whole = maker.make(inputs, 21).contract(maker.make(inputs, 3, 2), "diagonal")
    torch.testing.assert_close(whole[0], kernel.gram(inputs).values)


def test_a_network_that_computes_a_gram_of_its_own_ends() -> None:
    limits = replace(RULES, pass_numbers=1)
    torch.set_num_threads(4)

    # Made before any pass: parallel passes share one source of random weights.
    another, inputs = network(), examples()[:4]
    size = rules_ntk(another, limits, outputs=0).gram(inputs).values.sum()

    class Curious(nn.Module):
        """Multiplies by a number that another network's kernel gives."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                other = rules_ntk(another, limits, outputs=0).gram(inputs).values.sum()
            return self.inner(x) * (other / size).to(x.dtype)

    done = rules_ntk(Curious(), limits, outputs=0).gram(inputs)
    assert done.plan.sizes.parallel_passes == 2
    wanted = rules_ntk(network(), limits, outputs=0).gram(inputs).values
    torch.testing.assert_close(done.values, wanted, rtol=1e-4, atol=1e-5)


def test_an_odd_number_of_threads_and_the_fallback_make_one_pass_after_another() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = network(), nn.Parameter(torch.tensor(0.7))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.scale

    assert rules_ntk(Scaled(), outputs=0).gram(examples()).plan.sizes.parallel_passes == 1
    torch.set_num_threads(1)
    assert rules_ntk(network(), outputs=0).gram(examples()).plan.sizes.parallel_passes == 1
    assert parallel_pass_count(torch.device("cuda")) == 1
