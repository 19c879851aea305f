"""The CIFAR ResNets of He et al. 2016: depth 6n + 2, parameter-free shortcuts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from distillens.models.lenet import image_shape


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; a stride drops pixels and adds zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.added:
            front = self.added // 2
            x = pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.added - front)
            )
        return relu(x + y)


class CifarResNet(nn.Module):
    """Three stages of n blocks with 16, 32 and 64 channels, then the mean over positions."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, depth: int) -> None:
        super().__init__()
        channels, _, _ = image_shape(f"resnet{depth}", input_shape)
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        stages: list[nn.Module] = []
        width = 16
        for stage, size in enumerate((16, 32, 64)):
            for block in range(blocks):
                stages.append(Block(width, size, 2 if stage and not block else 1))
                width = size
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(64, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))
