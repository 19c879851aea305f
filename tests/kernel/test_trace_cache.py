"""A cached trace is used only where it holds, and verified before it is used."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ntk_cases import images, record_traces, rules_ntk
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel import oracle_gram
from distillens.kernel.factors.limits import Limits
from distillens.kernel.planning import trace_cache
from distillens.kernel.tracing.network import copied


class Network(nn.Module):
    """A convolution, an activation that an attribute chooses, and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(144, 3)
        self.twice = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.conv(x)).tanh().flatten(1)
        return self.head(self.head(hidden).repeat(1, 48)) if self.twice else self.head(hidden)


def examples(count: int = 6, side: int = 8) -> Tensor:
    return images(count, side)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record each trace of a network and each verification of one."""
    return record_traces(monkeypatch)


def check(model: nn.Module, traces: list[str], **options: Any) -> list[str]:
    """Compare a Gram with the oracle's; return the traces that it took."""
    traces.clear()
    found = rules_ntk(model, outputs="full", dtype=torch.float64, **options).gram(examples())
    wanted = oracle_gram(model, examples(), outputs="full", **options)
    torch.testing.assert_close(found.values, wanted, rtol=1e-9, atol=1e-11)
    return list(traces)


def step(model: Any) -> None:
    with torch.no_grad():
        model.conv.weight.add_(0.1)


def buffer(model: Any) -> None:
    model.norm.running_mean += 0.3


def replaced(model: Any) -> None:
    model.conv.weight = nn.Parameter(0.5 * model.conv.weight.detach())


def attribute(model: Any) -> None:
    model.twice = True


def module(model: Any) -> None:
    model.norm = nn.GroupNorm(2, 4)


def hook(model: Any) -> None:
    model.conv.register_forward_hook(lambda *given: 2 * given[2])


def frozen(model: Any) -> None:
    model.conv.bias.requires_grad_(False)


def tied(model: Any) -> None:
    model.norm.bias = model.conv.bias


def forward(model: Any) -> None:
    model.forward = lambda x: Network.forward(model, 2 * x)


CHANGES: list[tuple[Callable[[Any], None], list[str]]] = [
    (lambda model: None, []),
    (step, ["still_covers"]),
    (buffer, ["still_covers"]),
    (replaced, ["find_coverage"]),
    (attribute, ["find_coverage"]),
    (module, ["find_coverage"]),
    (hook, ["find_coverage"]),
    (frozen, ["find_coverage"]),
    (tied, ["find_coverage"]),
]


@pytest.mark.parametrize(("change", "wanted"), CHANGES, ids=lambda x: getattr(x, "__name__", ""))
def test_a_changed_network_is_traced_as_far_as_it_changed(
    change: Callable[[Any], None], wanted: list[str], traces: list[str]
) -> None:
    model = Network().eval()
    assert check(model, traces) == ["find_coverage"]
    change(model)
    assert check(model, traces) == wanted
    assert check(model, traces) == []


def test_other_shapes_types_parameters_and_modes_are_traced(traces: list[str]) -> None:
    model = Network().eval()
    check(model, traces)
    assert check(model, traces, parameters=["conv.weight"]) == ["find_coverage"]
    traces.clear()
    rules_ntk(model, outputs="full").gram(examples())
    model.conv.train()
    rules_ntk(model, outputs="full").gram(examples())
    rules_ntk(copy.deepcopy(model), outputs="full").gram(examples())
    assert traces == 3 * ["find_coverage"]
    pooled: Any = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    traces.clear()
    for side in (8, 9, 8):
        rules_ntk(pooled, outputs=0).gram(examples(side=side))
    assert traces == 2 * ["find_coverage"]


def test_another_hook_in_the_place_of_one_is_seen(traces: list[str]) -> None:
    model = Network().eval()
    for factor in (2, 3):
        handle = model.conv.register_forward_hook(lambda *given, by=factor: by * given[2])
        assert check(model, traces) == ["find_coverage"]
        assert check(model, traces) == []
        model.conv._forward_hooks.pop(handle.id)


def test_a_path_that_changes_unseen_is_found_out(traces: list[str]) -> None:
    """Nothing that the model holds tells that its forward does something else."""
    twice: list[bool] = []

    class Hidden(Network):
        def forward(self, x: Tensor) -> Tensor:
            hidden = super().forward(x)
            return self.head(hidden.repeat(1, 48)) if twice else hidden

    model = Hidden().eval()
    assert check(model, traces) == ["find_coverage"]
    twice.append(True)
    assert check(model, traces) == ["find_coverage"]
    twice.clear()
    # The weights move too: the verification sees other calls.
    step(model)
    assert check(model, traces) == ["still_covers", "find_coverage"]


