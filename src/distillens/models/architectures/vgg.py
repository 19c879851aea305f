"""VGG-16 with batch normalisation for small images (Simonyan and Zisserman 2015, table 1, D)."""

from __future__ import annotations

from torch import Tensor, nn

from distillens.errors import ModelError
from distillens.models.architectures.lenet import image_shape

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
        if not 0 <= dropout < 1:
            raise ModelError(f"vgg16: dropout must lie in [0, 1), got {dropout}")
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
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
