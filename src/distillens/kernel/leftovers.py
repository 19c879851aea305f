"""Gradients of parameters that no rule covers, by torch.func or one backward pass at a time.

Shapes: B examples, O outputs of the network, C combinations of them, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from distillens.errors import KernelError
from distillens.kernel.called import call_with_weights
from distillens.kernel.directions import Directions
from distillens.kernel.failures import ran_out_of_memory
from distillens.kernel.gradients import as_parameters, gradients_by, real, real_numbers


class Leftovers:
    """Per-example gradients by some parameters of a network."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        own = dict(network.named_parameters())
        self._network = network
        self.weights = {name: own[name] for name in names}
        self._refused: str | None = None

    @property
    def numbers(self) -> int:
        """P."""
        return sum(real_numbers(weight) for weight in self.weights.values())

    @property
    def note(self) -> str | None:
        """Which parameters were left over and how their gradients were formed."""
        if not self.weights:
            return None
        left = f"no rule covers every use of {', '.join(self.weights)}"
        if self._refused is None:
            return f"{left}; their gradients came from torch.func"
        return (
            f"{left}; their gradients came from single backward passes, "
            f"since torch.func failed: {self._refused}"
        )

    def gradients(self, inputs_B: Tensor, directions: Directions) -> Tensor:
        """Return the gradients, (B, C, P).

        Raises
        ------
        KernelError
            Memory ran out.
        """
        try:
            if self._refused is None:
                try:
                    return self._by_func(inputs_B, directions)
                except (RuntimeError, NotImplementedError) as error:
                    if ran_out_of_memory(error):
                        raise
                    # vmap does not know some operations; single backward passes know all, and
                    # fail again where it is the model that fails.
                    self._refused = str(error).partition("\n")[0]
            return self._by_backward(inputs_B, directions)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            raise KernelError(
                f"memory ran out on the gradients of {len(inputs_B)} examples by "
                f"{', '.join(self.weights)}, which no rule covers; lower max_memory so that fewer "
                "go through at a time, or leave these out with parameters="
            ) from error

    def _by_func(self, inputs_B: Tensor, directions: Directions) -> Tensor:
        def output(reals: dict[str, Tensor], example: Tensor) -> Tensor:
            weights = as_parameters(reals, self.weights)
            return directions.of(call_with_weights(self._network, weights, example[None]))[0]

        reals = {name: real(weight.detach()) for name, weight in self.weights.items()}

        def each(example: Tensor) -> dict[str, Tensor]:
            # One output at a time, as the plan reckons: all C at once take C times the activations.
            return jacrev(lambda given: output(given, example), chunk_size=1)(reals)

        tree = vmap(each)(inputs_B)
        B, C = len(inputs_B), len(directions)
        return torch.cat([tree[name].reshape(B, C, -1) for name in reals], dim=2).detach()

    def _by_backward(self, inputs_B: Tensor, directions: Directions) -> Tensor:
        weights = list(self.weights.values())
        rows = []
        for example in inputs_B:
            with torch.enable_grad():
                outputs_C = directions.of(self._network(example[None]))[0]
            gradients = [gradients_by(value, weights, retain=True) for value in outputs_C]
            rows.append(torch.stack([torch.cat([g.flatten() for g in each]) for each in gradients]))
        return torch.stack(rows)
