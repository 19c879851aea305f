"""Gradients that are written late: the same kernel, where all examples fit at once."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from distillens.kernel import EmpiricalNTK, late, ntk, oracle_gram, plan
from distillens.kernel.directions import Outputs
from distillens.kernel.factors import Outer, Pairing
from distillens.kernel.late import Late
from distillens.kernel.memory import LiveBytes
from distillens.kernel.rows import mirror
from distillens.kernel.rules.convolution import Patched, Window
from distillens.kernel.ways import Speed

pytestmark = pytest.mark.usefixtures("rules_only")

FORMS: tuple[Outputs, ...] = (1, "class-diagonal", "trace", "full")


@pytest.fixture(autouse=True)
def _slow_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let moving numbers be what takes the time: factors of few positions are then kept."""
    slow = Speed(1e12, 1e12, 1e6, 1e12, 1e12, 1e12, 1e12)
    monkeypatch.setattr(ntk, "measured_speed", lambda *_: slow)


class Mixer(nn.Module):
    """Linear maps at few positions of many features, one of a part of what another gave."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(12, 20), nn.Linear(10, 16, bias=False)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.narrow(self.wide(x).tanh()[..., :10])).mean(dim=1))


def mixer() -> nn.Module:
    torch.manual_seed(2)
    return Mixer().eval()


def examples(count: int = 11) -> Tensor:
    return torch.randn(count, 3, 12, generator=torch.Generator().manual_seed(4))


def ways(found: Any) -> dict[str, str]:
    return {layer.parameters[0]: layer.way for layer in found.plan.layers}


@pytest.mark.parametrize("outputs", FORMS)
@pytest.mark.parametrize("numbers", [1, 700, 2**24])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_gram_written_late_is_the_oracles(
    outputs: Outputs, numbers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One column at a time, some and a rest, and all of them.
    monkeypatch.setattr(late, "_NUMBERS", numbers)
    monkeypatch.setattr(plan, "_FORWARD_NUMBERS", 5000)
    torch.set_num_threads(threads)
    try:
        found = EmpiricalNTK(mixer(), outputs=outputs, dtype=torch.float64).gram(examples())
    finally:
        torch.set_num_threads(1)
    assert ways(found)["wide.weight"] == ways(found)["narrow.weight"] == "late"
    assert found.plan.sizes.forward < 11
    assert found.plan.sizes.tile == 11
    wanted = oracle_gram(mixer(), examples(), outputs="full")
    if outputs != "full":
        apart = torch.einsum("ncmc->cnm", wanted.view(11, 3, 11, 3))
        wanted = {"class-diagonal": apart, "trace": apart.mean(dim=0)}.get(str(outputs), apart[1])
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-12)


def test_it_is_for_grams_of_few_examples_with_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    kernel = EmpiricalNTK(mixer(), outputs=0)
    assert "late" in ways(kernel.gram(examples())).values()
    assert "late" not in ways(kernel.gram(examples(), examples(5))).values()
    assert "late" not in ways(kernel.gram(examples(), store=tmp_path)).values()
    assert not kernel.product(examples())._made(0).late
    monkeypatch.setattr(plan, "_AT_ONCE", 10)
    assert "late" not in ways(kernel.gram(examples())).values()


def test_without_the_room_gradients_are_written_at_once() -> None:
    kernel = EmpiricalNTK(mixer(), outputs=0)
    roomy = kernel.gram(examples(200))
    assert roomy.plan.sizes.tile == 200
    kernel._max_memory = roomy.plan.memory
    assert "late" in ways(kernel.gram(examples(200))).values()
    kernel._max_memory = roomy.plan.memory - 1
    tight = kernel.gram(examples(200))
    assert "late" not in ways(tight).values()
    assert tight.plan.memory < roomy.plan.memory
    size = roomy.values.abs().max()
    torch.testing.assert_close(tight.values / size, roomy.values / size, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("pairing", ["diagonal", "full"])
@pytest.mark.parametrize("numbers", [1, 60, 2**24])
def test_parts_contract_as_their_gradients_do(
    pairing: Pairing, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "_NUMBERS", numbers)
    generator = torch.Generator().manual_seed(0)

    def part(examples: int) -> Outer:
        inputs = torch.randn(examples, 1, 4, 5, generator=generator, dtype=torch.float64)
        gradients = torch.randn(examples, 2, 1, 4, 3, generator=generator, dtype=torch.float64)
        return Outer(inputs, gradients, ("weight", "bias"))

    parts = [part(2), part(3)]
    # Columns first, as they are written.
    written = torch.cat([each.gradient("weight") for each in parts])
    equation = "bcp,dep->bcde" if pairing == "full" else "bcp,dcp->cbd"
    wanted = torch.einsum(equation, written, written)
    tile, kept = torch.zeros_like(wanted), Late(parts)
    kept.add(tile, pairing, torch.empty(kept.shape.gradients(5), dtype=torch.float64))
    mirror(tile, pairing)
    torch.testing.assert_close(tile, wanted)


class Pictures(nn.Module):
    """Convolutions: padded, of its inputs, strided and dilated, and one along rows alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 5, padding=1)
        self.second = nn.Conv2d(6, 8, (3, 2), stride=(2, 1), dilation=(1, 2), bias=False)
        self.along, self.head = nn.Conv1d(8, 5, 2, padding=1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x).tanh()).tanh().mean(dim=2)
        return self.head(self.along(hidden).tanh().mean(dim=2))


