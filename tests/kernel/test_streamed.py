"""Streamed gradients: the same kernel, if all examples are contracted at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from ntk_cases import RULES, SLOW_TO_MOVE, of_full, rules_ntk
from torch import Tensor, nn

from distillens.kernel import oracle_gram
from distillens.kernel.factors.contraction import mirror
from distillens.kernel.factors.factor import Pairing
from distillens.kernel.factors.limits import Limits
from distillens.kernel.factors.outer_products import OuterProducts
from distillens.kernel.factors.streamed import Streamed, StreamedShape, streamed_scratch
from distillens.kernel.rules.convolution import ConvolutionGradients, Window
from distillens.kernel.tracing.directions import Outputs
from distillens.kernel.tracing.memory import LiveBytes

FORMS: tuple[Outputs, ...] = (1, "class-diagonal", "trace", "full")
SLOW = replace(RULES, speed=SLOW_TO_MOVE)


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


def strategies(found: Any) -> dict[str, str]:
    return {layer.parameters[0]: layer.strategy for layer in found.plan.layers}


@pytest.mark.parametrize("outputs", FORMS)
@pytest.mark.parametrize("numbers", [1, 700, 2**24])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_streamed_gram_is_the_oracles(outputs: Outputs, numbers: int, threads: int) -> None:
    # One column at a time, some and a rest, and all of them.
    limits = replace(SLOW, streamed_numbers=numbers, pass_numbers=5000)
    torch.set_num_threads(threads)
    try:
        kernel = rules_ntk(mixer(), limits, outputs=outputs, dtype=torch.float64)
        found = kernel.gram(examples())
    finally:
        torch.set_num_threads(1)
    assert strategies(found)["wide.weight"] == strategies(found)["narrow.weight"] == "streamed"
    assert found.plan.sizes.forward < 11
    assert found.plan.sizes.tile == 11
    wanted = of_full(oracle_gram(mixer(), examples(), outputs="full"), outputs)
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-12)


def test_streaming_is_for_symmetric_grams_of_few_examples(tmp_path: Any) -> None:
    kernel = rules_ntk(mixer(), SLOW, outputs=0)
    assert "streamed" in strategies(kernel.gram(examples())).values()
    assert "streamed" not in strategies(kernel.gram(examples(), examples(5))).values()
    assert "streamed" not in strategies(kernel.gram(examples(), store=tmp_path)).values()
    assert not kernel.product(examples())._made(0).streamed
    fewer = rules_ntk(mixer(), replace(SLOW, single_tile_examples=10), outputs=0)
    assert "streamed" not in strategies(fewer.gram(examples())).values()


def test_if_memory_is_short_gradients_are_materialised() -> None:
    kernel = rules_ntk(mixer(), SLOW, outputs=0)
    roomy = kernel.gram(examples(200))
    assert roomy.plan.sizes.tile == 200
    kernel._max_memory = roomy.plan.memory
    assert "streamed" in strategies(kernel.gram(examples(200))).values()
    kernel._max_memory = roomy.plan.memory - 1
    tight = kernel.gram(examples(200))
    assert "streamed" not in strategies(tight).values()
    assert tight.plan.memory < roomy.plan.memory
    size = roomy.values.abs().max()
    torch.testing.assert_close(tight.values / size, roomy.values / size, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("pairing", ["diagonal", "full"])
@pytest.mark.parametrize("numbers", [1, 60, 2**24])
def test_parts_contract_as_their_gradients_do(pairing: Pairing, numbers: int) -> None:
    limits = Limits(streamed_numbers=numbers)
    generator = torch.Generator().manual_seed(0)

    def part(examples: int) -> OuterProducts:
        inputs = torch.randn(examples, 1, 4, 5, generator=generator, dtype=torch.float64)
        gradients = torch.randn(examples, 2, 1, 4, 3, generator=generator, dtype=torch.float64)
        return OuterProducts(inputs, gradients, ("weight", "bias"))

    parts = [part(2), part(3)]
    # Columns first, as they are materialised.
    materialised = torch.cat([each.gradient("weight") for each in parts])
    equation = "bcp,dep->bcde" if pairing == "full" else "bcp,dcp->cbd"
    wanted = torch.einsum(equation, materialised, materialised)
    tile, kept = torch.zeros_like(wanted), Streamed(parts, limits)
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
def test_convolutions_are_streamed_some_channels_at_a_time(
    outputs: Literal[1, "full"], numbers: int, made: int
) -> None:
    limits = replace(SLOW, streamed_numbers=numbers, streamed_inputs=made, pass_numbers=5000)
    torch.manual_seed(3)
    model = Pictures().eval()
    kernel = rules_ntk(model, limits, outputs=outputs, dtype=torch.float64)
    inputs = pictures().double()
    with LiveBytes() as live:
        found = kernel.gram(inputs)
    assert live.peak <= found.plan.memory + 8192  # indices and a few numbers of each layer
    assert found.plan.sizes.forward < 11
    kept = {"first.weight", "second.weight", "along.weight"}
    assert {name for name, each in strategies(found).items() if each == "streamed"} == kept
    wanted = oracle_gram(model, pictures(), outputs=outputs)
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-12)


def test_streamed_convolutions_take_less_memory_than_their_gradients() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 32, 3), nn.Tanh(), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(256, 1)
    )
    inputs = torch.randn(300, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    kept = rules_ntk(model.eval(), SLOW, outputs=0).gram(inputs)
    limits = replace(SLOW, single_tile_examples=1)
    materialised = rules_ntk(model.eval(), limits, outputs=0).gram(inputs)
    assert strategies(kept)["2.weight"] == "streamed"
    assert strategies(materialised)["2.weight"] != "streamed"
    assert kept.plan.layers[1].held == 32 * 4**2 + 64 * 2**2
    torch.testing.assert_close(kept.values, materialised.values, rtol=1e-5, atol=1e-4)


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
    kernel = rules_ntk(Unlike().eval(), SLOW, outputs=0)
    inputs = torch.randn(examples, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    with LiveBytes() as live:
        found = kernel.gram(inputs)
    assert {strategies(found)[f"{name}.weight"] for name in ("first", "second")} == {"streamed"}
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
    factor = ConvolutionGradients(pictures, window, gradients, ("weight",))
    with LiveBytes() as live:
        found = factor.input_columns(
            slice(1, 4), slice(2 * factor.column_unit, 5 * factor.column_unit)
        )
    unfolded = nn.functional.unfold(pictures[1:4, 2:5], kernel, stride=stride, padding=padding)
    torch.testing.assert_close(found, unfolded.mT)
    assert live.peak <= 4 * 3 * factor.column_scratch * 3 * factor.column_unit


def test_inputs_are_made_of_as_many_examples_as_a_cache_holds() -> None:
    shape = StreamedShape(
        outputs=1, fan_out=64, fan_in=900, column_unit=9, column_scratch=100, limits=Limits()
    )
    assert shape.columns(256) == 900
    # 2²⁰ numbers over 100 · 900 an example.
    assert shape.step(256) == 11
    assert shape.step(7) == 7
    wide = StreamedShape(
        outputs=1, fan_out=64, fan_in=900, column_unit=9, column_scratch=2000, limits=Limits()
    )
    assert wide.step(256) == 1
    assert streamed_scratch([shape, wide], 256) == 256 * 64 * 900 + 2000 * 900


class Sliced(nn.Module):
    """Linear maps of a small part of what a wide frozen one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(8, 1024).requires_grad_(False)
        self.part, self.head = nn.Linear(32, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.wide(x).tanh()[..., :32]).tanh().mean(dim=1))


def test_what_is_kept_keeps_nothing_larger_alive() -> None:
    limits = replace(SLOW, pass_numbers=2**16)
    kernel = rules_ntk(Sliced().eval(), limits, outputs=0)
    inputs = torch.randn(200, 8, 8, generator=torch.Generator().manual_seed(0))
    kernel._max_memory = kernel.plan(inputs).memory
    with LiveBytes() as live:
        found = kernel.gram(inputs)
    assert strategies(found)["part.weight"] == "streamed"
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
def test_a_module_may_use_its_memory_again(kind: str) -> None:
    limits = replace(SLOW, pass_numbers=500)
    torch.manual_seed(0)
    model = Reusing(nn.Linear(12, 20) if kind == "linear" else nn.Conv1d(3, 20, 10)).eval()
    found = rules_ntk(model, limits, outputs=0, dtype=torch.float64).gram(examples())
    assert strategies(found)["first.weight"] == "streamed"
    assert found.plan.sizes.forward < 11
    plain = nn.Sequential(model.first, nn.Tanh(), nn.Flatten(), model.head)
    wanted = oracle_gram(plain, 2 * examples(), outputs=0)
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-12)
