"""Models: known sizes, seeded weights, and checkpoints that are only ever tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from distillens.errors import CheckpointError, ModelError, RecipeError
from distillens.models import (
    ModelRecipe,
    build_model,
    count_parameters,
    load_state,
    load_weights,
    save_weights,
)

CIFAR = (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "parameters"),
    [
        # LeCun's layers with ReLU: 5·5·1·6+6 + 5·5·6·16+16 + 400·120+120 + 120·84+84 + 84·10+10.
        ("lenet5", {}, (1, 28, 28), 61_706),
        # Parameters as He et al. 2016 give them for CIFAR-10: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M.
        ("resnet20", {}, CIFAR, 269_722),
        ("resnet32", {}, CIFAR, 464_154),
        ("resnet44", {}, CIFAR, 658_586),
        ("resnet56", {}, CIFAR, 853_018),
        ("resnet110", {}, CIFAR, 1_727_962),
        ("mlp", {"hidden": [7]}, (4,), 4 * 7 + 7 + 7 * 10 + 10),
    ],
)
def test_sizes_are_the_known_ones(
    name: str, arguments: dict, shape: tuple[int, ...], parameters: int
) -> None:
    model = build_model(ModelRecipe(name=name, **arguments), shape, 10, seed=0)
    assert count_parameters(model) == parameters


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), CIFAR, (3, 64, 64), (1, 31, 29)])
@pytest.mark.parametrize("name", ["lenet5", "resnet8", "mlp"])
def test_models_take_pictures_of_any_size(name: str, shape: tuple[int, ...]) -> None:
    assert build_model(ModelRecipe(name=name), shape, 4, seed=0)(torch.zeros(2, *shape)).shape == (
        2,
        4,
    )


def test_lenet5x8_has_eight_times_the_width() -> None:
    model = build_model(ModelRecipe(name="lenet5", width=8), CIFAR, 100, seed=0)  # type: ignore[call-arg]
    widths = [tensor.shape[0] for name, tensor in model.named_parameters() if "weight" in name]
    assert widths == [48, 128, 960, 672, 100]


def test_weights_are_a_function_of_the_seed_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (
        build_model(ModelRecipe(name="mlp"), (4,), 2, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.1.weight"], other["layers.1.weight"])


def custom(input_shape: tuple[int, ...], outputs: int, scale: float = 1.0) -> nn.Module:
    return nn.Linear(input_shape[0], outputs)


def test_a_users_function_builds_only_when_trusted() -> None:
    recipe = ModelRecipe(name="test_models:custom", scale=2.0)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match="--trust-code"):
        build_model(recipe, (4,), 2, seed=0)
    assert isinstance(build_model(recipe, (4,), 2, seed=0, trust_code=True), nn.Linear)
    with pytest.raises(RecipeError, match="cannot be imported"):
        build_model(ModelRecipe(name="nowhere:f"), (4,), 2, seed=0, trust_code=True)


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"pictures .* shape \(4,\)"):
        build_model(ModelRecipe(name="lenet5"), (4,), 2, seed=0)
    with pytest.raises(RecipeError, match=r"width: .*integer.* got 'wide'"):
        build_model(ModelRecipe(name="lenet5", width="wide"), CIFAR, 2, seed=0)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match=r"'lenet5': width: .*greater than 0, got 0"):
        build_model(ModelRecipe(name="lenet5", width=0), CIFAR, 2, seed=0)  # type: ignore[call-arg]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    source, target = (build_model(ModelRecipe(name="mlp"), (4,), 2, seed=s) for s in (0, 1))
    if suffix == "pt":
        torch.save(source.state_dict(), path)
    else:
        save_weights(path, source)
    load_weights(path, target)
    for ours, theirs in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Evil:
    def __reduce__(self) -> tuple:
        return (Path("/tmp/distillens-evil").touch, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(2, 2), "damaged or holds objects other than tensors"),
        ({"a": Evil()}, "damaged or holds objects other than tensors"),
        ([1, 2], "no state dict: it holds a list"),
        ({"a": 3}, "entry 'a' is a int, not a tensor"),
        ({}, "an empty state dict"),
    ],
)
def test_a_checkpoint_that_is_no_state_dict_is_refused(
    tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_state(path)
    assert not Path("/tmp/distillens-evil").exists()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, build_model(ModelRecipe(name="mlp"), (4,), 3, seed=0))
    with pytest.raises(CheckpointError, match=r"has shape \(3, 128\), the model needs \(2, 128\)"):
        load_weights(path, build_model(ModelRecipe(name="mlp"), (4,), 2, seed=0))
    with pytest.raises(CheckpointError, match="has no weight"):
        load_weights(path, build_model(ModelRecipe(name="resnet8"), CIFAR, 3, seed=0))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        load_state(path)
