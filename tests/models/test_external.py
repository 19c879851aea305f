"""Models of timm and Hugging Face: fetched by name, fitted to the data, and no stranger's code run."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillens.errors import ModelError, RecipeError
from distillens.models import ModelRecipe, build_model, count_parameters
from distillens.models.registry import check_model

CIFAR = (3, 16, 16)


class Tiny(nn.Module):
    def __init__(self, num_classes: int, in_chans: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, width, 3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand in for timm, whose torchvision does not import beside every build of torch."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **arguments: Any) -> Any:
        calls.append(
            (name, {**arguments, "guard": os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")})
        )
        if arguments.pop("pretrained", False):
            raise OSError("the hub\nis out of reach")
        if arguments.pop("features_only", False):
            return SimpleNamespaceModule()
        return Tiny(**arguments)

    fake = SimpleNamespace(
        create_model=create_model,
        is_model=lambda name: name.split(".")[0] in {"tiny", "vast"},
        list_models=lambda: ["tiny", "vast"],
        calls=calls,
    )
    monkeypatch.setitem(sys.modules, "timm", fake)  # type: ignore[arg-type]
    return fake


class SimpleNamespaceModule(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


def build(
    name: str, shape: tuple[int, ...] = CIFAR, outputs: int = 5, **arguments: Any
) -> nn.Module:
    return build_model(ModelRecipe(name=name, **arguments), shape, outputs, seed=0)


def test_timm_models_get_classes_and_channels_from_the_data(timm: SimpleNamespace) -> None:
    model = build("timm:tiny", (1, 16, 16), width=6)
    assert timm.calls == [("tiny", {"num_classes": 5, "in_chans": 1, "width": 6, "guard": "1"})]
    assert model(torch.zeros(3, 1, 16, 16)).shape == (3, 5)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    again = build("timm:tiny", (1, 16, 16), width=6)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("timm:tny", {}, RecipeError, "timm has no model 'tny'; did you mean 'tiny'?"),
        ("timm:", {}, RecipeError, "names nothing after the colon; give timm:NAME"),
        ("timm:tiny", {"num_classes": 3}, RecipeError, "num_classes is set from the data"),
        ("timm:tiny", {"checkpoint_path": "a.pth"}, RecipeError, "takes no checkpoint_path"),
        ("timm:tiny", {"depth": 3}, RecipeError, "unexpected keyword argument 'depth'"),
        (
            "timm:tiny",
            {"pretrained": True},
            ModelError,
            r"cannot be built: \w+: the hub",
        ),
        ("timm:tiny", {"features_only": True}, ModelError, "in which no element can be the logits"),
    ],
)
def test_what_timm_cannot_do_is_one_line(
    timm: SimpleNamespace, name: str, arguments: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message.replace("?", r"\?")) as caught:
        build(name, **arguments)
    assert "\n" not in str(caught.value)


def test_models_of_the_hub_are_named_in_full(timm: SimpleNamespace) -> None:
    check_model(ModelRecipe(name="timm:vast.a1_in1k"))
    build("timm:hf-hub:somebody/tiny")
    assert timm.calls[0][0] == "hf-hub:somebody/tiny"


def test_vectors_are_no_pictures(timm: SimpleNamespace) -> None:
    with pytest.raises(ModelError, match=r"timm:tiny works on pictures .* shape \(7,\)"):
        build("timm:tiny", (7,))


@pytest.mark.parametrize(("library", "extra"), [("timm", "timm"), ("transformers", "text")])
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=rf"needs {library}: pip install 'distillens\[{extra}\]'"):
        build_model(ModelRecipe(name=f"{library}:anything"), CIFAR, 5, seed=0)


def test_a_broken_installation_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text(
        "raise RuntimeError('operator torchvision::nms\\nis missing')"
    )
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(
        ModelError, match="cannot be imported: operator torchvision::nms is missing"
    ):
        build_model(ModelRecipe(name="timm:resnet18"), CIFAR, 5, seed=0)


VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Return a maker of folders with a configuration and nothing else."""
    pytest.importorskip("transformers")

    def make(config: dict[str, Any]) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return f"transformers:{tmp_path}"

    return make


@pytest.mark.parametrize("config", [VIT, RESNET])
@pytest.mark.parametrize(("shape", "outputs"), [((1, 32, 32), 1), ((3, 16, 16), 7)])
def test_fresh_hugging_face_models_fit_the_pictures(
    folder: Callable, config: dict, shape: tuple[int, ...], outputs: int
) -> None:
    name = folder(config)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    model = build(name, shape, outputs, pretrained=False)
    assert torch.equal(torch.rand(1), expected)
    assert model(torch.zeros(2, *shape)).shape == (2, outputs)
    again = build(name, shape, outputs, pretrained=False)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_arguments_change_the_configuration(folder: Callable) -> None:
    name = folder(VIT)
    one, two = (
        count_parameters(build(name, pretrained=False, num_hidden_layers=layers))
        for layers in (1, 2)
    )
    # A layer of the transformer: four 16x16 products, two of 16x32, biases and two norms.
    assert two - one == 4 * (16 * 16 + 16) + 16 * 32 + 32 + 32 * 16 + 16 + 4 * 16


def test_stored_weights_are_read_and_only_the_head_is_new(folder: Callable) -> None:
    name = folder(VIT)
    source = build(name, pretrained=False)
    network: Any = source.get_submodule("network")
    network.save_pretrained(name.partition(":")[2])
    same = build(name)
    for key, tensor in source.state_dict().items():
        assert torch.equal(same.state_dict()[key], tensor)
    other = build(name, outputs=9)
    for key, tensor in source.state_dict().items():
        if "classifier" not in key:
            assert torch.equal(other.state_dict()[key], tensor)
    with pytest.raises(ModelError, match=r"position_embeddings' with shape .* the checkpoint has"):
        build(name, (3, 32, 32), image_size=32)


def test_pickled_weights_and_remote_code_are_never_run(folder: Callable, tmp_path: Path) -> None:
    name = folder({**VIT, "auto_map": {"AutoModelForImageClassification": "evil.Model"}})
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code was run')")
    assert build(name, pretrained=False)(torch.zeros(1, *CIFAR)).shape == (1, 5)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be built: .*safetensors"):
        build(name)
    folder({"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Config"}})
    with pytest.raises(ModelError, match="cannot be built"):
        build(name, pretrained=False)
    with pytest.raises(RecipeError, match="takes no trust_remote_code"):
        build(name, trust_remote_code=True)


@pytest.mark.parametrize(
    ("config", "arguments", "error", "message"),
    [
        (
            VIT,
            {"hiden_size": 3},
            RecipeError,
            "no argument 'hiden_size'; did you mean 'hidden_size'",
        ),
        (VIT, {"num_labels": 3}, RecipeError, "num_labels is set from the data"),
        ({"model_type": "bert"}, {}, ModelError, "Unrecognized configuration class"),
        ({}, {}, ModelError, "cannot be built"),
    ],
)
def test_what_transformers_cannot_do_is_one_line(
    folder: Callable, config: dict, arguments: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        build(folder(config), pretrained=False, **arguments)
    assert "\n" not in str(caught.value)
