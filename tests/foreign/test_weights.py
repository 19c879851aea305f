"""Checkpoints, builders and numbers of recipes as other programs and people write them."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import distillens
from distillens.errors import CheckpointError, DistillensError, ModelError, RecipeError
from distillens.files.yaml_values import dump_yaml, load_yaml
from distillens.models import ModelRecipe, build_model, load_weights, save_weights
from distillens.study import read_recipe

CIFAR = (3, 32, 32)


class Net(nn.Module):
    """A small network with every kind of entry: parameters, statistics, a counter."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.bn(self.conv(x))).mean((2, 3)))


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every entry a value that no fresh network has."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator) / max(tensor.numel(), 1) ** 0.5
            tensor.copy_(drawn.abs() + 0.5 if "var" in name else drawn)
        else:
            tensor.fill_(11)
    return network.eval()


def prefixed(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


def half(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}


def without(ending: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith(ending)}


SOURCE = trained(Net())
STATE = dict(SOURCE.state_dict())
OTHER = trained(Net(), seed=1)
BESIDE: dict[str, Any] = {
    "epoch": 90,
    "args": argparse.Namespace(lr=0.1, seed=None),
    "best_acc": np.float64(0.9),
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
}

CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "DistributedDataParallel": (prefixed("module.", SOURCE), "removed the prefix 'module.'"),
    "torch.compile": (prefixed("_orig_mod.", SOURCE), "removed the prefix '_orig_mod.'"),
    "both and a wrapper": (
        {"state_dict": prefixed("module._orig_mod.model.", SOURCE), **BESIDE},
        "read 'state_dict'; removed the prefix 'module._orig_mod.model.'",
    ),
    "Lightning": (
        {
            "state_dict": {**prefixed("model.", SOURCE), "criterion.weight": torch.ones(4)},
            "pytorch-lightning_version": "2.5.0",
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.ones(())}},
        },
        "read 'state_dict'; removed the prefix 'model.'; left out 'criterion.weight'",
    ),
    "timm and torchvision references": ({"model": STATE, **BESIDE}, "read 'model'"),
    "pytorch-cifar": ({"net": prefixed("module.", SOURCE), "acc": 95.1, "epoch": 1}, "'module.'"),
    "fastai": ({"model": STATE, "opt": {"hypers": [], "state": []}}, "read 'model'"),
    "a tuple": ((STATE, 17), "read '0'"),
    "deep": ({"student": {"weights": STATE}}, "read 'student.weights'"),
    "an average": (
        {"n_averaged": torch.tensor(5), **prefixed("module.", SOURCE)},
        "removed the prefix 'module.'; left out 'n_averaged'",
    ),
    "an EMA alone": ({"ema_state_dict": prefixed("module.", SOURCE)}, "read 'ema_state_dict'"),
    "the same weights twice": ({"model": STATE, "state_dict": STATE}, "read 'model'"),
    "a teacher": (prefixed("teacher.", SOURCE), "removed the prefix 'teacher.'"),
    "any prefix of all": (prefixed("backbone.net.", SOURCE), "removed the prefix 'backbone.net.'"),
    "without counters": (without("num_batches_tracked", STATE), "no value for 'bn.num_batches"),
    "float16": (half(STATE, torch.float16), "converted 8 tensors from float16 to float32"),
    "bfloat16": ({"model": half(STATE, torch.bfloat16)}, "bfloat16 to float32"),
    "float64": (half(STATE, torch.float64), "float64 to float32"),
    "a counter of floats": ({**STATE, "bn.num_batches_tracked": torch.tensor(3.0)}, "to int64"),
    "sparse": ({**STATE, "head.weight": STATE["head.weight"].to_sparse()}, ""),
}


@pytest.mark.parametrize(("content", "note"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_of_other_programs_load_and_say_how(
    tmp_path: Path, content: Any, note: str
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    network = Net()
    assert note in load_weights(path, network)
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, STATE[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_one_byte_floats_load_as_their_values(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = half(STATE, dtype)
    save_file(stored, tmp_path / "a.safetensors")
    network = Net()
    load_weights(tmp_path / "a.safetensors", network)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, stored[name].to(tensor.dtype))


def test_wrappers_inside_names_are_removed(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2)))
    state = {"0.weight": "0.module.weight", "1.0.weight": "1._orig_mod.0.module.weight"}
    content = {state.get(name, name): t for name, t in network.state_dict().items()}
    torch.save(content, tmp_path / "a.pt")
    loaded = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2)))
    assert "wrappers" in load_weights(tmp_path / "a.pt", loaded)
    assert torch.equal(loaded(torch.ones(1, 3)), network(torch.ones(1, 3)))


