"""Cost: multiply-adds worked out by hand from the layers' shapes, and a model left as it was."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillens.errors import MeasureError, ModelError, RecipeError
from distillens.models import ModelRecipe, build_model, measure_cost, save_weights
from distillens.results.base import from_json, to_json
from distillens.results.training import Cost


def cost(model: nn.Module, shape: tuple[int, ...]) -> Cost:
    return measure_cost(model, shape, device="cpu", batch=2, runs=3)


def lenet5() -> int:
    # Positions times weights of each layer: 28 pixels padded to 32, pooled to 14, 10, 5.
    convolutions = 28 * 28 * (25 * 1 * 6) + 10 * 10 * (25 * 6 * 16)
    return convolutions + 400 * 120 + 120 * 84 + 84 * 10


def resnet20() -> int:
    # 3x3 convolutions; six in each stage, the first of stages 2 and 3 halves the side.
    stem = 32 * 32 * (9 * 3 * 16)
    first = 6 * 32 * 32 * (9 * 16 * 16)
    second = 16 * 16 * (9 * 16 * 32) + 5 * 16 * 16 * (9 * 32 * 32)
    third = 8 * 8 * (9 * 32 * 64) + 5 * 8 * 8 * (9 * 64 * 64)
    return stem + first + second + third + 64 * 100


def vgg16() -> int:
    # Thirteen 3x3 convolutions on sides 32, 16, 8, 4 and 2.
    widths = [[3, 64, 64], [64, 128, 128], [128, 256, 256, 256], [256, *[512] * 3], [512] * 4]
    convolutions = sum(
        (32 >> stage) ** 2 * 9 * before * after
        for stage, chain in enumerate(widths)
        for before, after in pairwise(chain)
    )
    return convolutions + 512 * 512 + 512 * 512 + 512 * 10


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "expected"),
    [
        ("lenet5", (1, 28, 28), 10, lenet5()),
        ("resnet20", (3, 32, 32), 100, resnet20()),
        ("vgg16", (3, 32, 32), 10, vgg16()),
        ("mlp", (64,), 10, 64 * 128 + 128 * 10),
    ],
)
def test_multiply_adds_are_those_of_the_layers(
    name: str, shape: tuple[int, ...], outputs: int, expected: int
) -> None:
    assert cost(
        build_model(ModelRecipe(name=name), shape, outputs, seed=0), shape
    ).multiply_adds == (expected)


def test_the_well_known_sizes_come_out() -> None:
    assert lenet5() == 416_520
    assert round(resnet20() / 1e6, 1) == 40.6
    assert round(vgg16() / 1e6) == 314


def test_vgg16_has_the_size_known_on_cifar_and_takes_other_pictures() -> None:
    # 13 convolutions with biases, their batch normalisation, and 512-512-10.
    model = build_model(ModelRecipe(name="vgg16"), (3, 32, 32), 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 15_253_578
    for shape in ((1, 8, 8), (1, 28, 28), (3, 64, 64)):
        other = build_model(ModelRecipe(name="vgg16", dropout=0.1), shape, 3, seed=0)  # type: ignore[call-arg]
        assert other.eval()(torch.zeros(1, *shape)).shape == (1, 3)
    with pytest.raises(RecipeError, match=r"'vgg16': dropout: .*less than 1, got 1"):
        build_model(ModelRecipe(name="vgg16", dropout=1), (3, 32, 32), 10, seed=0)  # type: ignore[call-arg]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        # Depthwise: one filter a channel, not one for each pair.
        (nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), (6, 7, 7), 7 * 7 * 9 * 6),
        # Queries, keys, values and their product; two feed-forward layers; QKᵀ and its use.
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            (6, 8),
            6 * 8 * 24 + 6 * 8 * 8 + 2 * 6 * 8 * 16 + 2 * 6 * 6 * 8,
        ),
        # Four gates on the input and on the state, at six positions.
        (Recurrent(), (6, 8), 6 * 4 * 5 * (8 + 5)),
    ],
)
def test_fused_layers_count_what_they_do(
    model: nn.Module, shape: tuple[int, ...], expected: int
) -> None:
    assert cost(model, shape).multiply_adds == expected


def test_bytes_and_parameters_are_those_on_disk(tmp_path: Path) -> None:
    model = build_model(ModelRecipe(name="resnet8"), (3, 32, 32), 10, seed=0)
    next(model.parameters()).requires_grad_(False)
    save_weights(tmp_path / "a.safetensors", model)
    found = cost(model, (3, 32, 32))
    assert found.weights_bytes == (tmp_path / "a.safetensors").stat().st_size
    # Frozen weights are shipped too.
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_the_model_is_left_as_it_was() -> None:
    model = build_model(ModelRecipe(name="resnet8"), (3, 32, 32), 10, seed=0)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    model.get_submodule("bn").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layouts = {name: (t.stride(), t.data_ptr()) for name, t in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    random = torch.get_rng_state()
    cost(model, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {n: (t.stride(), t.data_ptr()) for n, t in model.state_dict().items()} == layouts
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.backends.mha.get_fastpath_enabled()


def test_latency_is_measured_and_survives_json() -> None:
    model = build_model(ModelRecipe(name="lenet5", width=4), (1, 28, 28), 10, seed=0)  # type: ignore[call-arg]
    found = measure_cost(model, (1, 28, 28), device="cpu", batch=64, runs=5)
    low, high = found.latency_quartiles_ms
    assert 0 < low <= found.latency_ms <= high
    # 64 pictures take longer than one, by far more than the noise of a busy machine.
    assert found.latency_batch_ms > 3 * found.latency_ms
    assert (found.batch, found.runs, found.threads, found.device) == (64, 5, 1, "cpu")
    assert from_json(Cost, to_json(found), "the cost") == found


def test_what_cannot_be_measured_is_refused() -> None:
    model = nn.Linear(3, 2)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"batch": 0}, "batch must be"),
        ({"runs": 0}, "runs must be"),
    )
    for arguments, message in refused:
        with pytest.raises(MeasureError, match=f"{message} at least 1, got 0"):
            measure_cost(model, (3,), device="cpu", **arguments)
    with pytest.raises(ModelError, match=r"cannot take inputs of shape \(4,\)"):
        measure_cost(model, (4,), device="cpu")
    with pytest.raises(ModelError, match="cannot be measured on nonsense"):
        measure_cost(model, (3,), device="nonsense")
