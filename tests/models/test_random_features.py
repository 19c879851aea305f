"""Random features: fixed, shared by networks of any seed, and linear in what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distillens import EmpiricalNTK
from distillens.errors import RecipeError, RunError
from distillens.models import ModelRecipe, RandomFeatures, build_model, load_weights, save_weights
from distillens.runs.layout import Run
from distillens.study import run


def network(seed: int, features_seed: int = 0, width: int = 200) -> RandomFeatures:
    recipe = ModelRecipe.model_validate(
        {"name": "random-features", "width": width, "features_seed": features_seed}
    )
    built = build_model(recipe, (1, 4, 5), 3, seed=seed)
    assert isinstance(built, RandomFeatures)
    return built


INPUTS = torch.randn(6, 1, 4, 5, generator=torch.Generator().manual_seed(0))


def test_features_are_a_function_of_their_own_seed() -> None:
    first, second, other = network(0), network(1), network(0, features_seed=1)
    assert torch.equal(first.features(INPUTS), second.features(INPUTS))
    assert not torch.equal(first.output.weight, second.output.weight)
    assert not torch.equal(first.features(INPUTS), other.features(INPUTS))


def test_features_keep_the_size_of_their_input() -> None:
    features = network(0, width=20_000).features(INPUTS)
    # E max(0, a·x)² = ½·(2/D)·‖x‖².
    expected = INPUTS.flatten(1).square().mean(1)
    torch.testing.assert_close(features.square().mean(1), expected, rtol=0.05, atol=0)
    assert float(features.min()) == 0


def test_the_tangent_kernel_is_the_data_kernel_of_the_features() -> None:
    model = network(0).eval()
    features = model.features(INPUTS)
    gram = EmpiricalNTK(model, outputs=0).gram(INPUTS).values
    # + 1 of the bias; the features themselves have no gradient.
    torch.testing.assert_close(gram, features @ features.T + 1, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_holds_the_linear_layer_alone(tmp_path: Path) -> None:
    model, other = network(0), network(1)
    assert set(model.state_dict()) == {"output.weight", "output.bias"}
    save_weights(tmp_path / "w.safetensors", model)
    load_weights(tmp_path / "w.safetensors", other)
    assert torch.equal(model(INPUTS), other(INPUTS))


def test_a_width_of_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"width: .*greater than 0, got 0"):
        network(0, width=0)


def test_a_run_from_before_there_was_adam_goes_on_and_is_held_to_sgd(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny |= {"supervisions": tiny["supervisions"][:1], "complexity": None, "deviation": False}
    folder = tmp_path / "run"
    run(tiny, folder)
    path = Run(folder).recipe
    before = yaml.safe_load(path.read_text())
    for part in ("teacher", "student"):
        assert before[part]["training"].pop("optimizer") == "sgd"
    path.write_text(yaml.safe_dump(before))
    run(tiny, folder)
    # The recipe of a run is written once.
    assert yaml.safe_load(path.read_text()) == before
    tiny["student"]["training"]["optimizer"] = "adam"
    with pytest.raises(RunError, match=r"student\.training\.optimizer is 'sgd' there and 'adam'"):
        run(tiny, folder)
