"""The peers of the kernel benchmark compute the kernel; its cases and ratios say what they should."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import Options as KernelOptions
from kernel import measure_case, ratios
from kernel_cases import CASES, architecture, inputs_for, network_on
from kernel_floor import multiply_adds, recipe_multiply_adds
from kernel_peers import torch_func, torch_func_blocks, torch_func_chunks
from kernel_rewritten import rewritten
from own_process import Peak, run_child
from torch import nn

from distillens.kernel import EmpiricalNTK, ntk, oracle_gram
from distillens.kernel.factors.cost import Speed

PLENTY = 2**33


def set_speed(monkeypatch: pytest.MonkeyPatch, products: float, moved: float, other: float) -> None:
    """Give the machine a speed, at which Grams are computed by layer rules."""
    names = ["small_products", "patched", "thinly_patched", "convolved", "thinly_convolved"]
    forming: dict[str, float] = dict.fromkeys(names, other)
    monkeypatch.setattr(ntk, "measured_speed", lambda *_: Speed(products, moved, forming))
    monkeypatch.setattr(ntk, "jacobians_pay", lambda *_: False)


def small_network(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, classes)
    ).eval()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("budget", [PLENTY, 0])
def test_peers_equal_the_oracle_in_any_blocks(classes: int, budget: int) -> None:
    model, x = small_network(classes), torch.randn(5, 2, 6, 6)
    wanted = oracle_gram(model, x, outputs="full" if classes > 1 else 0)
    for setting in (2, 5):
        for method in (torch_func, torch_func_chunks, torch_func_blocks):
            found = method(model, x, setting, budget).double()
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_rewritten_transformer_is_the_same_function_with_the_same_kernel() -> None:
    model = architecture("transformer", 1)
    with torch.no_grad():  # else all scales are 1 and all shifts 0
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = torch.randn(2, 64, 128)
    other = rewritten(model)
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)
    grams = [oracle_gram(m, x, outputs=0, vectorised=False) for m in (model, other)]
    torch.testing.assert_close(grams[1], grams[0], rtol=1e-4, atol=1e-4)


def test_networks_are_the_same_each_time_and_hold_statistics() -> None:
    x = torch.randn(6, 3, 32, 32)
    one, two = (network_on("resnet20", 1, x) for _ in range(2))
    for (name, value), other in zip(
        one.state_dict().items(), two.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    assert not one.training
    variances = one.get_buffer("bn.running_var")
    assert not torch.equal(variances, torch.ones_like(variances))


def test_rows_of_the_reference_belong_to_its_examples() -> None:
    case = replace(CASES[-1], count=8, classes=3)
    assert case.positions(2) == [0, 1, 2, 12, 13, 14]


def line(method: str, seconds: float, **more: Any) -> dict[str, Any]:
    numbers = {"status": "ok", "cold_seconds": 2 * seconds, "seconds": seconds, "peak_bytes": 10}
    return {"case": CASES[0].name, "method": method, **numbers, "relative_error": 1e-7, **more}


def test_ratios_are_to_the_fastest_peer_that_is_right() -> None:
    lines = [
        line("distillens", 1.0, peak_bytes=5),
        line("torch.func", 6.0),
        line("torch.func-blocks", 4.0, status="out of memory"),
        line("nngeometry", 3.0, relative_error=0.1),
        line("nngeometry-jacobian", 5.0),
    ]
    found = ratios(CASES[0], lines)
    assert found["tuned"]["fastest_peer"] == "nngeometry-jacobian"
    assert found["tuned"]["times_faster"] == found["tuned"]["times_faster_cold"] == 5
    assert found["tuned"]["share_of_memory"] == 0.5
    assert found["published"]["fastest_peer"] == "torch.func"
    assert found["published"]["times_faster"] == 6
    assert set(found["left_out"]) == {"torch.func-blocks", "nngeometry"}


def test_a_method_counts_that_is_as_exact_as_float32_can_be() -> None:
    """Units at a kink put the same error into all float32 methods; the engine gets no more."""
    lines = [
        line("distillens", 1.0, relative_error=6e-4),
        line("torch.func", 2.0, relative_error=5.8e-4),
        line("nngeometry", 4.0, relative_error=9e-4),
    ]
    found = ratios(CASES[0], lines)
    assert found["published"]["times_faster"] == 2
    assert set(found["left_out"]) == {"nngeometry"}
    lines[0]["relative_error"] = 9e-4
    found = ratios(CASES[0], lines)
    assert set(found["left_out"]) == {"distillens", "nngeometry"}
    assert found["published"] == {"fastest_peer": "torch.func"}


def test_a_case_is_measured_in_children_and_failures_are_told(tmp_path: Path) -> None:
    options = KernelOptions(threads=1, repeats=0, timeout=60, memory=PLENTY, scale=0.01)
    (found,) = measure_case(CASES[1], ("nngeometry",), options)
    assert found["status"].startswith("not measured")
    script = tmp_path / "child.py"
    script.write_text(
        "import json; print(json.dumps({'event': 'cold'}), flush=True); import time; "
    )
    with script.open("a") as file:
        file.write("time.sleep(30)")
    said, wrong = run_child(script, {}, interpreter=sys.executable, threads=1, timeout=1)
    assert wrong == "timed out after 1 s"
    assert said == [{"event": "cold"}]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_what_was_held_at_most() -> None:
    peak = Peak()
    held = torch.ones(2**25)
    size = held.nbytes
    del held
    assert 0.9 * size < peak.above_baseline() < 1.5 * size


def test_the_floor_counts_what_a_gram_of_lenet_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    set_speed(monkeypatch, products=1e10, moved=1e9, other=1e9)
    case = next(case for case in CASES if case.network == "lenet5x8" and not case.full)
    found = multiply_adds(replace(case, count=64), None)
    first, second = 48 * 75 * 28**2, 128 * 48 * 25 * 10**2
    dense = 128 * 25 * 960 + 960 * 672 + 672
    # Forward; backward to all but the inputs; the gradients by the convolutions.
    passes = (first + second + dense) + (second + dense) + (first + second)
    assert found["passes_and_forming"] == 64 * passes
    held = 48 * (75 + 1) + 128 * (1200 + 1) + (3200 + 960) + (960 + 672) + (672 + 1)
    assert found["half_the_gram"] == 64 * 65 / 2 * held


def test_the_floor_counts_streamed_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    # If elementwise operations take the time, factors of few positions are kept.
    set_speed(monkeypatch, products=1e12, moved=1e6, other=1e12)
    case = replace(next(case for case in CASES if case.network == "transformer"), count=12)
    model, inputs = network_on("transformer", 1, torch.zeros(0)), inputs_for(case, None)
    assert "streamed" in {
        layer.strategy for layer in EmpiricalNTK(model, outputs=0).plan(inputs).layers
    }
    parameters = sum(weight.numel() for weight in model.parameters())
    assert multiply_adds(case, None)["half_the_gram"] == 12 * 13 / 2 * parameters


def test_the_recipes_multiply_adds_grow_with_examples_and_their_pairs() -> None:
    case = next(case for case in CASES if case.network == "transformer")
    few, more = (recipe_multiply_adds(replace(case, count=n), None) for n in (3, 6))
    assert few is not None
    assert more is not None
    parameters = sum(p.numel() for p in network_on("transformer", 1, torch.zeros(0)).parameters())
    # The Jacobians are twice as many, the pairs of examples four times. The bias of the single output
    # is multiplied without a matrix product, which the counter does not see.
    assert more - 2 * few == (6**2 - 2 * 3**2) * (parameters - 1)
    lenet = next(case for case in CASES if case.network == "lenet5x8")
    assert recipe_multiply_adds(replace(lenet, count=2), None) is None
