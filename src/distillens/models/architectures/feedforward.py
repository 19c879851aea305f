"""Networks for vectors and small images.

A multilayer perceptron, fixed random features, LeNet-5 with ReLU and a width factor (LeCun et al. 1998;
LeNet-5x8 is width 8), VGG-16 with batch normalisation (Simonyan and Zisserman 2015, table 1, D), and the
CIFAR ResNets of He et al. 2016: depth 6n + 2, shortcuts of option A or B.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu

from distillens.errors import ModelError
from distillens.models.builders import Shortcut


class MLP(nn.Module):
    """Linear layers of the given hidden widths on the flattened input."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class RandomFeatures(nn.Module):
    """φ(x) = max(0, Ax) with a fixed random A, then a linear layer: a linear model of the features.

    The entries of A are N(0, 2/D), the usual start of a ReLU layer of D inputs. A is a function of
    ``features_seed`` and its shape, not of the seed of the weights, so that networks that are to be
    compared share their features. It is no weight: it is not trained, and no checkpoint holds it.

    Source of the experiment: Nagarajan et al. 2023, arXiv 2301.12923; it gives no law of A.
    """

    features_WD: Tensor

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, width: int, features_seed: int
    ) -> None:
        super().__init__()
        inputs = math.prod(input_shape)
        # Of NumPy, whose streams stay the same over versions and devices.
        weights = np.random.default_rng(features_seed).standard_normal((width, inputs))
        scaled = torch.from_numpy((weights * math.sqrt(2 / inputs)).astype(np.float32))
        self.register_buffer("features_WD", scaled, persistent=False)
        self.output = nn.Linear(width, outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return φ(x), (N, width)."""
        return torch.relu(x.flatten(1) @ self.features_WD.T)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x))


SMALLEST = 16
"""Pixels a side that leave one pixel after both convolutions and poolings."""


class LeNet5(nn.Module):
    """Two 5x5 convolutions with pooling and three linear layers.

    Parameters
    ----------
    input_shape
        (channels, height, width) of an image.
    outputs
        Number of logits.
    width
        Factor of every hidden width.
    pad_to
        The first convolution zero-pads images whose height or width is below ``pad_to`` pixels to
        that size: to 32 by default, as LeCun did with the 28 pixels of MNIST. 0 pads nothing; images
        then have at least 16 pixels a side.

    Raises
    ------
    ModelError
        The inputs are no images, or they are too small.
    """

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, width: int = 1, pad_to: int = 32
    ) -> None:
        super().__init__()
        channels, height, side = image_shape("lenet5", input_shape)
        padding = (max(0, pad_to - height + 1) // 2, max(0, pad_to - side + 1) // 2)
        padded = (height + 2 * padding[0], side + 2 * padding[1])
        if min(padded) < SMALLEST:
            raise ModelError(
                f"lenet5 needs images of at least {SMALLEST}x{SMALLEST} pixels, these have "
                f"{padded[0]}x{padded[1]} after padding to {pad_to}; raise pad_to"
            )
        self.conv1 = nn.Conv2d(channels, 6 * width, 5, padding=padding)
        self.conv2 = nn.Conv2d(6 * width, 16 * width, 5)
        with torch.no_grad():
            size = self.features(torch.zeros(1, channels, height, side)).shape[1]
        self.fc1 = nn.Linear(size, 120 * width)
        self.fc2 = nn.Linear(120 * width, 84 * width)
        self.fc3 = nn.Linear(84 * width, outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return what the convolutions make of a picture, flattened."""
        # Pooling before the ReLU gives the same numbers, since both keep order, on a quarter of them.
        x = relu(max_pool2d(self.conv1(x), 2))
        return relu(max_pool2d(self.conv2(x), 2)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.fc3(relu(self.fc2(relu(self.fc1(x)))))


def image_shape(model: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width), or raise ModelError for inputs that are no pictures."""
    if len(input_shape) != 3:
        raise ModelError(
            f"{model} works on pictures (channels, height, width), the inputs have shape "
            f"{input_shape}; use mlp"
        )
    return input_shape[0], input_shape[1], input_shape[2]


STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five pooled stages, then linear layers 512-512-classes.

    The paper's classifier of 4096-4096 belongs to pictures of 224 pixels. On CIFAR, 32 pixels are one
    position after five poolings, and the version commonly used there has two hidden layers of 512
    with dropout and batch normalisation after each convolution: 15.25 M parameters with 10 classes,
    against 138 M. Larger pictures are averaged over the positions that are left.
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, dropout: float = 0.5) -> None:
        super().__init__()
        channels, _, _ = image_shape("vgg16", input_shape)
        layers: list[nn.Module] = []
        for stage in STAGES:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            # Rounded up, so that pictures under 32 pixels keep a position to the end.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(channels, 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, outputs),
        )
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def _initialise(network: nn.Module) -> None:
    """Initialise the convolutions as He et al. 2015 do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


PUBLISHED = re.compile(r"layer([123])\.(\d+)\.(.*)")
"""Names in public checkpoints of CIFAR ResNets: stage, block, and the rest."""


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut = "A") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs
        self.changes = stride > 1 or self.added > 0
        if shortcut == "B" and self.changes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        else:
            self.shortcut = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.changes:
            front = self.added // 2
            x = pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.added - front)
            )
        return relu(x + y)


