"""What an accelerator needs, with the CPU in its place: few operations, no waiting, no TF32.

None of it was run on a GPU by these tests.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE_CASES, resnet18
from kernel_device import METHODS, measure
from ntk_cases import RULES, rules_ntk
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel import EmpiricalNTK, oracle_gram
from distillens.kernel.tracing.directions import Outputs
from distillens.kernel.tracing.memory import LiveBytes

FORMS: tuple[Outputs, ...] = (0, "class-diagonal", "trace", "full")
ACCELERATOR = replace(RULES, accelerator=True)
"""The CPU is treated as an accelerator."""


class Operations(LiveBytes):
    """Counts the operations of torch, and how often a number is asked for on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        asking = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default
        self.waits += func in asking
        return super().__torch_dispatch__(func, types, args, kwargs)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 64), nn.Linear(64, 3)).eval()


def examples(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def counted(outputs: Outputs, count: int) -> Operations:
    """Return the operations of a second Gram of a network."""
    kernel = rules_ntk(network(), ACCELERATOR, outputs=outputs, max_memory=2**33)
    kernel.gram(examples(16))
    with Operations() as operations:
        kernel.gram(examples(count))
    return operations


@pytest.mark.parametrize(("outputs", "first"), [(0, 512), ("full", 128)])
def test_operations_do_not_grow_with_the_examples(outputs: Outputs, first: int) -> None:
    few, many = counted(outputs, first), counted(outputs, 4 * first)
    assert many.count <= 1.4 * few.count
    assert many.count <= 900
    # The inputs are looked through, the Gram at its end, and its check.
    assert few.waits == many.waits <= 16


@pytest.mark.parametrize("outputs", FORMS)
@pytest.mark.parametrize("cut", [False, True])
def test_few_large_operations_give_the_same_gram(outputs: Outputs, cut: bool) -> None:
    limits = ACCELERATOR
    if cut:
        limits = replace(
            ACCELERATOR,
            piece=100,
            accelerator_piece_numbers=300,
            accelerator_strip=3,
            accelerator_tile_rows=4,
            single_tile_examples=1,
        )
    kernel = rules_ntk(network(), limits, outputs=outputs, dtype=torch.float64)
    found = kernel.gram(examples(9))
    assert found.plan.sizes.tile == (4 if cut else 9)
    wanted = oracle_gram(network(), examples(9), outputs=outputs)
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-12)


def test_one_backward_pass_serves_all_outputs() -> None:
    few, many = (counted(outputs, 64).count for outputs in (0, "full"))
    assert many < 1.5 * few


class Cautious(torch.autograd.Function):
    """The identity, whose backward pass reads a number, which torch.func.vmap does not support."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        """Return the inputs."""
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradients."""
        assert float(gradients[0].sum()) < 1e30
        return gradients[0]


def test_backward_passes_that_cannot_be_batched_go_one_by_one() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Cautious.apply(x)  # type: ignore[return-value]

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), Odd(), nn.Tanh(), nn.Linear(5, 3))
    kernel = rules_ntk(model, ACCELERATOR, outputs="full", dtype=torch.float64)
    wanted = oracle_gram(model, examples(6), outputs="full", vectorised=False)
    torch.testing.assert_close(kernel.gram(examples(6)).values, wanted)


def test_a_gram_that_is_not_finite_is_refused_at_its_end() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False), Root())
    with torch.no_grad():
        next(model.parameters()).fill_(1.0)
    inputs = examples(13).abs()
    inputs[5] = 0
    with pytest.raises(KernelError, match="the Gram is not finite"):
        rules_ntk(model, ACCELERATOR, outputs=0).gram(inputs)


def test_products_are_not_rounded_to_tf32() -> None:
    cudnn: Any = torch.backends.cudnn
    products: Any = torch.backends.cuda.matmul
    convolutions = cudnn.conv
    before = convolutions.fp32_precision
    seen: set[str] = set()

    class Seeing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            seen.update((convolutions.fp32_precision, products.fp32_precision))
            return super().forward(input)

    convolutions.fp32_precision = "tf32"
    try:
        EmpiricalNTK(Seeing(4, 2), outputs=0).gram(torch.randn(5, 4))
        assert seen == {"ieee"}
        assert convolutions.fp32_precision == "tf32"
    finally:
        convolutions.fp32_precision = before


def test_a_resnet18_has_as_many_parameters_as_the_paper_s() -> None:
    assert sum(each.numel() for each in resnet18(1000).parameters()) == 11_689_512


def test_the_kernel_table_is_written_row_by_row(tmp_path: Path) -> None:
    out, cases = tmp_path / "kernel.json", [DEVICE_CASES[1]]
    lines: list[dict[str, Any]] = []
    for line in measure("cpu", seconds=600, out=out, cases=cases, scale=0.01, repeats=1):
        lines.append(line)
        assert json.loads(out.read_text())["rows"] == lines
    assert [(each["method"], each["setting"]) for each in lines] == list(METHODS)
    assert {each["status"] for each in lines} == {"ok"}
    assert all(each["relative_error"] < 1e-5 for each in lines)
    assert all(each["seconds"] > 0 for each in lines)
    late = list(measure("cpu", seconds=0, out=out, cases=cases, scale=0.01))
    assert {each["status"] for each in late} == {"not measured: out of time"}
