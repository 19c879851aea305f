"""The networks, inputs and sizes that the kernel benchmark measures.

Shapes: N examples, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from distillens.data import DataRecipe, Normalisation, load_splits
from distillens.models import ModelRecipe, build_model

IMAGE = (3, 32, 32)
POSITIONS, WIDTH, HEADS, LAYERS = 64, 128, 4, 4
SEED = 0

LARGE_IMAGE = (3, 224, 224)
Network = Literal["lenet5x8", "resnet20", "transformer", "resnet18"]


@dataclass(frozen=True)
class Case:
    """One Gram: of a network on N examples, of its single output or the full block of C.

    The float64 reference is computed for ``rows`` × ``columns`` examples, spread evenly.
    ``at_least`` and ``memory_at_most`` are what to reach: times faster than the fastest peer, and the
    share of its memory.
    """

    name: str
    network: Network
    count: int
    classes: int
    rows: int
    columns: int
    at_least: float
    memory_at_most: float | None = None

    @property
    def full(self) -> bool:
        """Whether the Gram has all pairs of outputs, (NC, NC)."""
        return self.classes > 1

    def scaled(self, scale: float) -> Case:
        """Return the case with that share of its examples, for a trial."""
        count = max(4, round(self.count * scale))
        return replace(
            self, count=count, rows=min(self.rows, count), columns=min(self.columns, count)
        )

    def positions(self, some: int) -> list[int]:
        """Return the rows of the Gram that belong to ``some`` examples spread evenly."""
        examples = [i * self.count // some for i in range(some)]
        return [n * self.classes + c for n in examples for c in range(self.classes)]


CASES = (
    Case("lenet5x8-512", "lenet5x8", 512, 1, rows=32, columns=512, at_least=5),
    Case("resnet20-512", "resnet20", 512, 1, rows=64, columns=512, at_least=2),
    Case(
        "resnet20-2048", "resnet20", 2048, 1, rows=64, columns=512, at_least=2, memory_at_most=1 / 3
    ),
    Case("transformer-256", "transformer", 256, 1, rows=64, columns=256, at_least=2),
    Case("resnet20-full-128", "resnet20", 128, 10, rows=16, columns=128, at_least=2),
    Case("lenet5x8-full-128", "lenet5x8", 128, 10, rows=4, columns=64, at_least=2),
)


DEVICE_CASES = (
    *CASES[:4],
    Case("resnet20-full-128", "resnet20", 128, 10, rows=8, columns=32, at_least=1),
    Case("lenet5x8-4096", "lenet5x8", 4096, 1, rows=32, columns=256, at_least=3),
    Case("resnet20-4096", "resnet20", 4096, 1, rows=32, columns=256, at_least=3),
    # neural-tangents published times of a V100 for it (Novak et al., ICML 2022).
    Case("resnet18-full-8", "resnet18", 8, 8, rows=2, columns=4, at_least=1),
)
"""What is measured on a GPU."""


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride > 1 or into != out:
            conv = nn.Conv2d(into, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


def resnet18(outputs: int) -> nn.Module:
    """Return a ResNet-18 (He et al., CVPR 2016) for (N, 3, 224, 224)."""
    sizes = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
    stages = [
        block
        for into, out, stride in sizes
        for block in (Residual(into, out, stride), Residual(out, out, 1))
    ]
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, outputs),
    )


class Encoder(nn.Module):
    """A transformer encoder, the mean over positions and a linear layer: (N, T, D) to (N, C)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def architecture(network: Network, outputs: int) -> nn.Module:
    """Build a freshly initialised network, in evaluation mode; its weights are always the same."""
    if network in ("transformer", "resnet18"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return (Encoder if network == "transformer" else resnet18)(outputs).eval()
    recipe = {"name": "lenet5", "width": 8} if network == "lenet5x8" else {"name": network}
    return build_model(ModelRecipe.model_validate(recipe), IMAGE, outputs, seed=SEED).eval()


def network_on(network: Network, outputs: int, inputs: Tensor) -> nn.Module:
    """Build a network whose BatchNorm layers hold the statistics of up to 128 of the inputs.

    A network that never saw an example would have means of 0 and variances of 1 there, and
    activations of a size that no trained network has.
    """
    model = architecture(network, outputs)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = None  # a plain mean over batches, here of one
        module.train()
    if norms:
        with torch.no_grad():
            model(inputs[:128])
    return model.eval()


def inputs_for(case: Case, folder: Path | None) -> Tensor:
    """Return the case's examples: images of the folder, normalised, or normal random numbers."""
    shapes = {"transformer": (POSITIONS, WIDTH), "resnet18": LARGE_IMAGE}
    if case.network in shapes or folder is None:
        shape = shapes.get(case.network, IMAGE)
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(case.count, *shape, generator=generator)
    return images(folder, case.count)[0]


def images(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Return test images of a folder of parquet files, normalised, and their labels."""
    recipe = DataRecipe(source="huggingface", path=str(folder), test_size=count)
    splits = load_splits(recipe)
    return Normalisation.of(splits.train)(splits.test.inputs), splits.test.labels