def test_a_model_inside_a_wrapper_takes_the_state_dict_of_the_model(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    network = Net()
    wrapped = nn.ModuleDict({"network": network})
    assert "added the prefix 'network.'" in load_weights(tmp_path / "a.pt", wrapped)
    assert torch.equal(network.conv.weight, STATE["conv.weight"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_are_stored_once_or_twice_but_not_with_two_values(tmp_path: Path) -> None:
    weight = torch.randn(5, 3)
    for state in ({"embedding.weight": weight}, {"head.weight": weight}):
        save_file(state, tmp_path / "a.safetensors")
        model = Tied()
        assert "tied" in load_weights(tmp_path / "a.safetensors", model)
        assert torch.equal(model.head.weight, weight)
    both = {"embedding.weight": weight, "head.weight": weight + 1}
    save_file(both, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="two values"):
        load_weights(tmp_path / "a.safetensors", Tied())


def test_whatever_strict_loading_accepts_is_accepted(tmp_path: Path) -> None:
    """Hooks that rename, extra state, and a mask of infinities that the network has by design."""

    class Renamed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.seen: Any = None
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
            self.register_load_state_dict_pre_hook(self._rename)

        @staticmethod
        def _rename(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
            if prefix + "gamma" in state:
                state[prefix + "weight"] = state.pop(prefix + "gamma")

        def get_extra_state(self) -> Any:
            return {"scale": 3}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state

    source, target = Renamed(), Renamed()
    state = OrderedDict(source.state_dict())
    state["gamma"] = state.pop("weight")
    torch.save(state, tmp_path / "a.pt")
    load_weights(tmp_path / "a.pt", target)
    assert torch.equal(source.weight, target.weight)
    assert target.seen == {"scale": 3}


def test_several_that_fit_are_named_and_one_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"state_dict": STATE, "state_dict_ema": OTHER.state_dict(), **BESIDE}, path)
    with pytest.raises(CheckpointError, match=r"key: state_dict} and {key: state_dict_ema}"):
        load_weights(path, Net())
    network = Net()
    load_weights(path, network, key="state_dict_ema")
    assert torch.equal(network.head.weight, OTHER.state_dict()["head.weight"])
    with pytest.raises(CheckpointError, match=r"did you mean 'state_dict_ema'"):
        load_weights(path, network, key="state_dict_em")

    torch.save({**prefixed("student.", SOURCE), **prefixed("teacher.", OTHER)}, path)
    with pytest.raises(CheckpointError, match=r"strip: student\.} and {strip: teacher\.}"):
        load_weights(path, Net())
    for strip in ("teacher.", "teacher"):
        network = Net()
        assert "left out" in load_weights(path, network, strip=strip)
        assert torch.equal(network.head.weight, OTHER.state_dict()["head.weight"])
    with pytest.raises(CheckpointError, match="no names with the prefix 'tutor'"):
        load_weights(path, network, strip="tutor")

    torch.save({**prefixed("net.", SOURCE), "criterion.weight": torch.ones(4)}, path)
    with pytest.raises(CheckpointError, match=r"strip: net\."):
        load_weights(path, Net())
    load_weights(path, Net(), strip="net.")


REFUSED: dict[str, tuple[Any, str]] = {
    "another class count": (
        {"model": prefixed("module.", Net(7))},
        r"7 of 9 weights match, with {key: model, strip: module.}; 'head.weight' has shape "
        r"\(7, 3\), the model needs \(4, 3\); .*7 and 4 suggest another class count",
    ),
    "one missing": (without("head.bias", STATE), "8 of 9 weights match; it has no weight 'head.b"),
    "one too many": ({**STATE, "aux.weight": torch.ones(1)}, "the model has no 'aux.weight'"),
    "int8": ({**STATE, "head.weight": torch.ones(4, 3, dtype=torch.int8)}, "int8.*quantised"),
    "scales": ({**STATE, "head.weight_scale": torch.ones(())}, "looks quantised"),
    "complex": ({**STATE, "head.weight": torch.ones(4, 3) + 1j}, "imaginary part would be lost"),
    "too large": (
        {**STATE, "head.bias": torch.tensor([1e60] * 4, dtype=torch.float64)},
        "too large for float32",
    ),
    "NaN": ({**STATE, "head.bias": torch.full((4,), torch.nan)}, "holds a NaN"),
    "an infinite mean": ({**STATE, "bn.running_mean": torch.full((3,), torch.inf)}, "an infinity"),
    "no values": ({**STATE, "head.bias": torch.ones(4, device="meta")}, "no values"),
    "a whole module": (SOURCE, "a whole module was saved"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_says_why_and_leaves_the_model_alone(
    tmp_path: Path, content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "a.pt")
    network = trained(Net(), seed=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as raised:
        load_weights(tmp_path / "a.pt", network)
    assert "\n" not in str(raised.value)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    names = sorted(STATE)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, part in parts.items():
        save_file({name: STATE[name] for name in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    where = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    network = Net()
    load_weights(index, network)
    assert all(torch.equal(t, STATE[name]) for name, t in network.state_dict().items())


class PublishedBlock(nn.Module):
    """The basic block of the public CIFAR ResNets; ``shortcut`` and ``downsample`` are its names."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: str, name: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.option, self.name, self.outputs = option, name, outputs
        self.changes = stride != 1 or inputs != outputs
        if self.changes and option == "B":
            projection = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
            self.add_module(name, projection)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.changes and self.option == "A":
            quarter = self.outputs // 4
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter), "constant", 0)
        elif self.changes:
            x = self.get_submodule(self.name)(x)
        return functional.relu(y + x)


class PublishedResNet(nn.Module):
    """conv1, bn1, layer1 … layer3 and a linear head, as public CIFAR-10 checkpoints name them."""

    def __init__(self, blocks: int, option: str, name: str, head: str, outputs: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        width = 16
        for place, size in enumerate((16, 32, 64)):
            layers = []
            for block in range(blocks):
                stride = 2 if place and not block else 1
                layers.append(PublishedBlock(width, size, stride, option, name))
                width = size
            self.add_module(f"layer{place + 1}", nn.Sequential(*layers))
        self.head = head
        self.add_module(head, nn.Linear(64, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        for place in (1, 2, 3):
            x = self.get_submodule(f"layer{place}")(x)
        return self.get_submodule(self.head)(functional.avg_pool2d(x, x.shape[3]).flatten(1))


@pytest.mark.parametrize(
    ("depth", "option", "shortcut", "head"),
    [(20, "A", "shortcut", "linear"), (20, "B", "downsample", "fc"), (8, "B", "shortcut", "linear"),
     (32, "A", "shortcut", "fc")],
)  # fmt: skip
def test_published_cifar_checkpoints_give_the_published_outputs(
    tmp_path: Path, depth: int, option: str, shortcut: str, head: str
) -> None:
    published = PublishedResNet((depth - 2) // 6, option, shortcut, head)
    trained(published)
    path = tmp_path / "resnet.th"
    torch.save({"state_dict": nn.DataParallel(published).state_dict(), "best_prec1": 91.7}, path)
    recipe = ModelRecipe(name=f"resnet{depth}", shortcut=option)  # type: ignore[call-arg]
    network = build_model(recipe, CIFAR, 10, seed=0).eval()
    note = load_weights(path, network)
    assert note.startswith("read 'state_dict'; removed the prefix 'module.'; translated 'conv1.w")
    inputs = torch.randn(4, *CIFAR, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = published(inputs), network(inputs)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # torch's own strict loading knows the layout too.
    network.load_state_dict(published.state_dict())


@pytest.mark.parametrize(
    ("checkpoint", "arguments", "message"),
    [
        (PublishedResNet(3, "B", "downsample", "fc"), {}, "set `shortcut: B`"),
        (PublishedResNet(3, "A", "shortcut", "fc"), {"shortcut": "B"}, "set `shortcut: A`"),
        (PublishedResNet(5, "A", "shortcut", "fc"), {}, "use resnet32"),
        (PublishedResNet(1, "A", "shortcut", "fc"), {}, "use resnet8"),
        (PublishedResNet(3, "A", "shortcut", "fc", 100), {}, "another class count"),
    ],
)
def test_another_published_resnet_names_the_right_argument(
    tmp_path: Path, checkpoint: nn.Module, arguments: dict[str, str], message: str
) -> None:
    torch.save(checkpoint.state_dict(), tmp_path / "a.pt")
    network = build_model(ModelRecipe(name="resnet20", **arguments), CIFAR, 10, seed=0)
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path / "a.pt", network)


class Views(nn.Module):
    """Weights that share memory in every way."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(6, 4)
        self.register_buffer("whole", whole)
        self.register_buffer("front", whole[:3])
        self.register_buffer("back", whole[2:])
        self.register_buffer("turned", whole.T)
        self.register_buffer("strided", whole[:, ::2])
        self.register_buffer("slice", torch.randn(9)[2:5])
        self.register_buffer("expanded", torch.randn(1, 4).expand(6, 4).clone().T)
        self.register_buffer("complex", torch.randn(3, dtype=torch.complex64).conj())
        self.register_buffer("short", torch.randn(3).bfloat16())
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("flag", torch.tensor(True))


def test_what_is_saved_loads_back_equal(tmp_path: Path) -> None:
    source, target = Views(), Views()
    save_weights(tmp_path / "a.safetensors", source)
    # Views share memory in the target too: take its own copies.
    for name, tensor in dict(target.named_buffers()).items():
        target.register_buffer(name, torch.zeros_like(tensor).contiguous())
    load_weights(tmp_path / "a.safetensors", target)
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_old_files_of_torch_and_safetensors_under_any_name_are_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "a.bin")
    for name in ("old.pth", "a.bin"):
        network = Net()
        assert load_weights(tmp_path / name, network) == ""
        assert torch.equal(network.head.weight, STATE["head.weight"])


def test_a_state_that_safetensors_cannot_hold_is_one_line(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"step": 1}

    for model, message in (
        (Extra(2, 2), "'_extra_state' of the model's state is a dict"),
        (nn.ParameterList([torch.zeros(2, dtype=torch.complex128)]), "complex128"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_weights(tmp_path / "a.safetensors", model)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("1.e-3", 1e-3), (".5", 0.5), ("-.5e+2", -50.0), ("1.5", 1.5),
        ("+1e0", 1.0), ("6.02e23", 6.02e23), ("1_000", 1000), ("1_0.5", 10.5), ("010", 10), ("08", 8),
        ("0o17", 15), ("0x1F", 31), ("-7", -7), (".inf", float("inf")), ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"), ("'1e-5'", "1e-5"), ("1e", "1e"), ("e5", "e5"), (".", "."),
        ("-", [None]), ("yes", True), ("off", False), ("~", None), ("1.2.3", "1.2.3"), ("", None),
    ],
)  # fmt: skip
def test_numbers_of_recipes_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = load_yaml(text)
    assert found == value
    assert type(found) is type(value)
    # What a run writes down is read back as the same, strings that look like numbers too.
    for each in (value, {"key": [value, text]}):
        assert load_yaml(dump_yaml(each)) == each


MINE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, outputs, eps=1e-3, width=6):
        assert isinstance(eps, float), eps
        super().__init__(
            nn.Flatten(), nn.LayerNorm(64, eps=eps), nn.Linear(64, width), nn.Linear(width, outputs)
        )

def nothing():
    return Net(10)

def everything(**kwargs):
    import helper
    assert sorted(kwargs) == ["input_shape", "normalisation", "outputs"], kwargs
    return helper.scaled(Net(kwargs["outputs"]))

def handed_on(**kwargs):
    return Net(**kwargs)

def means(normalisation, outputs):
    mean, deviation = normalisation
    assert mean == (0.5,) and deviation == (0.25,)
    return Net(outputs)

def broken(input_shape, outputs):
    return {}["width"]

async def later(outputs):
    return Net(outputs)

def loss(student, teacher, labels):
    return ((student - teacher) ** 2).mean()

def a_list():
    return [Net(10)]

def leaves():
    raise SystemExit("usage: mine.py")

def hungry(outputs, num_layers):
    return Net(outputs)

SHARED = Net(10)
number = 3

def always_the_same():
    return SHARED
"""
HELPER = "def scaled(network):\n    return network\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recipe's own code."""
    place = tmp_path / "project"
    place.mkdir()
    (place / "mine.py").write_text(MINE)
    (place / "helper.py").write_text(HELPER)
    return place


def custom(folder: Path, name: str, **arguments: Any) -> nn.Module:
    recipe = ModelRecipe(name=name, **arguments)
    recipe.look_in(folder)
    return build_model(
        recipe, (1, 8, 8), 10, seed=0, normalisation=((0.5,), (0.25,)), trust_code=True
    )


@pytest.mark.parametrize("function", ["nothing", "everything", "handed_on", "means", "Net"])
def test_builders_take_any_of_the_arguments(folder: Path, function: str) -> None:
    path = list(sys.path)
    network, again = custom(folder, f"mine:{function}"), custom(folder, f"mine:{function}")
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert torch.equal(network.state_dict()["2.weight"], again.state_dict()["2.weight"])
    assert sys.path == path


def test_a_class_takes_the_recipes_arguments_too(folder: Path) -> None:
    network: Any = custom(folder, "mine:Net", width=3, eps=0.5)
    assert network[2].out_features == 3
    assert network[1].eps == 0.5


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("broken", {}, r"cannot be built: KeyError: 'width' \(mine.py, line 2\d\)"),
        ("later", {}, "is a coroutine function"),
        ("SHARED", {}, "is a network, not a function"),
        ("number", {}, "is a int, not a function or class"),
        ("a_list", {}, "returned a list, not a torch Module"),
        ("leaves", {}, "SystemExit: usage: mine.py"),
        ("always_the_same", {}, "returned before"),
        ("hungry", {}, "needs an argument 'num_layers'"),
        ("Net", {"widht": 3}, "has no argument 'widht'; did you mean 'width'"),
        ("Net", {"outputs": 3}, "outputs is set from the data"),
        ("Net", {"eps": "a"}, "AssertionError: a"),
        ("Nett", {}, r"mine.py has no 'Nett'; did you mean 'Net'"),
    ],
)
def test_builders_that_cannot_be_used_are_one_line(
    folder: Path, function: str, arguments: dict[str, Any], message: str
) -> None:
    def twice() -> list[nn.Module]:
        return [custom(folder, f"mine:{function}", **arguments) for _ in range(2)]

    with pytest.raises((RecipeError, ModelError), match=message) as raised:
        twice()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all", "No module named 'nowhere_at_all', which it imports"),
        ("x = (", "it stops with SyntaxError"),
        ("raise SystemExit(2)", "it stops with SystemExit: 2"),
        ("1 / 0", "it stops with ZeroDivisionError"),
    ],
)
def test_modules_that_cannot_be_imported_are_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "damaged.py").write_text(text + "\n")
    with pytest.raises(RecipeError, match=message):
        custom(tmp_path, "damaged:make")
    with pytest.raises(RecipeError, match=r"no absent.py in .*PYTHONPATH"):
        custom(tmp_path, "absent:make")