class CifarResNet(nn.Module):
    """Three stages of n blocks with 16, 32 and 64 channels, then the mean over positions.

    State dicts in the layout that public CIFAR checkpoints share (``conv1``, ``bn1``,
    ``layer1.0.conv1``, …, ``layer3``, then ``linear`` or ``fc``) load as they are.
    """

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, depth: int, shortcut: Shortcut = "A"
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape(f"resnet{depth}", input_shape)
        self.stage_blocks = (depth - 2) // 6
        self.projects = shortcut == "B"
        self.conv = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        stages: list[nn.Module] = []
        width = 16
        for stage, size in enumerate((16, 32, 64)):
            for block in range(self.stage_blocks):
                stages.append(Block(width, size, 2 if stage and not block else 1, shortcut))
                width = size
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(64, outputs)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *others: Any
    ) -> None:
        """Translate the published names, before the layers look for theirs."""
        published = [name[len(prefix) :] for name in state_dict if name.startswith(prefix)]
        for name in published:
            state_dict[prefix + self._own_name(name)] = state_dict.pop(prefix + name)
        self._check_layout(published, problems=others[-1])
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _own_name(self, name: str) -> str:
        """Return this class's name for a published one; other names as they are."""
        name = re.sub(r"^(conv|bn)1\.", r"\1.", name)
        name = re.sub(r"^linear\.", "fc.", name)
        if (found := PUBLISHED.match(name)) and int(found[2]) < self.stage_blocks:
            block = (int(found[1]) - 1) * self.stage_blocks + int(found[2])
            return f"blocks.{block}.{re.sub(r'^downsample[.]', 'shortcut.', found[3])}"
        return name

    def _check_layout(self, published: list[str], problems: list[str]) -> None:
        """Append the argument that selects another published layout to the problems."""
        places = [match for name in published if (match := PUBLISHED.match(name))]
        if not places:
            return
        blocks = max(int(match[2]) for match in places) + 1
        projected = any(match[3].startswith(("downsample.", "shortcut.")) for match in places)
        if any(match[3].startswith("conv3.") for match in places) or any(
            name.startswith("layer4.") for name in published
        ):
            problems.append(
                "the checkpoint is a ResNet for ImageNet (four stages or bottleneck blocks), not one "
                "of the CIFAR ResNets; use timm:NAME or module:function"
            )
        elif blocks != self.stage_blocks:
            problems.append(
                f"the checkpoint has {blocks} blocks a stage, the model {self.stage_blocks}; "
                f"use resnet{6 * blocks + 2}"
            )
        elif projected != self.projects:
            right = "B" if projected else "A"
            problems.append(
                f"the checkpoint has shortcuts of option {right}; set `shortcut: {right}` in the model"
            )
