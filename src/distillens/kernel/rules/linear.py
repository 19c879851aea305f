"""Linear maps, applied once or at every position."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from distillens.kernel.factors import Factor, Outer, Role
from distillens.kernel.rules.rule import Call, Rule


class Linear(Rule):
    """y = xWᵀ + b over the last axis; all axes between are positions."""

    functions = (functional.linear,)
    positional = ("input", "weight", "bias")

    def read(self, arguments: dict[str, Any]) -> Call | None:
        """Return the call."""
        parameters: dict[Role, Tensor] = {"weight": arguments["weight"]}
        if arguments.get("bias") is not None:
            parameters["bias"] = arguments["bias"]
        return Call(parameters, arguments["input"])

    def factor(
        self, call: Call, inputs_B: Tensor, gradients_BC: Tensor, roles: tuple[Role, ...]
    ) -> Factor:
        """Return the outer products of inputs and gradients."""
        inputs_B1Ta = inputs_B.reshape(len(inputs_B), 1, -1, inputs_B.shape[-1])
        shape = (*gradients_BC.shape[:2], 1, -1, gradients_BC.shape[-1])
        return Outer(inputs_B1Ta, gradients_BC.reshape(shape), roles)
