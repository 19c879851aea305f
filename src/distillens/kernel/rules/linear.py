"""Linear maps, applied once or at several positions."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional

from distillens.kernel.factors.factor import Factor, Role
from distillens.kernel.factors.outer_products import OuterProducts
from distillens.kernel.rules.rule import Call, Rule, weight_and_bias


class Linear(Rule):
    """y = xWᵀ + b over the last axis; the axes between examples and features are positions."""

    functions = (functional.linear,)
    positional = ("input", "weight", "bias")

    def read(self, arguments: dict[str, Any]) -> Call | None:
        """Return the call; None for a weight of one axis, whose outputs have no feature axis."""
        if arguments["weight"].ndim != 2:
            return None
        return Call(weight_and_bias(arguments), arguments["input"])

    def factor(
        self, call: Call, inputs_B: Tensor, gradients_BC: Tensor, roles: tuple[Role, ...]
    ) -> Factor:
        """Return the outer products of inputs and gradients."""
        B, C, *between, fan_out = gradients_BC.shape
        T = math.prod(between)
        # The fan-in is zero if attention asks for a bias alone.
        inputs_B1Ta = inputs_B.reshape(B, 1, T, inputs_B.shape[-1])
        gradients_BC1Tg = gradients_BC.reshape(B, C, 1, T, fan_out)
        return OuterProducts(inputs_B1Ta, gradients_BC1Tg, roles)
