"""Small Grams by plain Jacobians: the same kernel, the same bound, the same refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import CASES, inputs_for, network_on
from ntk_cases import FORMS, images, of_full, record_traces, rules_ntk, small_network
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel import EmpiricalNTK, NTKGram, oracle_gram
from distillens.kernel.assembly.fallback import FallbackGradients
from distillens.kernel.factors.limits import Limits
from distillens.kernel.planning.cost_model import jacobians_pay
from distillens.kernel.tracing.directions import Outputs
from distillens.kernel.tracing.memory import LiveBytes


def network() -> nn.Module:
    return small_network(seed=1)


def examples(count: int = 7, seed: int = 0) -> Tensor:
    return images(count, seed=seed)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record each trace of a network and each verification of one."""
    return record_traces(monkeypatch)


@pytest.mark.parametrize("outputs", FORMS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_gram_by_jacobians_is_the_oracles(
    outputs: Outputs, threads: int, traces: list[str]
) -> None:
    limits = Limits(jacobians=True, pass_numbers=500)
    torch.set_num_threads(threads)
    kernel = rules_ntk(network(), limits, outputs=outputs, dtype=torch.float64)
    found = kernel.gram(examples())
    crossed = kernel.gram(examples(), examples(3, seed=5))
    torch.set_num_threads(1)
    assert traces == []
    assert found.notes == ()
    assert "all parameters" in str(found.plan)
    assert found.plan.sizes.forward < 7
    wanted = of_full(oracle_gram(network(), examples(), outputs="full"), outputs)
    other = oracle_gram(network(), examples(), examples(3, seed=5), outputs="full")
    torch.testing.assert_close(crossed.values, of_full(other, outputs), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-12)
    assert found.check.residual < 1e-12


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[4]], ids=lambda case: case.name)
def test_networks_of_the_benchmark_have_the_same_gram_either_way(
    case: Any, traces: list[str]
) -> None:
    small = case.scaled(4 / case.count)
    x = inputs_for(small, None)
    model = network_on(case.network, case.classes, x)
    outputs: Outputs = "full" if case.full else 0
    by_jacobians = EmpiricalNTK(model, outputs=outputs).gram(x).values
    assert traces == []
    by_rules = rules_ntk(model, outputs=outputs).gram(x).values
    assert traces == ["find_coverage"]
    size = by_rules.abs().max()
    torch.testing.assert_close(by_jacobians / size, by_rules / size, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("examples", "outputs", "parameters", "activations", "pays"),
    [
        (32, 1, 269_137, 381_344, True),  # ResNet-20
        (32, 10, 269_722, 381_344, True),
        (512, 1, 269_137, 381_344, False),
        (32, 1, 793_217, 395_392, True),  # the transformer
        (256, 1, 793_217, 395_392, False),
        (32, 1, 3_876_801, 92_960, False),  # LeNet-5x8
    ],
)
def test_the_cost_model_chooses_what_was_measured_faster(
    examples: int, outputs: int, parameters: int, activations: int, pays: bool
) -> None:
    assert jacobians_pay(examples, outputs, parameters, activations) == pays


def wide() -> nn.Module:
    """Return a network whose activations take most room."""
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 24, 3, padding=1), nn.Tanh(), nn.Conv2d(24, 24, 1), nn.Tanh()
    return nn.Sequential(*layers, nn.Conv2d(24, 24, 1), nn.GELU(), nn.Flatten(), nn.Linear(1536, 3))


@pytest.mark.parametrize("make", [network, wide])
@pytest.mark.parametrize("outputs", [0, "full", "trace"])
def test_jacobians_take_no_more_than_planned(
    make: Callable[[], nn.Module], outputs: Outputs
) -> None:
    # For so small a network the setup takes most memory.
    limits = Limits(jacobians=True, reserve_setup=False)
    kernel = rules_ntk(make(), limits, outputs=outputs)
    with LiveBytes() as live:
        found = kernel.gram(examples(20))
    assert live.peak <= found.plan.memory
    assert kernel.plan(examples(20)).memory == found.plan.memory


def test_jacobians_that_hardly_fit_are_not_made(traces: list[str]) -> None:
    kernel = EmpiricalNTK(network(), outputs=0)
    roomy = kernel.gram(examples(20))
    assert traces == []
    kernel._max_memory = kernel._network.setup_bytes(examples(20)) * 3 // 2
    tight = kernel.gram(examples(20))
    assert traces[0] == "find_coverage"
    assert tight.plan.memory <= kernel._max_memory
    torch.testing.assert_close(tight.values, roomy.values, rtol=1e-5, atol=1e-5)


class Centred(nn.Module):
    """Takes the mean over examples away, or a little of it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.head = share, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - self.share * x.mean(dim=0))


@pytest.mark.parametrize("share", [1.0, 1e-2])
@pytest.mark.parametrize(
    "inputs", [torch.randn(5, 4), torch.randn(1, 4), torch.ones(5, 4)], ids=["five", "one", "equal"]
)
def test_outputs_that_depend_on_other_examples_are_refused(share: float, inputs: Tensor) -> None:
    with pytest.raises(KernelError, match="other examples of its batch"):
        EmpiricalNTK(Centred(share), outputs=0).gram(inputs)


def test_outputs_that_depend_on_chance_are_refused() -> None:
    class Chancy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input + torch.rand(4))

    with pytest.raises(KernelError, match="differ between two calls"):
        EmpiricalNTK(Chancy(4, 2), outputs=0).gram(torch.randn(5, 4))


def test_a_network_that_torch_func_cannot_batch_is_computed_by_rules(traces: list[str]) -> None:
    class Asking(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * (2.0 if float(input.sum()) > 1e9 else 1.0)

    torch.manual_seed(0)
    model, x = Asking(4, 2), torch.randn(5, 4)
    found = EmpiricalNTK(model, outputs="full", dtype=torch.float64).gram(x)
    assert traces == ["find_coverage"]
    wanted = oracle_gram(model, x, outputs="full", vectorised=False)
    torch.testing.assert_close(found.values, wanted)


def test_embeddings_with_scaled_gradients_are_refused() -> None:
    model = nn.Sequential(
        nn.Embedding(6, 3, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(6, 2)
    )
    with pytest.raises(KernelError, match="scale_grad_by_freq=True"):
        EmpiricalNTK(model, outputs=0).gram(torch.randint(0, 6, (5, 2)))


def test_a_wrong_jacobian_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FallbackGradients.jacobians

    def wrong(*given: Any) -> list[Tensor]:
        *gradients, outputs_BC = right(*given)
        return [*(1.0005 * each for each in gradients), outputs_BC]

    monkeypatch.setattr(FallbackGradients, "jacobians", wrong)
    for outputs in (0, "class-diagonal", "trace", "full"):
        with pytest.raises(KernelError, match="failed its check"):
            EmpiricalNTK(network(), outputs=outputs).gram(examples())


def test_a_constant_kernel_is_checked_without_cancelling() -> None:
    """The kernel of a bias is 1 for all pairs; with a random sign for each example it could be lost."""
    found: NTKGram = EmpiricalNTK(nn.Linear(4, 2), outputs=0, parameters=["bias"]).gram(
        1e3 * torch.randn(4, 4)
    )
    torch.testing.assert_close(found.values, torch.ones(4, 4))
    assert found.check.residual < 1e-6
