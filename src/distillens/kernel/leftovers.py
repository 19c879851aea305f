"""Gradients of parameters that no rule covers, by torch.func or one backward pass at a time.

Shapes: B examples, O outputs of the network, C combinations of them, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap


class Leftovers:
    """Per-example gradients by some parameters of a network."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        own = dict(network.named_parameters())
        self._network = network
        self.weights = {name: own[name] for name in names}
        self._vectorised = True

    @property
    def numbers(self) -> int:
        """P."""
        return sum(weight.numel() for weight in self.weights.values())

    def gradients(self, inputs_B: Tensor, directions_CO: Tensor) -> Tensor:
        """Return the gradients, (B, C, P)."""
        if self._vectorised:
            try:
                return self._by_func(inputs_B, directions_CO)
            except RuntimeError:
                # vmap does not know some operations; single backward passes know all.
                self._vectorised = False
        return self._by_backward(inputs_B, directions_CO)

    def _by_func(self, inputs_B: Tensor, directions_CO: Tensor) -> Tensor:
        def output(weights: dict[str, Tensor], example: Tensor) -> Tensor:
            return directions_CO @ functional_call(self._network, weights, (example[None],))[0]

        weights = {name: weight.detach() for name, weight in self.weights.items()}
        tree = vmap(jacrev(output), in_dims=(None, 0))(weights, inputs_B)
        return torch.cat([tree[name].flatten(2) for name in weights], dim=2).detach()

    def _by_backward(self, inputs_B: Tensor, directions_CO: Tensor) -> Tensor:
        weights = list(self.weights.values())
        rows = []
        for example in inputs_B:
            with torch.enable_grad():
                outputs_C = directions_CO @ self._network(example[None])[0]
            gradients = [
                torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True)
                for value in outputs_C
            ]
            rows.append(torch.stack([torch.cat([g.flatten() for g in each]) for each in gradients]))
        return torch.stack(rows)