def pictures(count: int = 11) -> Tensor:
    return torch.randn(count, 3, 7, 6, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("outputs", [1, "full"])
@pytest.mark.parametrize("numbers", [1, 3000, 2**24])
@pytest.mark.parametrize("made", [1, 700, 2**20])
def test_convolutions_are_written_late_some_channels_at_a_time(
    outputs: Literal[1, "full"], numbers: int, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "_NUMBERS", numbers)
    monkeypatch.setattr(late, "_MADE", made)
    monkeypatch.setattr(plan, "_FORWARD_NUMBERS", 5000)
    torch.manual_seed(3)
    model = Pictures().eval()
    kernel, inputs = EmpiricalNTK(model, outputs=outputs, dtype=torch.float64), pictures().double()
    with LiveBytes() as live:
        found = kernel.gram(inputs)
    assert live.peak <= found.plan.memory + 8192  # indices and a few numbers of each layer
    assert found.plan.sizes.forward < 11
    kept = {"first.weight", "second.weight", "along.weight"}
    assert {name for name, way in ways(found).items() if way == "late"} == kept
    wanted = oracle_gram(model, pictures(), outputs=outputs)
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-12)


def test_late_convolutions_take_less_room_than_their_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 32, 3), nn.Tanh(), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(256, 1)
    )
    inputs = torch.randn(300, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    kept = EmpiricalNTK(model.eval(), outputs=0).gram(inputs)
    monkeypatch.setattr(plan, "_AT_ONCE", 1)
    written = EmpiricalNTK(model.eval(), outputs=0).gram(inputs)
    assert ways(kept)["2.weight"] == "late"
    assert ways(written)["2.weight"] != "late"
    assert kept.plan.layers[1].held == 32 * 4**2 + 64 * 2**2
    torch.testing.assert_close(kept.values, written.values, rtol=1e-5, atol=1e-4)


class Unlike(nn.Module):
    """A convolution whose patches take most room, and a linear map whose gradients do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64, 1024)
        self.head = nn.Linear(1024, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x).tanh().flatten(2).mT)
        return self.head(hidden.tanh().mean(dim=1))


@pytest.mark.parametrize("examples", [40, 80])
def test_uses_that_take_room_in_other_ways_fit_the_plan_together(examples: int) -> None:
    kernel = EmpiricalNTK(Unlike().eval(), outputs=0)
    inputs = torch.randn(examples, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    with LiveBytes() as live:
        found = kernel.gram(inputs)
    assert {ways(found)[f"{name}.weight"] for name in ("first", "second")} == {"late"}
    assert live.peak <= found.plan.memory + 8192  # indices and a few numbers of each layer


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3), (1, 1), (1, 1)), ((2, 2), (4, 4), (0, 0)), ((3, 2), (3, 1), (2, 0))],
)
def test_what_columns_make_is_known(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], last: bool
) -> None:
    high, wide = padding
    window = Window(kernel, stride, (wide, wide, high, high), (1, 1), 1)
    pictures = torch.randn(5, 6, 12, 12)
    if last:
        pictures = pictures.contiguous(memory_format=torch.channels_last)
    positions = nn.functional.unfold(pictures, kernel, stride=stride, padding=padding).shape[2]
    gradients = torch.randn(5, 1, 1, 4, positions).mT
    factor = Patched(pictures, window, gradients, ("weight",))
    with LiveBytes() as live:
        found = factor.columns(slice(1, 4), slice(2 * factor.unit, 5 * factor.unit))
    unfolded = nn.functional.unfold(pictures[1:4, 2:5], kernel, stride=stride, padding=padding)
    torch.testing.assert_close(found, unfolded.mT)
    assert live.peak <= 4 * 3 * factor.made * 3 * factor.unit


def test_inputs_are_made_of_as_many_examples_as_a_cache_holds() -> None:
    shape = late.LateShape(outputs=1, fan_out=64, fan_in=900, unit=9, made=100)
    assert shape.columns(256) == 900
    # 2²⁰ numbers over 100 · 900 an example.
    assert shape.step(256) == 11
    assert shape.step(7) == 7
    wide = late.LateShape(outputs=1, fan_out=64, fan_in=900, unit=9, made=2000)
    assert wide.step(256) == 1
    assert late.late_scratch([shape, wide], 256) == 256 * 64 * 900 + 2000 * 900


class Sliced(nn.Module):
    """Linear maps of a small part of what a wide frozen one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(8, 1024).requires_grad_(False)
        self.part, self.head = nn.Linear(32, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.wide(x).tanh()[..., :32]).tanh().mean(dim=1))


