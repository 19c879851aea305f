"""LeNet-5 with ReLU and a width factor (LeCun et al. 1998; LeNet-5x8 is width 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from distillens.errors import ModelError

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
        The inputs are no images, they are too small, or ``width`` or ``pad_to`` is out of range.
    """

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, width: int = 1, pad_to: int = 32
    ) -> None:
        super().__init__()
        channels, height, side = image_shape("lenet5", input_shape)
        if width < 1:
            raise ModelError(f"lenet5: width must be at least 1, got {width}")
        if pad_to < 0:
            raise ModelError(f"lenet5: pad_to must be at least 0, got {pad_to}")
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
