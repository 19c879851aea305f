"""Networks of linear layers: a multilayer perceptron, and fixed random features."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
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
