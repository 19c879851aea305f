"""What an accelerator needs, with the CPU in its place: few operations, no waiting, no TF32.

None of it was run on a GPU by these tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE_CASES, resnet18
from kernel_device import METHODS, measure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distillens.errors import KernelError
from distillens.kernel import EmpiricalNTK, blocks, oracle_gram, plan, rows, tiles, uses
from distillens.kernel.oracle import OutputForm

FORMS: tuple[int | OutputForm, ...] = (0, "class-diagonal", "trace", "full")


class Operations(TorchDispatchMode):
    """Counts the operations of torch, and how often a number is asked for on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.waits = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        asking = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default
        self.waits += func in asking
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_accelerator(monkeypatch: pytest.MonkeyPatch, rules_only: None) -> None:
    """Let the CPU be taken for an accelerator."""
    for module in (blocks, rows, tiles):
        monkeypatch.setattr(module, "is_parallel", lambda _: True)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 64), nn.Linear(64, 3)).eval()


def examples(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def counted(outputs: int | OutputForm, count: int) -> Operations:
    """Return the operations of a second Gram of a network."""
    kernel = EmpiricalNTK(network(), outputs=outputs, max_memory=2**33)
    kernel.gram(examples(16))
    with Operations() as operations:
        kernel.gram(examples(count))
    return operations


@pytest.mark.parametrize(("outputs", "first"), [(0, 512), ("full", 128)])
def test_operations_do_not_grow_with_the_examples(
    outputs: int | OutputForm, first: int, as_accelerator: None
) -> None:
    few, many = counted(outputs, first), counted(outputs, 4 * first)
    assert many.count <= 1.4 * few.count
    assert many.count <= 900
    # The inputs are looked through, the Gram at its end, and its check.
    assert few.waits == many.waits <= 16


@pytest.mark.parametrize("outputs", FORMS)
@pytest.mark.parametrize("cut", [False, True])
def test_few_large_operations_give_the_same_gram(
    outputs: int | OutputForm, cut: bool, as_accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cut:
        monkeypatch.setattr(rows, "PIECE", 100)
        monkeypatch.setattr(rows, "_PARALLEL_NUMBERS", 300)
        monkeypatch.setattr(rows, "_PARALLEL_STRIP", 3)
        monkeypatch.setattr(plan, "_PARALLEL_ROWS", 4)
        monkeypatch.setattr(plan, "_AT_ONCE", 1)
    found = EmpiricalNTK(network(), outputs=outputs, dtype=torch.float64).gram(examples(9))
    assert found.plan.sizes.tile == (4 if cut else 9)
    wanted = oracle_gram(network(), examples(9), outputs=outputs)
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-12)


def test_one_backward_pass_serves_all_outputs(as_accelerator: None) -> None:
    few, many = (counted(outputs, 64).count for outputs in (0, "full"))
    assert many < 1.5 * few


def test_backward_passes_that_cannot_be_batched_go_one_by_one(
    as_accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("vmap: no rule for odd")

    monkeypatch.setattr(uses, "_gradients_at_once", fails)
    found = EmpiricalNTK(network(), outputs="full", dtype=torch.float64).gram(examples(6))
    wanted = oracle_gram(network(), examples(6), outputs="full")
    torch.testing.assert_close(found.values, wanted)


def test_a_gram_that_is_not_finite_is_refused_at_its_end(as_accelerator: None) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False), Root())
    with torch.no_grad():
        next(model.parameters()).fill_(1.0)
    inputs = examples(13).abs()
    inputs[5] = 0
    with pytest.raises(KernelError, match="the Gram is not finite"):
        EmpiricalNTK(model, outputs=0).gram(inputs)


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