def test_what_is_kept_keeps_nothing_larger_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_FORWARD_NUMBERS", 2**16)
    kernel = EmpiricalNTK(Sliced().eval(), outputs=0)
    inputs = torch.randn(200, 8, 8, generator=torch.Generator().manual_seed(0))
    kernel._max_memory = kernel.plan(inputs).memory
    with LiveBytes() as live:
        found = kernel.gram(inputs)
    assert ways(found)["part.weight"] == "late"
    assert found.plan.sizes.forward < 20
    assert live.peak <= found.plan.memory + 8192  # indices and a few numbers of each layer


class Reusing(nn.Module):
    """Writes what it makes of its inputs to one place for each shape, whoever still looks at it."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.head = first, nn.Linear(60, 1)
        self.places: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        here = self.places.setdefault(x.shape, torch.empty_like(x))
        torch.mul(x, 2, out=here)
        return self.head(self.first(here).tanh().flatten(1))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_module_may_use_its_memory_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_FORWARD_NUMBERS", 500)
    torch.manual_seed(0)
    model = Reusing(nn.Linear(12, 20) if kind == "linear" else nn.Conv1d(3, 20, 10)).eval()
    found = EmpiricalNTK(model, outputs=0, dtype=torch.float64).gram(examples())
    assert ways(found)["first.weight"] == "late"
    assert found.plan.sizes.forward < 11
    plain = nn.Sequential(model.first, nn.Tanh(), nn.Flatten(), model.head)
    wanted = oracle_gram(plain, 2 * examples(), outputs=0)
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-12)
