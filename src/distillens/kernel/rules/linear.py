"""Linear maps, applied once or at every position."""

from __future__ import annotations

import math
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
        """Return the call; None for a weight of one axis, whose outputs have no axis of theirs."""
        if arguments["weight"].ndim != 2:
            return None
        parameters: dict[Role, Tensor] = {"weight": arguments["weight"]}
        if arguments.get("bias") is not None:
            parameters["bias"] = arguments["bias"]
        return Call(parameters, arguments["input"])

    def factor(
        self, call: Call, inputs_B: Tensor, gradients_BC: Tensor, roles: tuple[Role, ...]
    ) -> Factor:
        """Return the outer products of inputs and gradients."""
        B, C, *between, fan_out = gradients_BC.shape
        T = math.prod(between)
        # The fan-in can be zero, where a bias alone is asked for.
        inputs_B1Ta = inputs_B.reshape(B, 1, T, inputs_B.shape[-1])
        return Outer(inputs_B1Ta, gradients_BC.reshape(B, C, 1, T, fan_out), roles)