def test_the_recipes_folder_comes_before_modules_of_the_same_name(tmp_path: Path) -> None:
    """Of Python (code, time), and of another recipe's folder, with what these import."""
    import code

    make = "import helper\nfrom torch import nn\ndef make(input_shape, outputs):\n    import late\n"
    make += "    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs), "
    make += "nn.Softplus(beta=helper.BETA + late.BETA))\n"
    for place, beta in (("one", 1.0), ("two", 2.0)):
        (tmp_path / place).mkdir()
        for name in ("mine", "code"):
            (tmp_path / place / f"{name}.py").write_text(make)
        for name in ("helper", "late"):
            (tmp_path / place / f"{name}.py").write_text(f"BETA = {beta}\n")
        (tmp_path / place / "time.py").write_text(make)
    for _ in range(2):
        for place, beta in (("one", 1.0), ("two", 2.0)):
            for name in ("mine", "code"):
                network: Any = custom(tmp_path / place, f"{name}:make")
                assert network[2].beta == 2 * beta
    assert sys.modules["code"] is code
    with pytest.raises(RecipeError, match=r"'time' is a built-in module of Python.*rename"):
        custom(tmp_path / "one", "time:make")


TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "digits", "train_size": 60, "test_size": 60},
    "teacher": {
        "model": {"name": "mlp", "hidden": [8]},
        "training": {"epochs": 1, "learning_rate": 0.1},
    },
    "student": {
        "model": {"name": "mine:Net", "eps": "EPS"},
        "training": {"epochs": 1, "learning_rate": 0.1},
    },
    "supervisions": [{"kind": "one-hot"}, {"kind": "offline", "loss": {"name": "mine:loss"}}],
    "complexity": None,
}