def test_rules_that_no_longer_hold_are_given_up(traces: list[str]) -> None:
    """A weight can decide what a parameter does, by code that makes the same calls."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.gate = nn.Linear(4, 4), nn.Parameter(torch.zeros(()), False)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.head(self.first(x).tanh())
            return hidden + self.gate * (x @ self.first.weight.T)[:, :2]

    model, x = Gate(), torch.randn(5, 4)
    for gate, notes in ((0.0, 0), (2.0, 1)):
        model.gate.data.fill_(gate)
        model.gate.add_(0.0)  # as an optimiser would write it
        found = rules_ntk(model, outputs="full", dtype=torch.float64).gram(x)
        wanted = oracle_gram(model, x, outputs="full")
        torch.testing.assert_close(found.values, wanted)
        assert len(found.notes) == notes
    assert traces == ["find_coverage", "still_covers", "find_coverage"]


def test_examples_that_begin_to_mix_are_refused() -> None:
    class Mixing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input + self.bias.sum() * input.mean(dim=0))

    model = Mixing(4, 2)
    nn.init.zeros_(model.bias)
    rules_ntk(model, outputs=0, parameters=["weight"]).gram(torch.randn(5, 4))
    nn.init.ones_(model.bias)
    with pytest.raises(KernelError, match="other examples of its batch"):
        rules_ntk(model, outputs=0, parameters=["weight"]).gram(torch.randn(5, 4))


def test_products_which_have_no_check_are_verified_each_time(traces: list[str]) -> None:
    model = Network().eval()
    for _ in range(2):
        rules_ntk(model, outputs=0).diagonal(examples())
    assert traces == ["find_coverage", "still_covers"]
    traces.clear()
    kernel = rules_ntk(model, outputs=0)
    kernel.gram(examples())
    kernel.diagonal(examples())
    kernel.product(examples())
    assert traces == ["still_covers"]


def test_nothing_is_kept_of_a_model_that_is_gone() -> None:
    model = Network().eval()
    rules_ntk(model, outputs=0).gram(examples())
    assert trace_cache._traces[model]
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_forward_that_calls_torch_func_has_a_kernel() -> None:
    """torch.func does not allow hooks on saved tensors, by which activations are counted."""

    class Force(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            def energy(x: Tensor) -> Tensor:
                return super(Force, self).forward(x).tanh().sum()

            return torch.func.vmap(torch.func.grad(energy))(input)

    torch.manual_seed(0)
    model, x = Force(4, 3), torch.randn(5, 4)
    found = rules_ntk(model, Limits(jacobians=True), outputs="full", dtype=torch.float64).gram(x)
    wanted = oracle_gram(model, x, outputs="full")
    torch.testing.assert_close(found.values, wanted)


def test_a_network_with_a_sparse_buffer_has_a_kernel() -> None:
    class Graph(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.register_buffer("edges", torch.eye(5).roll(1, 0).to_sparse())

        def forward(self, input: Tensor) -> Tensor:
            edges: Any = self.edges
            mixed = torch.sparse.mm(edges, input.transpose(0, 1).flatten(1))
            mixed = mixed.view(5, len(input), 4).transpose(0, 1)
            return super().forward(mixed).tanh().sum(dim=1)

    torch.manual_seed(0)
    model, x = Graph(), torch.randn(6, 5, 4)
    found = rules_ntk(model, outputs="full", dtype=torch.float64).gram(x)
    wanted = oracle_gram(model, x, outputs="full", vectorised=False)
    torch.testing.assert_close(found.values, wanted)


def test_a_copy_shares_no_memory_and_keeps_what_was_shared() -> None:
    model: Any = Network()
    model.register_buffer("whole", torch.zeros(6))
    model.register_buffer("part", model.whole[:3])
    made: Any = copied(model)
    for one, other in zip(model.state_dict().items(), made.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
        assert one[1].data_ptr() != other[1].data_ptr()
    assert made.part.data_ptr() == made.whole.data_ptr()
    assert isinstance(made.conv.weight, nn.Parameter)
    made.conv.register_forward_hook(lambda *_: None)
    assert not model.conv._forward_hooks
