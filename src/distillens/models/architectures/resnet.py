"""The CIFAR ResNets of He et al. 2016: depth 6n + 2, shortcuts of option A or B."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from distillens.models.architectures.lenet import image_shape
from distillens.models.builders import Shortcut


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
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Translate the published names, before the layers look for theirs."""
        published = [name for name in state_dict if name.startswith(prefix)]
        for name in published:
            ours = self._own_name(name[len(prefix) :])
            if ours != name[len(prefix) :]:
                state_dict[prefix + ours] = state_dict.pop(name)
        self._check_layout({name[len(prefix) :] for name in published}, error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _own_name(self, name: str) -> str:
        """Return this class's name for a published one; other names as they are."""
        name = re.sub(r"^(conv|bn)1\.", r"\1.", name)
        name = re.sub(r"^linear\.", "fc.", name)
        if found := re.match(r"layer([123])\.(\d+)\.(.*)", name):
            stage, block, rest = int(found[1]) - 1, int(found[2]), found[3]
            if block < self.stage_blocks:
                rest = re.sub(r"^downsample\.", "shortcut.", rest)
                return f"blocks.{stage * self.stage_blocks + block}.{rest}"
        return name

    def _check_layout(self, published: set[str], problems: list[str]) -> None:
        """Return the argument that selects another published layout."""
        found = [re.match(r"layer([123])\.(\d+)\.(.*)", name) for name in published]
        places = [match for match in found if match]
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
        elif projected != any(
            isinstance(block, Block) and block.shortcut is not None for block in self.blocks
        ):
            right = "B" if projected else "A"
            problems.append(
                f"the checkpoint has shortcuts of option {right}; set `shortcut: {right}` in the model"
            )
