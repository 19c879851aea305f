"""Normalisations: BatchNorm with running statistics, LayerNorm, GroupNorm, RMSNorm.

Their weight multiplies the normalised input x̂ and their bias is added to it, so the gradients are
Σ g x̂ and Σ g over the positions that each number of the parameter is applied to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor
from torch.nn import functional

from distillens.kernel.factors.factor import Factor, Materialised, Role
from distillens.kernel.rules.rule import Call, Rule, weight_and_bias


class _Normalisation(Rule):
    by_channel = False
    """Whether the weight has one number for each channel, the first axis after the examples; otherwise
    it covers the last axes."""

    def read(self, arguments: dict[str, Any]) -> Call | None:
        """Return the call; None if it has neither weight nor bias."""
        parameters, normalised = weight_and_bias(arguments), self.normalised(arguments)
        if normalised is None or not parameters:
            return None
        return Call(parameters, arguments["input"], normalised)

    def factor(
        self, call: Call, inputs_B: Tensor, gradients_BC: Tensor, roles: tuple[Role, ...]
    ) -> Factor:
        """Return the gradients, summed over the positions that each number is applied to."""
        made: dict[Role, Tensor] = {}
        several = inputs_B.ndim > call.inputs.ndim
        size = next(iter(call.parameters.values())).numel()
        for role in roles:
            products = gradients_BC
            if role == "weight":
                normalised_B = call.settings(inputs_B.flatten(0, 1) if several else inputs_B)
                products = gradients_BC * normalised_B.reshape(inputs_B.shape)[:, None]
            if several:
                # Each example holds several samples that are normalised.
                products = products.sum(dim=2)
            B, C = products.shape[:2]
            if self.by_channel:
                made[role] = products.reshape(B, C, size, -1).sum(dim=3)
            else:
                made[role] = products.reshape(B, C, -1, size).sum(dim=2)
        return Materialised(made)

    def normalised(self, arguments: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
        """Return the map from inputs to x̂; None if it depends on other examples.

        By default it is the function itself without weight and bias.
        """
        mine = ("input", "weight", "bias")
        settings = {name: each for name, each in arguments.items() if name not in mine}
        return partial(self.functions[0], **settings)


class BatchNorm(_Normalisation):
    """BatchNorm with running statistics; with batch statistics no kernel is defined."""

    by_channel = True
    functions = (functional.batch_norm,)
    positional = tuple(signature(functional.batch_norm).parameters)

    def normalised(self, arguments: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
        """Return the affine map of the running statistics."""
        mean, variance = arguments["running_mean"], arguments["running_var"]
        if arguments.get("training", False) or mean is None or variance is None:
            return None
        scale = (variance + arguments.get("eps", 1e-5)).rsqrt()

        def of(inputs_B: Tensor) -> Tensor:
            shape = (1, -1, *([1] * (inputs_B.ndim - 2)))
            return (inputs_B - mean.view(shape)) * scale.view(shape)

        return of


class GroupNorm(_Normalisation):
    """GroupNorm: statistics of each example's groups of channels."""

    by_channel = True
    functions = (functional.group_norm,)
    positional = tuple(signature(functional.group_norm).parameters)


class LayerNorm(_Normalisation):
    """LayerNorm: statistics of the last axes."""

    functions = (functional.layer_norm,)
    positional = tuple(signature(functional.layer_norm).parameters)


class RMSNorm(_Normalisation):
    """RMSNorm: the root mean square of the last axes."""

    functions = (functional.rms_norm,)
    positional = tuple(signature(functional.rms_norm).parameters)