def test_arguments_of_models_are_numbers_in_files_overrides_and_runs(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(TINY).replace("EPS", "1e-5"))
    with pytest.raises(RecipeError, match="--trust-code"):
        read_recipe(path)
    recipe = read_recipe(path, trust_code=True)
    assert recipe.student.model.arguments == {"eps": 1e-5}
    changed = ["student.model.eps=2E-4", "student.training.learning_rate=1e-2"]
    recipe = read_recipe(path, changed, trust_code=True)
    assert recipe.student.model.arguments["eps"] == 2e-4
    assert recipe.student.training.learning_rate == 0.01


def test_a_run_finds_the_code_beside_its_recipe_again(folder: Path, tmp_path: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(TINY).replace("EPS", "1e-5"))
    out = tmp_path / "runs" / "tiny"
    distillens.run(path, out, trust_code=True)
    assert load_yaml((out / "recipe.yaml").read_text())["code"] == "../../project"
    # The same command goes on; another place of the same tree is the same recipe.
    moved = tmp_path / "moved"
    moved.mkdir()
    for each in (folder, tmp_path / "runs"):
        each.rename(moved / each.name)
    for name in [name for name in sys.modules if name in ("mine", "helper")]:
        del sys.modules[name]
    recipe = read_recipe(moved / "runs" / "tiny" / "recipe.yaml", trust_code=True)
    assert recipe.student.model.code_folder == moved / "project"
    (moved / "project").rename(tmp_path / "elsewhere")
    for name in [name for name in sys.modules if name in ("mine", "helper")]:
        del sys.modules[name]
    with pytest.raises(RecipeError, match=r"no mine.py in .*project.*PYTHONPATH"):
        read_recipe(moved / "runs" / "tiny" / "recipe.yaml", trust_code=True)


