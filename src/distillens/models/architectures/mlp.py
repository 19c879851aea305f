"""A multilayer perceptron with ReLU."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn


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
