"""The fallback for parameters that no rule covers: torch.func, or one backward pass at a time.

Shapes: B examples, O outputs of the network, C combinations of them, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from distillens.errors import KernelError
from distillens.forward.device_errors import ran_out_of_memory
from distillens.kernel.tracing.directions import Directions
from distillens.kernel.tracing.gradients import as_parameters, gradients_by, real, real_numbers
from distillens.kernel.tracing.isolated import IsolatedNetwork


class NotBatchableError(Exception):
    """torch.func cannot batch the network."""


class FallbackGradients:
    """Per-example gradients by some parameters of a network.

    Parameters
    ----------
    parameters
        The parameters by name.
    chosen
        Whether torch.func was chosen because it is faster, and not because no rule covers the
        parameters. All outputs are then taken at once, and a network that torch.func cannot batch
        is an error.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, chosen: bool = False) -> None:
        self._weights = dict(parameters)
        self._chosen = chosen
        self._refused: str | None = None
        self.alone_1C: Tensor | None = None
        """The outputs of the first example that Jacobians were made of, alone in its batch."""

    @property
    def numbers(self) -> int:
        """P."""
        return sum(real_numbers(weight) for weight in self._weights.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """A note on the parameters without a rule and on how their gradients were computed."""
        if not self._weights or self._chosen:
            return ()
        how = "torch.func"
        if self._refused is not None:
            how = f"single backward passes, since torch.func failed: {self._refused}"
        names = ", ".join(self._weights)
        return (f"no rule covers every use of {names}; their gradients came from {how}",)

    def write(
        self, network: IsolatedNetwork, inputs_B: Tensor, directions: Directions, target_BCP: Tensor
    ) -> None:
        """Write the gradients to a tensor, (B, C, P).

        Parameters
        ----------
        network
            The network, or a copy that shares its parameters.
        inputs_B
            The examples.
        directions
            The outputs.
        target_BCP
            Receives the gradients.

        Raises
        ------
        KernelError
            Memory ran out.
        """
        try:
            if self._refused is None:
                try:
                    column = 0
                    for gradients_BCp in self.jacobians(network, inputs_B, directions)[:-1]:
                        size = gradients_BCp.shape[2]
                        target_BCP[:, :, column : column + size] = gradients_BCp
                        column += size
                    return
                except NotBatchableError as error:
                    # Single backward passes support all operations, and fail again if the error is the
                    # model's own.
                    self._refused = str(error)
            self._by_backward(network, inputs_B, directions, target_BCP)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            raise KernelError(
                f"memory ran out on the gradients of {len(inputs_B)} examples by "
                f"{', '.join(self._weights)}, which no rule covers; lower max_memory so that fewer "
                "go through at a time, or leave these out with parameters="
            ) from error

    def jacobians(
        self, network: IsolatedNetwork, inputs_B: Tensor, directions: Directions
    ) -> list[Tensor]:
        """Return the gradients by each parameter, (B, C, p), and last the outputs, (B, C).

        Each example is alone in its batch.

        Raises
        ------
        NotBatchableError
            torch.func cannot batch the network.
        """
        reals = {name: real(weight.detach()) for name, weight in self._weights.items()}

        def outputs(given: dict[str, Tensor], example: Tensor) -> tuple[Tensor, Tensor]:
            weights = as_parameters(given, self._weights)
            found_C = directions.of(network.with_weights(weights, example[None]))[0]
            return (found_C[0] if len(directions) == 1 else found_C), found_C

        def each(example: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            if len(directions) == 1:
                return grad(lambda given: outputs(given, example), has_aux=True)(reals)
            # Uncovered parameters are few: one output at a time holds the activations of one.
            at_once = None if self._chosen else 1
            return jacrev(lambda g: outputs(g, example), has_aux=True, chunk_size=at_once)(reals)

        try:
            made, outputs_BC = vmap(each)(inputs_B)
        except (RuntimeError, NotImplementedError) as error:
            if ran_out_of_memory(error):
                raise
            raise NotBatchableError(str(error).partition("\n")[0]) from error
        B, C = len(inputs_B), len(directions)
        gradients = [made.pop(name).detach().reshape(B, C, -1) for name in reals]
        return [*gradients, outputs_BC.detach()]

    def _by_backward(
        self, network: IsolatedNetwork, inputs_B: Tensor, directions: Directions, target_BCP: Tensor
    ) -> None:
        weights = list(self._weights.values())
        for example, target_CP in zip(inputs_B, target_BCP, strict=True):
            with torch.enable_grad():
                outputs_C = directions.of(network(example[None]))[0]
            for value, target_P in zip(outputs_C, target_CP, strict=True):
                gradients = gradients_by(value, weights, retain=True)
                torch.cat([gradient.flatten() for gradient in gradients], out=target_P)