def test_a_folder_of_code_that_nothing_uses_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    content = {**TINY, "code": "src", "supervisions": [{"kind": "one-hot"}]}
    content["student"] = {**TINY["student"], "model": {"name": "mlp"}}
    path.write_text(dump_yaml(content))
    with pytest.raises(RecipeError, match="code is 'src'"):
        read_recipe(path)


@pytest.mark.parametrize("where", ["{path}", {"path": "{path}"}, {"path": "{path}", "key": "ema"}])
def test_a_published_checkpoint_is_a_teacher_in_three_lines(tmp_path: Path, where: Any) -> None:
    published = trained(PublishedResNet(1, "A", "shortcut", "linear"))
    published.conv1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
    path = tmp_path / "resnet8.th"
    state = nn.DataParallel(published).state_dict()
    torch.save({"ema" if "ema" in str(where) else "state_dict": state, "epoch": 3}, path)
    given = json.loads(json.dumps(where).replace("{path}", str(path)))
    recipe = {
        **TINY,
        "teacher": {"model": {"name": "resnet8"}, "checkpoint": given},
        "student": {**TINY["student"], "model": {"name": "mlp"}},
        "supervisions": [{"kind": "offline"}],
        "deviation": False,
    }
    result = distillens.run(recipe, tmp_path / "run")
    assert any("resnet8.th: read" in note and "translated" in note for note in result.notes)
    from distillens.data import DataRecipe, Normalisation, load_splits
    from distillens.runs.layout import Run
    from distillens.runs.read import read_arrays

    splits = load_splits(DataRecipe.model_validate(recipe["data"]))
    inputs = Normalisation.of(splits.train)(splits.test.inputs)
    with torch.no_grad():
        wanted = published(inputs)
    found = read_arrays(Run(tmp_path / "run").teacher.logits)["test"]
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)


def test_mistakes_in_the_checkpoint_are_named(tmp_path: Path) -> None:
    teacher = {"model": {"name": "mlp"}}
    for given, message in (
        ({"path": "a", "kye": "b"}, "unknown key 'teacher.checkpoint.kye'; did you mean 'key'"),
        ({"key": "b"}, "'teacher.checkpoint.path' is missing"),
        (3, "teacher.checkpoint: keys with values are needed, got 3"),
    ):
        recipe = {**TINY, "teacher": {**teacher, "checkpoint": given}}
        with pytest.raises(DistillensError, match=message):
            distillens.run(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (gzip.compress(b"weights", mtime=0), "decompress it"),
    ],
)
def test_what_a_failed_download_left_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path / "w.pt", nn.Linear(3, 2))
